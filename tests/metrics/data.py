"""Made-up predictions for the tests of the metrics."""

import numpy as np

from tlray.metrics.calibration import apply_temperature


def draw_predictions(temperature, count=4000, num_classes=4, seed=0, spread=1.5):
    """Probabilities that are overconfident by a temperature, and labels drawn from the calibrated ones."""
    rng = np.random.default_rng(seed)
    calibrated = apply_temperature(np.exp(rng.normal(size=(count, num_classes)) * spread), 1.0)
    labels = (calibrated.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return apply_temperature(calibrated, 1 / temperature), labels
