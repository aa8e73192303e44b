"""Estimate how many images of each class an archive holds, and how good its labels are, from reviewed rows.

Prediction-powered inference (PPI++: Angelopoulos, Duchi and Zrnic 2023) with rows that were drawn with unequal, known
probabilities (Zrnic and Candes 2024): the mean of the model's probabilities over the whole archive, corrected by the
weighted mean of what a reviewer found to be different. Weights are the inverse probabilities of being drawn, scaled
within each predicted class to its known number of rows (post-stratification; Cochran 1977, Sampling Techniques,
chapter 5A).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlray.metrics.intervals import wilson

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

NO_CLASS = -1
"""The class of a reviewed row to which none applies."""

_PRIOR_EVENTS = 5.0
"""Surprises for which the variance that the model's probabilities let expect counts beside the observed one."""

_DEGREES_OF_SHARES, _DEGREES_OF_QUALITY = 4.0, 20.0
"""Degrees of freedom of an interval before any surprise; chosen by simulation."""

_LEAST_VARIANCE = 5e-4
"""Variance of a row's class, however sure the model is."""

_PRIOR_ROWS = 10.0
"""Rows for which calibrated probabilities count beside the observed errors."""


@dataclass(frozen=True)
class Estimate:
    """An estimated share with its 95% interval, in [0, 1]."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Return the width of the interval."""
        return self.high - self.low


@dataclass(frozen=True)
class ClassCensus:
    """One class of an archive.

    Attributes:
        share: share of the rows that truly belong to the class.
        precision: share of the rows predicted as the class that belong to it; None if none of them was reviewed.
        recall: share of the rows of the class that are predicted as it; None if there seem to be no such rows.
    """

    share: Estimate
    precision: Estimate | None
    recall: Estimate | None


@dataclass(frozen=True)
class Census:
    """What an archive holds, as far as its predicted classes were reviewed.

    Attributes:
        rows: labelled rows of the classes that were reviewed; the estimates are for these.
        classes: by class index.
        no_class: share of the rows to which no class applies.
        accuracy: share of the rows whose label is right.
        trust: lambda of PPI++ in [0, 1], the weight of the model's probabilities; 0 ignores them.
    """

    rows: int
    classes: list[ClassCensus]
    no_class: Estimate
    accuracy: Estimate
    trust: float


@dataclass(frozen=True)
class Reviewed:
    """Reviewed rows of an archive.

    Attributes:
        predicted: int64 `[n]`, predicted class.
        probabilities: float64 `[n]`, of that class.
        true: int64 `[n]`, class that the reviewer found, or `NO_CLASS`.
        inclusion: float64 `[n]`, probability of the row to be in the sample, above 0.
    """

    predicted: Indices
    probabilities: Floats
    true: Indices
    inclusion: Floats


def take_census(rows: Indices, confidence: Floats, reviewed: Reviewed) -> Census:
    """Estimate an archive's classes.

    Args:
        rows: int64 `[C]`, labelled rows of the archive by predicted class.
        confidence: float64 `[C]`, sum of their probabilities of that class.
        reviewed: rows that were reviewed; each class's are taken for a random sample of those drawn. Not empty.
    """
    num_classes, predicted, probabilities = len(rows), reviewed.predicted, reviewed.probabilities
    counts = np.bincount(predicted, minlength=num_classes)
    covered = np.where(counts > 0, rows, 0)
    total = int(covered.sum())
    weights = 1 / reviewed.inclusion
    weights = weights * (rows / np.maximum(np.bincount(predicted, weights, num_classes), _TINY))[predicted]
    # the variance that a row adds to a total is spread x (its residual)^2
    spread = np.maximum(weights * (weights - 1), 0.0) * (counts / np.maximum(counts - 1, 1))[predicted]

    others = _share_out(rows)
    own = predicted[:, None] == np.arange(num_classes)
    expected = np.where(own, probabilities[:, None], (1 - probabilities)[:, None] * others[predicted])
    found = (reviewed.true[:, None] == np.arange(num_classes)).astype(np.float64)
    right = (reviewed.true == predicted).astype(np.float64)
    trust = _fit_trust(_centre(found, weights, predicted), _centre(expected, weights, predicted), spread)
    errors = found - trust * expected
    surprise = _measure_surprise(right, probabilities, weights)
    variances = _Variances(
        spread,
        _centre(errors, weights, predicted),
        np.maximum(expected * (1 - expected), _LEAST_VARIANCE) * surprise,
    )

    confidence = np.where(counts > 0, confidence, 0.0)
    corrections = weights[:, None] * errors
    hits = np.clip(trust * confidence + (corrections * own).sum(axis=0), 0, covered)
    misses = np.maximum(trust * (covered - confidence) @ others + (corrections * ~own).sum(axis=0), 0.0)
    size = hits + misses
    shares = variances.bound_shares(size / total, np.full((1, num_classes), 1 / total))
    precision = hits / np.maximum(covered, 1)
    precisions = variances.bound_quality(precision, own / np.maximum(covered, 1), confidence / np.maximum(covered, 1))
    recall = hits / np.maximum(size, _TINY)
    slopes = np.where(own, 1 - recall, -recall) / np.maximum(size, 1e-9)
    usual = confidence / np.maximum(confidence + (covered - confidence) @ others, _TINY)
    recalls = variances.bound_quality(recall, slopes, usual, cautious=True)
    correct = _Variances(
        spread,
        _centre((right - trust * probabilities)[:, None], weights, predicted),
        np.maximum(probabilities * (1 - probabilities), _LEAST_VARIANCE)[:, None] * surprise,
    )
    accuracy = correct.bound_quality(
        np.array([hits.sum() / total]), np.full((1, 1), 1 / total), np.array([confidence.sum() / total])
    )[0]
    return Census(
        rows=total,
        classes=[
            ClassCensus(
                shares[label],
                precisions[label] if counts[label] else None,
                recalls[label] if size[label] > 0 else None,
            )
            for label in range(num_classes)
        ],
        no_class=_bound_exactly(weights[reviewed.true == NO_CLASS].sum() / total, weights, spread),
        accuracy=accuracy,
        trust=trust,
    )


_TINY = 1e-300


class _Variances:
    """Variances of totals over an archive, and intervals from them.

    Args:
        spread: float64 `[n]`, variance that a row adds per squared residual.
        residuals: float64 `[n, C]`, of each row's classes.
        usual: float64 `[n, C]`, expected squares of them.
    """

    def __init__(self, spread: Floats, residuals: Floats, usual: Floats) -> None:
        self._spread = spread[:, None]
        self._squares = residuals * residuals
        self._usual = usual

    def bound_shares(self, values: Floats, slopes: Floats) -> list[Estimate]:
        """Return shares with symmetric intervals; `slopes` of the shares by the rows' residuals, `[n or 1, C]`."""
        observed, usual, events = self._sum(slopes)
        blend = (events * observed + _PRIOR_EVENTS * usual) / (events + _PRIOR_EVENTS)
        errors = _find_quantile(events + _DEGREES_OF_SHARES) * np.sqrt(np.maximum(blend, observed))
        low, high = np.clip(values - errors, 0, 1), np.clip(values + errors, 0, 1)
        return [Estimate(*bounds) for bounds in zip(values.tolist(), low.tolist(), high.tolist(), strict=True)]

    def bound_quality(
        self, values: Floats, slopes: Floats, priors: Floats, *, cautious: bool = False
    ) -> list[Estimate]:
        """Return shares near 1 with Wilson's interval on the effective number of rows; see `bound_shares`.

        Args:
            values: float64 `[C]`.
            slopes: float64 `[n or 1, C]`.
            priors: float64 `[C]`, shares that the probabilities let expect.
            cautious: never take less than the observed variance.
        """
        observed, usual, events = self._sum(slopes)
        variance = (events * observed + _PRIOR_EVENTS * usual) / (events + _PRIOR_EVENTS)
        if cautious:
            variance = np.maximum(variance, observed)
        degrees = events + (_DEGREES_OF_SHARES if cautious else _DEGREES_OF_QUALITY)
        smooth = (events * values + _PRIOR_EVENTS * priors) / (events + _PRIOR_EVENTS)
        smooth = np.clip(smooth, 1e-6, 1 - 1e-6)
        sizes = smooth * (1 - smooth) / np.maximum(variance, 1e-30)
        estimates = []
        for value, size, z in zip(values.tolist(), sizes.tolist(), _find_quantile(degrees).tolist(), strict=True):
            low, high = wilson(value * size, size, z)
            estimates.append(Estimate(value, min(low, value), max(high, value)))
        return estimates

    def _sum(self, slopes: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the observed and the expected variance, `[C]`, and the number of surprises that tell the former.

        For a sum of rare events with weights, (sum of their variances)^2 / sum of their fourth moments.
        """
        scale = self._spread * slopes * slopes
        usual = scale * self._usual
        expected, fourth = usual.sum(axis=0), (scale * usual).sum(axis=0)
        events = np.where(fourth > 0, expected**2 / np.maximum(fourth, _TINY), np.inf)
        return (scale * self._squares).sum(axis=0), expected, np.minimum(events, 1e9)


def _share_out(rows: Indices) -> Floats:
    """Return `[C, C]`: how the probability that a class leaves is divided over the others, by their rows (and one)."""
    others = np.where(np.eye(len(rows), dtype=bool), 0.0, rows + 1.0)
    shares: Floats = others / np.maximum(others.sum(axis=1, keepdims=True), 1.0)
    return shares


def _centre(values: Floats, weights: Floats, predicted: Indices) -> Floats:
    """Return `[n, C]` values less their weighted mean over the rows of the same predicted class."""
    order = np.argsort(predicted, kind="stable")
    starts = np.flatnonzero(np.diff(predicted[order], prepend=-1))
    sums = np.add.reduceat((weights[:, None] * values)[order], starts, axis=0)
    means = sums / np.add.reduceat(weights[order], starts)[:, None]
    places = np.searchsorted(predicted[order][starts], predicted)
    centred: Floats = values - means[places]
    return centred


def _fit_trust(found: Floats, expected: Floats, spread: Floats) -> float:
    """Return PPI++'s lambda: the slope of what was found on what was expected, both `[n, C]` and centred."""
    slope = (spread[:, None] * found * expected).sum()
    length = (spread[:, None] * expected * expected).sum()
    return float(np.clip(slope / length, 0, 1)) if length > 0 else 1.0


def _measure_surprise(right: Floats, probabilities: Floats, weights: Floats) -> float:
    """Return by how much the errors exceed what the probabilities let expect; at least 1."""
    usual = np.maximum(probabilities * (1 - probabilities), _LEAST_VARIANCE)
    ratio = (weights * (right - probabilities) ** 2).sum() / (weights * usual).sum()
    rows = len(right)
    return max(1.0, float((ratio * rows + _PRIOR_ROWS) / (rows + _PRIOR_ROWS)))


def _bound_exactly(share: float, weights: Floats, spread: Floats) -> Estimate:
    """Return a share with Clopper and Pearson's interval on the effective number of rows (Korn and Graubard 1998)."""
    from scipy.stats import beta

    lost = spread.sum()
    if lost <= 0:
        return Estimate(share, share, share)
    size = weights.sum() ** 2 / lost
    hits = share * size
    low = float(beta.ppf(0.025, hits, size - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(0.975, hits + 1, size - hits)) if hits < size else 1.0
    return Estimate(share, low, high)


def _find_quantile(degrees: Floats) -> Floats:
    """Return the 97.5% quantile of Student's t."""
    from scipy.special import stdtrit

    quantiles: Floats = stdtrit(degrees, 0.975)
    return quantiles
