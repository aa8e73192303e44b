"""Calibration of probabilities: temperature scaling and the expected calibration error.

Guo, Pleiss, Sun, Weinberger: "On calibration of modern neural networks" (ICML 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlray.metrics.intervals import LossGain, measure_gain
from tlray.metrics.ood import OodRecord, OodScore

NUM_BINS = 15
"""Bins of equal width, as in the paper."""

MIN_IMAGES = 20
"""Fewer images are too few to fit a temperature."""

_TEMPERATURES = (0.2, 10.0)
_PRIOR_DEVIATION = 0.3
_FOLDS = 5
_MAX_IMAGES = 10_000
_MAX_NUMBERS = 20_000_000
"""Bounds of what a temperature is fitted on: 160 MB of logits, and its standard error is below 1%."""
_LEAST = 1e-12

Probabilities = npt.NDArray[np.floating]
"""`[N, C]`, each row with the sum 1."""

Labels = npt.NDArray[np.integer]
"""`[N]`, indices of the true classes."""


@dataclass(frozen=True)
class CalibrationRecord:
    """`bundle.json`'s `calibration`; attributes as in `Calibration`."""

    temperature: float
    images: int
    ood_score: OodRecord | None


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature, and what it gains.

    Attributes:
        gain: None for too few images.
        images: images it was fitted on; 0 if it is 1 because there were too few, or nothing was gained.
    """

    temperature: float
    gain: LossGain | None
    images: int = 0


@dataclass(frozen=True)
class Calibration:
    """Calibration of a network's probabilities, and its out-of-distribution score.

    Attributes:
        temperature: divisor of the logits.
        images: images it was fitted on; 0 if it is 1 because there were too few, or nothing was gained.
        ood_score: None without enough training images.
        gain: of the temperature; None for too few images.
    """

    temperature: float
    images: int
    ood_score: OodScore | None
    gain: LossGain | None = None

    def describe(self) -> CalibrationRecord:
        """Return it without arrays."""
        ood_score = None if self.ood_score is None else self.ood_score.describe()
        return CalibrationRecord(self.temperature, self.images, ood_score)


@dataclass(frozen=True)
class Bin:
    """Images whose top probability lies in one range.

    Attributes:
        low, high: bounds of the range.
        images: number of images.
        confidence: mean top probability.
        accuracy: share whose top class is the true one.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def fit_temperature(probabilities: Probabilities, labels: Labels) -> TemperatureFit:
    """Fit a temperature that helps: 1 for fewer than `MIN_IMAGES` images, and where cross-fitting finds no gain.

    The logarithm of the temperature has a normal prior around 0 with a deviation of 0.3: a few images that are nearly
    all right would otherwise make all probabilities extreme. Where all are right, the temperature is 1. Probabilities
    serve as well as logits, which differ from their logarithms by a constant in each row.
    """
    if len(labels) < MIN_IMAGES:
        return TemperatureFit(1.0, None)
    most = max(MIN_IMAGES, min(_MAX_IMAGES, _MAX_NUMBERS // probabilities.shape[1]))
    chosen = np.random.default_rng(0).permutation(len(labels))[:most]
    logits, labels = _take_logarithms(probabilities[chosen]), labels[chosen]
    folds = np.arange(len(labels)) % _FOLDS
    losses = _compute_losses(logits, labels, 1.0)
    gains = np.empty(len(labels))
    for fold in range(_FOLDS):
        held = folds == fold
        temperature = _maximize_posterior(logits[~held], labels[~held])
        gains[held] = losses[held] - _compute_losses(logits[held], labels[held], temperature)
    gain = measure_gain(len(gains), float(gains.sum()), float((gains**2).sum()))
    if gain.mean <= 0:
        return TemperatureFit(1.0, LossGain(0.0, 0.0, 0.0))
    return TemperatureFit(_maximize_posterior(logits, labels), gain, len(labels))


def _maximize_posterior(logits: npt.NDArray[np.float64], labels: Labels) -> float:
    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        likelihood = _compute_losses(logits, labels, float(np.exp(log_temperature))).sum()
        return float(likelihood + log_temperature**2 / (2 * _PRIOR_DEVIATION**2))

    found = minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURES)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def _compute_losses(logits: npt.NDArray[np.float64], labels: Labels, temperature: float) -> npt.NDArray[np.float64]:
    """Return the log-loss of each image at a temperature, `[N]`."""
    scaled = logits / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    own = scaled[np.arange(len(labels)), labels]
    losses: npt.NDArray[np.float64] = np.log(np.exp(scaled, out=scaled).sum(axis=1)) - own
    return losses


def _take_logarithms(probabilities: Probabilities) -> npt.NDArray[np.float64]:
    logarithms: npt.NDArray[np.float64] = np.log(
        np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)
    )
    return logarithms


def apply_temperature(probabilities: Probabilities, temperature: float) -> npt.NDArray[np.float64]:
    """Return the softmax of the logits divided by the temperature, `[N, C]`."""
    logits = _take_logarithms(probabilities) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def compute_log_loss(probabilities: Probabilities, labels: Labels) -> float:
    """Return the mean negative logarithm of the true class's probability; 0 without images."""
    chances = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chances, _LEAST)).mean()) if len(labels) else 0.0


def bin_confidences(probabilities: Probabilities, labels: Labels) -> list[Bin]:
    """Return the bins of a reliability diagram, without empty ones."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        Bin(
            low=place / NUM_BINS,
            high=(place + 1) / NUM_BINS,
            images=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for place in range(NUM_BINS)
        if (inside := places == place).any()
    ]


def compute_ece(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error: the bins' mean |accuracy - confidence|, weighted by images."""
    total = sum(entry.images for entry in bins)
    return sum(entry.images * abs(entry.accuracy - entry.confidence) for entry in bins) / max(total, 1)
