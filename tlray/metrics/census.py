"""Estimate how many images of each class an archive holds, and how good its labels are, from reviewed rows.

Prediction-powered inference (PPI++: Angelopoulos, Duchi and Zrnic 2023) with rows that were drawn with unequal, known
probabilities (Zrnic and Candes 2024): the mean of the model's probabilities over the whole archive, corrected by the
weighted mean of what a reviewer found to be different. Weights are the inverse probabilities of being drawn, scaled
within each predicted class to its known number of rows (post-stratification; Cochran 1977, Sampling Techniques,
chapter 5A); classes with few reviewed rows share one group.
"""

from __future__ import annotations

from collections.abc import Iterator
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

_LEAST_SHARE = 1e-6
"""Share of the rows below which a class seems to have none: the rest of rounding."""

_MIN_REVIEWED = 5
"""Reviewed rows from which on a predicted class is a group of its own."""

_BLOCK = 256
"""Classes that are worked on at a time: memory is proportional to it."""

_TINY = 1e-300


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
    """One class of an archive; None where nothing is known.

    Attributes:
        share: share of the rows that truly belong to the class; None if several rows predicted as it were drawn and
            none of them was reviewed.
        precision: share of the rows predicted as the class that belong to it; None if none of them was reviewed.
        recall: share of the rows of the class that are predicted as it; None if there seem to be no such rows, or the
            share of some class is None.
    """

    share: Estimate | None
    precision: Estimate | None
    recall: Estimate | None


@dataclass(frozen=True)
class Census:
    """Estimates of an archive, as far as its predicted classes were reviewed.

    Attributes:
        rows: labelled rows that the reviewed ones stand for; the estimates are for these.
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
        drawn: int64 `[C]`, rows of the sample by predicted class, reviewed or not.
    """

    predicted: Indices
    probabilities: Floats
    true: Indices
    inclusion: Floats
    drawn: Indices


def take_census(rows: Indices, confidence: Floats, reviewed: Reviewed) -> Census:
    """Estimate an archive's classes.

    Args:
        rows: int64 `[C]`, labelled rows of the archive by predicted class.
        confidence: float64 `[C]`, sum of their probabilities of that class.
        reviewed: rows that were reviewed; each class's are taken for a random sample of those drawn. Not empty.
    """
    survey = _Survey(rows, confidence, reviewed)
    return Census(
        rows=survey.total,
        classes=[one for block in survey.model.list_blocks() for one in survey.estimate_classes(block)],
        no_class=survey.estimate_no_class(),
        accuracy=survey.estimate_accuracy(),
        trust=survey.trust,
    )


class _Survey:
    """The estimates of an archive; arguments as of `take_census`.

    Attributes:
        model: the probabilities of all classes.
        total: rows of the covered classes.
        trust: lambda of PPI++.
    """

    def __init__(self, rows: Indices, confidence: Floats, reviewed: Reviewed) -> None:
        self._rows, self._reviewed = rows, reviewed
        self._groups = _Groups(rows, reviewed)
        self.model = _Model(rows, reviewed.predicted, reviewed.probabilities)
        self._right = (reviewed.true == reviewed.predicted).astype(np.float64)
        self.trust = _fit_trust(self._groups, self.model, reviewed.true)
        self._surprise = _measure_surprise(self._right, reviewed.probabilities, self._groups.spread)
        self._covered = np.where(self._groups.covered, rows, 0)
        self._confidence = np.where(self._groups.covered, confidence, 0.0)
        self.total = int(self._covered.sum())

    def estimate_classes(self, block: Indices) -> list[ClassCensus]:
        """Return the estimates of a block's classes."""
        groups, rows, confidence = self._groups, self._rows[block], self._confidence[block]
        expected, own = self.model.expect(block), self._reviewed.predicted[:, None] == block
        elsewhere = self.model.expect_elsewhere(self._covered - self._confidence, block)
        errors = (self._reviewed.true[:, None] == block) - self.trust * expected
        corrections = groups.weights[:, None] * errors
        hits = self.trust * confidence + (corrections * own).sum(axis=0)
        misses = self.trust * elsewhere + (corrections * ~own).sum(axis=0)
        share = np.clip((hits + misses) / self.total, 0, 1)
        hits, misses = np.clip(hits, 0, self._covered[block]), np.maximum(misses, 0.0)
        size = hits + misses
        variances = _Variances(groups.spread, groups.centre(errors), self._expect_squares(expected))
        shares = variances.bound_shares(share, np.full((1, len(block)), 1 / self.total))
        recall = hits / np.maximum(size, _TINY)
        slopes = np.where(own, 1 - recall, -recall) / np.maximum(size, 1e-9)
        priors = confidence / np.maximum(confidence + elsewhere, _TINY)
        recalls = variances.bound_quality(recall, slopes, priors, cautious=True)
        known = groups.covered[block] | (rows == 0)
        there = (size > _LEAST_SHARE * self.total) & groups.covered[self._rows > 0].all()
        estimates = zip(shares, self._estimate_precisions(block, own), recalls, strict=True)
        return [
            ClassCensus(one if known[place] else None, precision, recalled if there[place] else None)
            for place, (one, precision, recalled) in enumerate(estimates)
        ]

    def _estimate_precisions(self, block: Indices, own: npt.NDArray[np.bool_]) -> list[Estimate | None]:
        """Return the precision of a block's classes, by weights that are scaled to each class alone."""
        groups, rows, confidence = self._groups, self._rows[block], self._confidence[block]
        sums = (groups.weights[:, None] * own).sum(axis=0)
        weights = groups.weights[:, None] * own * (rows / np.maximum(sums, _TINY))
        errors, size = self._measure_errors(), np.maximum(rows, 1)
        values = (self.trust * confidence + (weights * errors[:, None]).sum(axis=0)) / size
        residuals = np.broadcast_to(groups.centre(errors[:, None]), own.shape)
        usual = self._expect_squares(self._reviewed.probabilities)[:, None]
        variances = _Variances(_measure_spread(weights, groups.counts[block]), residuals, usual)
        estimates = variances.bound_quality(np.clip(values, 0, 1), own / size, confidence / size)
        return [one if groups.counts[label] else None for one, label in zip(estimates, block.tolist(), strict=True)]

    def estimate_accuracy(self) -> Estimate:
        """Return the share of right labels."""
        groups, errors, confidence = self._groups, self._measure_errors(), float(self._confidence.sum())
        value = np.clip((self.trust * confidence + (groups.weights * errors).sum()) / self.total, 0, 1)
        usual = self._expect_squares(self._reviewed.probabilities)[:, None]
        variances = _Variances(groups.spread, groups.centre(errors[:, None]), usual)
        slopes, priors = np.full((1, 1), 1 / self.total), np.array([confidence / self.total])
        return variances.bound_quality(np.array([value]), slopes, priors)[0]

    def estimate_no_class(self) -> Estimate:
        """Return the share of rows to which no class applies."""
        weights = self._groups.weights
        share = float(weights[self._reviewed.true == NO_CLASS].sum() / self.total)
        return _bound_exactly(share, weights, self._groups.spread)

    def _measure_errors(self) -> Floats:
        """Return float64 `[n]`: whether a label is right, less what the model says of it."""
        errors: Floats = self._right - self.trust * self._reviewed.probabilities
        return errors

    def _expect_squares(self, probabilities: Floats) -> Floats:
        """Return the expected squares of residuals, by probability."""
        squares: Floats = np.maximum(probabilities * (1 - probabilities), _LEAST_VARIANCE) * self._surprise
        return squares


class _Groups:
    """Predicted classes as groups of rows whose number is known, and the weights of their reviewed rows.

    Attributes:
        covered: bool `[C]`, classes whose rows are represented by reviewed ones.
        counts: int64 `[C]`, reviewed rows of each class.
        weights: float64 `[n]`, rows that each reviewed row stands for; their sum over a group is the group's rows.
        spread: float64 `[n]`, the variance that a row adds to a total is spread x (its residual)^2.
    """

    def __init__(self, rows: Indices, reviewed: Reviewed) -> None:
        predicted, num_classes = reviewed.predicted, len(rows)
        self.counts = np.bincount(predicted, minlength=num_classes)
        skipped = (self.counts == 0) & (reviewed.drawn >= _MIN_REVIEWED)
        pooled = (self.counts < _MIN_REVIEWED) & ~skipped & (rows > 0)
        if pooled.any() and not self.counts[pooled].any():
            # the class with the fewest reviewed rows stands for them too
            pooled[np.where(self.counts > 0, self.counts, np.iinfo(np.int64).max).argmin()] = True
        self.covered = (rows > 0) & ~skipped
        names = np.where(pooled, num_classes, np.arange(num_classes))
        self._groups = names[predicted]
        in_archive = np.bincount(names[self.covered], rows[self.covered], num_classes + 1)
        weights = (reviewed.drawn / np.maximum(self.counts, 1))[predicted] / reviewed.inclusion
        self.weights = weights * (in_archive / np.maximum(self._sum(weights), _TINY))[self._groups]
        self.spread = _measure_spread(self.weights, self._sum(np.ones(len(predicted)))[self._groups])

    def _sum(self, values: Floats) -> Floats:
        return np.bincount(self._groups, values, len(self.counts) + 1).astype(np.float64)

    def centre(self, values: Floats) -> Floats:
        """Return `[n, B]` values less their weighted mean over the rows of the same group."""
        order = np.argsort(self._groups, kind="stable")
        ordered = self._groups[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        sums = np.add.reduceat((self.weights[:, None] * values)[order], starts, axis=0)
        means = sums / np.add.reduceat(self.weights[order], starts)[:, None]
        centred: Floats = values - means[np.searchsorted(ordered[starts], self._groups)]
        return centred


class _Model:
    """The probabilities of all classes that follow from those of the predicted ones.

    What a predicted class leaves is divided over the others by their rows in the archive, and one.
    """

    def __init__(self, rows: Indices, predicted: Indices, probabilities: Floats) -> None:
        self._parts = rows + 1.0
        self._others = np.maximum(self._parts.sum() - self._parts, 1.0)
        self._predicted, self._probabilities = predicted, probabilities

    def list_blocks(self) -> Iterator[Indices]:
        """Yield the class indices in blocks."""
        for start in range(0, len(self._parts), _BLOCK):
            yield np.arange(start, min(start + _BLOCK, len(self._parts)))

    def expect(self, block: Indices) -> Floats:
        """Return float64 `[n, B]`: each reviewed row's probability of the classes of a block."""
        left = (1 - self._probabilities) / self._others[self._predicted]
        own = self._predicted[:, None] == block
        return np.where(own, self._probabilities[:, None], left[:, None] * self._parts[block])

    def expect_elsewhere(self, left: Floats, block: Indices) -> Floats:
        """Return float64 `[B]`: rows of the classes of a block that are expected below other labels.

        Args:
            left: float64 `[C]`, probability that each predicted class leaves, summed over its rows.
            block: class indices.
        """
        ratios = left / self._others
        expected: Floats = self._parts[block] * (ratios.sum() - ratios[block])
        return expected


def _measure_spread(weights: Floats, counts: Floats | Indices) -> Floats:
    """Return weight^2 x the probability of being left out, of rows in groups with so many reviewed rows."""
    spread: Floats = np.maximum(weights * (weights - 1), 0.0) * counts / np.maximum(counts - 1, 1)
    return spread


class _Variances:
    """Variances of sums over an archive, and intervals from them.

    Args:
        spread: float64 `[n]` or `[n, B]`, variance that a row adds per squared residual.
        residuals: float64 `[n, B]`, of each row's classes.
        usual: float64 `[n, B]` or `[n, 1]`, expected squares of them.
    """

    def __init__(self, spread: Floats, residuals: Floats, usual: Floats) -> None:
        self._spread = spread if spread.ndim == 2 else spread[:, None]
        self._squares = residuals * residuals
        self._usual = usual

    def bound_shares(self, values: Floats, slopes: Floats) -> list[Estimate]:
        """Return shares with symmetric intervals; `slopes` of the shares by the rows' residuals, `[n or 1, B]`."""
        variance, events = self._sum(slopes, cautious=True)
        errors = _find_quantile(events + _DEGREES_OF_SHARES) * np.sqrt(variance)
        low, high = np.clip(values - errors, 0, 1), np.clip(values + errors, 0, 1)
        return [Estimate(*bounds) for bounds in zip(values.tolist(), low.tolist(), high.tolist(), strict=True)]

    def bound_quality(
        self, values: Floats, slopes: Floats, priors: Floats, *, cautious: bool = False
    ) -> list[Estimate]:
        """Return shares near 1 with Wilson's interval on the effective number of rows; see `bound_shares`.

        Args:
            values: float64 `[B]`.
            slopes: float64 `[n or 1, B]`.
            priors: float64 `[B]`, shares that the probabilities let expect.
            cautious: as for shares.
        """
        variance, events = self._sum(slopes, cautious=cautious)
        smooth = (events * values + _PRIOR_EVENTS * priors) / (events + _PRIOR_EVENTS)
        smooth = np.clip(smooth, 1e-6, 1 - 1e-6)
        sizes = smooth * (1 - smooth) / np.maximum(variance, 1e-30)
        estimates = []
        quantiles = _find_quantile(events + (_DEGREES_OF_SHARES if cautious else _DEGREES_OF_QUALITY))
        for value, size, z in zip(values.tolist(), sizes.tolist(), quantiles.tolist(), strict=True):
            low, high = wilson(value * size, size, z)
            estimates.append(Estimate(value, min(low, value), max(high, value)))
        return estimates

    def _sum(self, slopes: Floats, *, cautious: bool) -> tuple[Floats, Floats]:
        """Return the variance, `[B]`, and the number of surprises that tell it.

        The observed and the expected variance are averaged by that number; `cautious` takes no less than the observed
        one. The number is that of a sum of rare events with weights: (sum of their variances)^2 / sum of their fourth
        moments.
        """
        scale = self._spread * slopes * slopes
        usual = scale * self._usual
        observed, expected, fourth = (scale * self._squares).sum(axis=0), usual.sum(axis=0), (scale * usual).sum(axis=0)
        events = np.where(fourth > 0, expected**2 / np.maximum(fourth, _TINY), np.inf)
        events = np.minimum(events, 1e9)
        blend = (events * observed + _PRIOR_EVENTS * expected) / (events + _PRIOR_EVENTS)
        return np.maximum(blend, observed) if cautious else blend, events


def _fit_trust(groups: _Groups, model: _Model, true: Indices) -> float:
    """Return PPI++'s lambda: the slope of what was found on what was expected, over all classes."""
    slope = length = 0.0
    for block in model.list_blocks():
        found = groups.centre((true[:, None] == block).astype(np.float64))
        expected = groups.centre(model.expect(block))
        slope += float((groups.spread[:, None] * found * expected).sum())
        length += float((groups.spread[:, None] * expected * expected).sum())
    return min(max(slope / length, 0.0), 1.0) if length > 0 else 1.0


def _measure_surprise(right: Floats, probabilities: Floats, spread: Floats) -> float:
    """Return by how much the errors exceed what the probabilities let expect, at least 1.

    Rows count by what their likes that were not drawn add to the variance.
    """
    usual = np.maximum(probabilities * (1 - probabilities), _LEAST_VARIANCE)
    expected = (spread * usual).sum()
    ratio = (spread * (right - probabilities) ** 2).sum() / expected if expected > 0 else 1.0
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
