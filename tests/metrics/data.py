"""Made-up predictions for the tests of the metrics."""

import numpy as np

from tlray.metrics.calibration import apply_temperature


def draw_predictions(temperature, count=4000, num_classes=4, seed=0):
    """Probabilities that are overconfident by a temperature, and labels drawn from the calibrated ones."""
    rng = np.random.default_rng(seed)
    calibrated = apply_temperature(np.exp(rng.normal(size=(count, num_classes)) * 1.5), 1.0)
    labels = np.array([rng.choice(num_classes, p=row) for row in calibrated])
    return apply_temperature(calibrated, 1 / temperature), labels
