"""Probability thresholds above which predictions reach a required precision, with a stated confidence.

Whether the precision above a threshold reaches its target is tested from the surest predictions downwards, by exact
binomial tests in a fixed sequence, so that the confidence holds for the threshold that is chosen in the end
(Angelopoulos, Bates, Candes, Jordan, Lei 2021, "Learn then Test").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tlray.metrics.calibration import Labels, Probabilities
from tlray.metrics.intervals import wilson

_Numbers: TypeAlias = int | npt.NDArray[np.int64]

DEFAULT_CONFIDENCE = 0.9
"""Probability with which a promised precision is reached."""

_OWN_SHARE = 0.25
"""Share of the allowed error that the classes' own thresholds take together; the shared threshold takes the rest."""

_START_SHARES = (0.5, 0.25, 0.25)
"""Shares of a threshold's allowed error: of its first test, of the one half-way, of the last, on all predictions."""

_GROWTH = 1.1
"""Growth of the number of predictions from one test to the next."""

_MANY_IMAGES = 1000
"""From so many predictions on, a class has a threshold of its own wherever one can be promised."""

_LEAST_KEPT = 0.8
"""With fewer, it must keep this share of what the threshold over all predictions keeps of the class."""

_BAD_LEVEL = 0.01
"""Level of the test that finds a class whose labels are wrong too often above the shared threshold."""

_MOST_NEEDED = 10_000_000

_UNREACHABLE = 2.0


@dataclass(frozen=True)
class ChosenThresholds:
    """Probabilities that predictions must reach, exact in float32.

    Attributes:
        overall: for the classes that have none of their own; None if nothing can be promised for them together, or
            none of their labels reaches it.
        by_class: by class index; None for the overall one, infinite for a class whose labels are wrong too often.
    """

    overall: float | None
    by_class: tuple[float | None, ...]


@dataclass(frozen=True)
class Threshold:
    """The precision of predictions whose top probability is at least `probability`.

    Attributes:
        probability: calibrated, in [0, 1].
        precision: share of these predictions that is correct.
        low, high: Wilson 95% interval of the precision.
        kept: share of the images predicted as the same classes that have such a prediction.
        images: number of these predictions.
    """

    probability: float
    precision: float
    low: float
    high: float
    kept: float
    images: int


@dataclass(frozen=True)
class Needed:
    """The images that a threshold needs besides those that are there, all predicted as its classes.

    Attributes:
        images: about how many more.
        one_in: one in so many may be wrong.
    """

    images: int
    one_in: int

    def __str__(self) -> str:
        images = f"{self.images:,} more {'image' if self.images == 1 else 'images'}"
        return f"about {images} would do if at most one in {self.one_in:,} is wrong"


@dataclass(frozen=True)
class Thresholds:
    """`bundle.json`'s `thresholds`.

    Attributes:
        target_precision: required precision, in (0, 1).
        confidence: probability with which it is reached by all labels that are kept, and by those of each class that
            has a threshold of its own.
        overall: over the predictions of the classes in `pooled`; None if nothing can be promised for them.
        kept: share of all images whose label is kept.
        needed: for `overall`; None if it is there, or if the images cannot tell.
        by_class: by predicted class; None for classes in `pooled`, and for those whose labels are wrong too often.
        pooled: classes that share `overall`.
        needed_by_class: as `needed`, by predicted class; None also where a threshold could be promised, but would keep
            less than `overall`.
    """

    target_precision: float
    confidence: float
    overall: Threshold | None
    kept: float
    needed: Needed | None
    by_class: dict[str, Threshold | None] = field(default_factory=dict)
    pooled: list[str] = field(default_factory=list)
    needed_by_class: dict[str, Needed | None] = field(default_factory=dict)


class _Predictions(NamedTuple):
    """Predictions in falling order of their probabilities, by a group of classes.

    Attributes:
        top: top probabilities, rounded down to float32, `[N]`.
        right: whether the class is correct, `[N]`.
    """

    top: npt.NDArray[np.float32]
    right: npt.NDArray[np.bool_]

    def count_kept(self, threshold: float) -> int:
        return int((self.top >= threshold).sum())


class _Testing(NamedTuple):
    """The tests of a call: the target, and the allowed errors of the shared threshold and of each class's own."""

    target: float
    level: float
    own_level: float


def choose_thresholds(
    probabilities: Probabilities, labels: Labels, target_precision: float, confidence: float = DEFAULT_CONFIDENCE
) -> ChosenThresholds:
    """Choose the lowest probabilities above which the precision reaches the target.

    A label is kept where its probability reaches the threshold of its class, or `overall` where its class has none.
    With probability `confidence` over the draw of these images, at least `target_precision` of all labels that are
    kept are right, and of those of each class with a finite threshold of its own.

    Args:
        probabilities: calibrated, `[N, C]`, of images that the model has not learned.
        labels: true classes, `[N]`.
        target_precision: required precision, in (0, 1).
        confidence: in (0, 1).
    """
    classes, everything = _split(probabilities, labels)
    testing = _plan_tests(classes, target_precision, confidence)
    overall = _choose(everything, testing.target, testing.level)
    possible = [_choose(one, testing.target, testing.own_level) for one in classes]
    by_class = [own if _is_enough(own, one, overall) else None for own, one in zip(possible, classes, strict=True)]
    rest = [one for one, own in zip(classes, by_class, strict=True) if own is None]
    if len(rest) < len(classes):
        overall = _choose(_join(rest), testing.target, testing.level)
    if overall is None:
        return ChosenThresholds(None, tuple(by_class))
    # these classes were part of the test: without their wrong labels it would promise too much for the others
    for index, (own, one) in enumerate(zip(possible, classes, strict=True)):
        if by_class[index] is None and _is_bad(one, overall, testing.target):
            by_class[index] = math.inf if own is None else own
    pooled = [one for one, own in zip(classes, by_class, strict=True) if own is None]
    return ChosenThresholds(overall if any(one.count_kept(overall) for one in pooled) else None, tuple(by_class))


def describe_thresholds(
    probabilities: Probabilities,
    labels: Labels,
    classes: Sequence[str],
    target_precision: float,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Thresholds:
    """Choose thresholds, and measure what they keep; arguments as of `choose_thresholds`, and the classes' names."""
    chosen = choose_thresholds(probabilities, labels, target_precision, confidence)
    split, everything = _split(probabilities, labels)
    testing = _plan_tests(split, target_precision, confidence)
    by_class: dict[str, Threshold | None] = {}
    needed_by_class: dict[str, Needed | None] = {}
    pooled: list[str] = []
    for name, predictions, value in zip(classes, split, chosen.by_class, strict=True):
        by_class[name] = None if value is None or math.isinf(value) else _measure(value, predictions)
        needed_by_class[name] = None
        if value is None:
            pooled.append(name)
            if _choose(predictions, testing.target, testing.own_level) is None:
                needed_by_class[name] = count_needed(*predictions, testing.target, testing.own_level)
    rest = _join([predictions for predictions, value in zip(split, chosen.by_class, strict=True) if value is None])
    needed = count_needed(*rest, testing.target, testing.level) if chosen.overall is None and pooled else None
    overall = None if chosen.overall is None else _measure(chosen.overall, rest)
    num_kept = sum(one.images for one in (overall, *by_class.values()) if one is not None)
    kept = num_kept / len(everything.top) if len(everything.top) else 0.0
    return Thresholds(target_precision, confidence, overall, kept, needed, by_class, pooled, needed_by_class)


def resolve_thresholds(thresholds: Thresholds, classes: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the minimum probability by class index, float32 `[C]`.

    A class in `pooled` takes the overall threshold, every other class its own. Without one, no probability is enough.
    """
    pooled = set(thresholds.pooled)
    chosen = [thresholds.overall if name in pooled else thresholds.by_class[name] for name in classes]
    return np.array([_UNREACHABLE if entry is None else entry.probability for entry in chosen], np.float32)


def explain_needed(needed: Needed | None) -> str:
    """Return how many more images a threshold needs that is not there, as far as it can be told."""
    return "how many more images would do cannot be told from these" if needed is None else str(needed)


def count_needed(
    top: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], target_precision: float, level: float
) -> Needed | None:
    """Return how many more images a threshold needs, from those that are there; None if they cannot tell.

    Where they are too few to know, one wrong label is allowed for.

    Args:
        top: top probabilities in falling order, `[N]`.
        right: whether the prediction is correct, `[N]`.
        level: probability of a wrong promise.
    """
    num_images, level = len(top), level * min(_START_SHARES)
    least = count_least(target_precision, level, num_wrong=1)
    if num_images < least and (~right).sum() <= 1:
        return Needed(least - num_images, least)
    counts = _list_counts(1, num_images)
    shares = (np.cumsum(~right)[counts - 1] + 1) / (counts + 2)  # Laplace's estimate
    totals = [
        _count_for_share(share, target_precision, level) * num_images / count
        for share, count in zip(shares.tolist(), counts.tolist(), strict=True)
    ]
    best = int(np.argmin(totals))
    if math.isinf(totals[best]) or totals[best] <= num_images:
        return None
    return Needed(math.ceil(totals[best]) - num_images, max(1, int(1 / shares[best])))


@functools.cache
def count_least(target_precision: float, level: float, num_wrong: int = 0) -> int:
    """Return the number of labels of which `num_wrong` may be wrong in a test at a level."""
    least = num_wrong + 1
    while compute_chance(num_wrong, least, target_precision) > level:
        least += 1
    return least


def compute_chance(num_wrong: _Numbers, counts: _Numbers, precision: float) -> npt.NDArray[np.float64]:
    """Return the probability that at most `num_wrong` of `counts` labels are wrong where the precision is as given."""
    from scipy.special import bdtr  # every process of a prediction imports this module for its records

    chances: npt.NDArray[np.float64] = bdtr(num_wrong, counts, 1 - precision)
    return chances


def _count_for_share(share: float, target_precision: float, level: float) -> float:
    """Return the number of labels that a test at a level needs if a share of them is wrong; infinity for millions."""

    def is_enough(count: int) -> bool:
        return float(compute_chance(math.ceil(share * count), count, target_precision)) <= level

    high = 16
    while not is_enough(high):
        high *= 2
        if high > _MOST_NEEDED:
            return math.inf
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _split(probabilities: Probabilities, labels: Labels) -> tuple[list[_Predictions], _Predictions]:
    """Return the predictions by predicted class, and all of them."""
    probabilities = np.asarray(probabilities)
    predicted, top = probabilities.argmax(axis=1), probabilities.max(axis=1)
    rounded = top.astype(np.float32)
    # predictions that one float32 cannot tell apart are kept or dropped together
    rounded = np.where(rounded > top, np.nextafter(rounded, np.float32(0)), rounded)
    order = np.argsort(-rounded, kind="stable")
    everything = _Predictions(rounded[order], (predicted == np.asarray(labels))[order])
    by_class = np.argsort(predicted[order], kind="stable")
    ends = np.searchsorted(predicted[order][by_class], np.arange(1, probabilities.shape[1]))
    members = np.split(by_class, ends)
    return [_Predictions(everything.top[rows], everything.right[rows]) for rows in members], everything


def _join(predictions: Sequence[_Predictions]) -> _Predictions:
    top = np.concatenate([one.top for one in predictions] or [np.empty(0, np.float32)])
    right = np.concatenate([one.right for one in predictions] or [np.empty(0, bool)])
    order = np.argsort(-top, kind="stable")
    return _Predictions(top[order], right[order])


def _plan_tests(classes: Sequence[_Predictions], target: float, confidence: float) -> _Testing:
    """Divide the allowed error among the shared threshold and the classes with enough predictions for their own."""
    level = 1 - confidence
    least = count_least(target, _OWN_SHARE * level * _START_SHARES[0])
    num_own = sum(len(one.top) >= least for one in classes)
    return _Testing(target, (1 - _OWN_SHARE) * level, _OWN_SHARE * level / max(1, num_own))


def _choose(predictions: _Predictions, target: float, level: float) -> float | None:
    """Return the threshold with the most predictions among those that the tests confirm; None without any.

    Tests share the level by the fallback procedure (Wiens 2003): each that confirms passes its part on to the next.
    """
    num_images, first = len(predictions.top), count_least(target, level * _START_SHARES[0])
    if num_images < first:
        return None
    ends = np.flatnonzero(np.append(np.diff(predictions.top) < 0, True)) + 1
    counts = np.unique(ends[np.searchsorted(ends, _list_counts(first, num_images))])
    levels = np.zeros(len(counts))
    for index, share in zip((0, len(counts) // 2, -1), _START_SHARES, strict=True):
        levels[index] += share * level
    wrong = np.cumsum(~predictions.right, dtype=np.int64)[counts - 1]
    chances = compute_chance(wrong, counts, target)
    passed, confirmed = 0.0, None
    for index, (chance, own) in enumerate(zip(chances.tolist(), levels.tolist(), strict=True)):
        passed = passed + own if chance <= passed + own and passed + own > 0 else 0.0
        if passed:
            confirmed = index
    return None if confirmed is None else float(predictions.top[counts[confirmed] - 1])


def _list_counts(first: int, last: int) -> npt.NDArray[np.int64]:
    """Return growing numbers of predictions from `first` to `last`."""
    num_counts = 2 + int(math.log(last / first) / math.log(_GROWTH))
    return np.unique(np.geomspace(first, last, num_counts).round().astype(np.int64))


def _is_enough(own: float | None, predictions: _Predictions, overall: float | None) -> bool:
    """Return whether a class takes its own threshold: with few images it would keep much less than the shared one."""
    if own is None or overall is None or len(predictions.top) >= _MANY_IMAGES:
        return own is not None
    return predictions.count_kept(own) >= _LEAST_KEPT * predictions.count_kept(overall)


def _is_bad(predictions: _Predictions, overall: float, target: float) -> bool:
    """Return whether the labels of a class above the shared threshold are significantly worse than the target."""
    num_kept = predictions.count_kept(overall)
    num_wrong = int((~predictions.right[:num_kept]).sum())
    return num_wrong > 0 and 1 - float(compute_chance(num_wrong - 1, num_kept, target)) <= _BAD_LEVEL


def _measure(probability: float, predictions: _Predictions) -> Threshold:
    num_kept = predictions.count_kept(probability)
    num_right = int(predictions.right[:num_kept].sum())
    low, high = wilson(num_right, num_kept)
    share = num_kept / len(predictions.top) if len(predictions.top) else 0.0
    return Threshold(probability, num_right / num_kept if num_kept else 0.0, low, high, share, num_kept)
