"""Probability thresholds above which predictions reach a required precision, with a stated confidence.

Whether the precision above a threshold reaches its target is tested from the surest predictions downwards, by exact
binomial tests in a fixed sequence, so that the confidence holds for the threshold that is chosen in the end
(Angelopoulos, Bates, Candes, Jordan, Lei 2021, "Learn then Test").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tlray.metrics.calibration import Labels, Probabilities
from tlray.metrics.intervals import wilson

_Numbers: TypeAlias = int | npt.NDArray[np.int64]

DEFAULT_CONFIDENCE = 0.9
"""Probability with which a promised precision is reached."""

_START_SHARES = (2 / 3, 1 / 3)
"""Shares of the allowed error with which the sequence of tests starts, and with which it starts again half-way."""

_GROWTH = 1.1
"""Growth of the number of predictions from one test to the next."""

_MANY_IMAGES = 1000
"""From so many predictions on, a class has a threshold of its own wherever one can be promised."""

_LEAST_KEPT = 0.8
"""With fewer, it must keep this share of what the overall threshold keeps of the class: else images are too few."""

_BAD_LEVEL = 0.01
"""Level of the test that finds a class whose labels are wrong too often above the overall threshold."""

_MOST_NEEDED = 10_000_000

_UNREACHABLE = 2.0


@dataclass(frozen=True)
class ChosenThresholds:
    """Probabilities that predictions must reach.

    Attributes:
        overall: for the classes that have none of their own; None if nothing can be promised for them together.
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
class Thresholds:
    """`bundle.json`'s `thresholds`.

    Attributes:
        target_precision: required precision, in (0, 1).
        confidence: probability with which it is reached by all labels that are kept, and by those of each class that
            has a threshold of its own.
        overall: over the predictions of the classes in `pooled`; None if nothing can be promised for them.
        kept: share of all images whose label is kept.
        needed: images still needed for `overall`, by `count_needed`; None if it is there, or if more would not do.
        by_class: by predicted class; None for classes in `pooled`, and for those whose labels are wrong too often.
        pooled: classes that share `overall`.
        needed_by_class: as `needed`, by predicted class.
    """

    target_precision: float
    confidence: float
    overall: Threshold | None
    kept: float
    needed: int | None
    by_class: dict[str, Threshold | None] = field(default_factory=dict)
    pooled: list[str] = field(default_factory=list)
    needed_by_class: dict[str, int | None] = field(default_factory=dict)


class _Ranked(NamedTuple):
    """Top probabilities in falling order, `[N]`, and the number of wrong predictions among the first 1, 2, ... N."""

    confidence: npt.NDArray[np.floating]
    wrong: npt.NDArray[np.int64]


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
    predicted, top = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = predicted == labels
    by_class: list[float | None] = [None] * probabilities.shape[1]

    def choose(chosen: npt.NDArray[np.bool_]) -> float | None:
        return _choose(_rank(top[chosen], right[chosen]), target_precision, 1 - confidence)

    overall = choose(np.ones(len(labels), bool))
    if overall is None:
        return ChosenThresholds(None, tuple(by_class))
    for label in np.unique(predicted).tolist():
        own = predicted == label
        by_class[label] = _choose_own(choose(own), overall, top[own], right[own], target_precision)
    # classes that look bad stay in the test: without their wrong labels it would promise too much for the others
    shares = np.array([threshold is None or math.isinf(threshold) for threshold in by_class])[predicted]
    return ChosenThresholds(overall if shares.all() else choose(shares), tuple(by_class))


def describe_thresholds(
    probabilities: Probabilities,
    labels: Labels,
    classes: Sequence[str],
    target_precision: float,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Thresholds:
    """Choose thresholds, and measure what they keep; arguments as of `choose_thresholds`, and the classes' names."""
    chosen = choose_thresholds(probabilities, labels, target_precision, confidence)
    predicted, top = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right, level = predicted == labels, 1 - confidence
    own = [None if value is None or math.isinf(value) else value for value in chosen.by_class]
    is_pooled = np.array([value is None for value in chosen.by_class])
    pooled = is_pooled[predicted]

    def count(members: npt.NDArray[np.bool_]) -> int | None:
        return count_needed(top[members], right[members], target_precision, level)

    thresholds = Thresholds(
        target_precision=target_precision,
        confidence=confidence,
        overall=None if chosen.overall is None else _measure(chosen.overall, top[pooled], right[pooled]),
        kept=0.0,
        needed=count(pooled) if chosen.overall is None and is_pooled.any() else None,
        by_class={
            name: None if value is None else _measure(value, top[predicted == index], right[predicted == index])
            for index, (name, value) in enumerate(zip(classes, own, strict=True))
        },
        pooled=[name for name, one in zip(classes, is_pooled.tolist(), strict=True) if one],
        needed_by_class={
            name: None if value is not None else count(predicted == index)
            for index, (name, value) in enumerate(zip(classes, own, strict=True))
        },
    )
    kept = top >= resolve_thresholds(thresholds, classes)[predicted]
    return replace(thresholds, kept=float(kept.mean()) if len(kept) else 0.0)


def resolve_thresholds(thresholds: Thresholds, classes: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the minimum probability by class index, float32 `[C]`.

    A class in `pooled` takes the overall threshold, every other class its own. Without one, no probability is enough.
    """
    pooled = set(thresholds.pooled)
    chosen = [thresholds.overall if name in pooled else thresholds.by_class[name] for name in classes]
    return np.array([_UNREACHABLE if entry is None else entry.probability for entry in chosen], np.float32)


def explain_needed(thresholds: Thresholds, needed: int | None) -> str:
    """Return what to do about a threshold that is not there; `needed` is the `Thresholds`' own or of one class."""
    if needed is None:
        return "more images like these would not do"
    least = count_least(thresholds.target_precision, (1 - thresholds.confidence) * _START_SHARES[0], num_wrong=1)
    condition = f", if one in {least:,} is wrong" if needed <= least else ", if they are like these"
    return f"about {needed:,} more images would do{condition}"


def count_needed(
    confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], target_precision: float, level: float
) -> int | None:
    """Return about how many more images a threshold needs, if more are like these; None if more would not do.

    Without enough images to know, one wrong label is allowed for.

    Args:
        confidence: top probabilities, `[N]`.
        right: whether the prediction is correct, `[N]`.
        level: probability of a wrong promise.
    """
    num_images, level = len(confidence), level * _START_SHARES[0]
    least = count_least(target_precision, level, num_wrong=1)
    if num_images < least:
        return least - num_images
    counts = _list_counts(1, num_images)
    shares = (_rank(confidence, right).wrong[counts - 1] + 1) / (counts + 2)  # Laplace's estimate
    totals = [
        count_for_share(share, target_precision, level) * num_images / count
        for share, count in zip(shares.tolist(), counts.tolist(), strict=True)
    ]
    total = min(totals)
    return None if math.isinf(total) else max(1, math.ceil(total) - num_images)


def count_least(target_precision: float, level: float, num_wrong: int = 0) -> int:
    """Return the number of labels of which `num_wrong` may be wrong in a test at a level."""
    least = num_wrong + 1
    while compute_chance(num_wrong, least, target_precision) > level:
        least += 1
    return least


def count_for_share(share: float, target_precision: float, level: float) -> float:
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


def compute_chance(num_wrong: _Numbers, counts: _Numbers, precision: float) -> npt.NDArray[np.float64]:
    """Return the probability that at most `num_wrong` of `counts` labels are wrong where the precision is as given."""
    from scipy.special import bdtr  # every process of a prediction imports this module for its records

    chances: npt.NDArray[np.float64] = bdtr(num_wrong, counts, 1 - precision)
    return chances


def _rank(confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> _Ranked:
    order = np.argsort(-confidence, kind="stable")
    return _Ranked(confidence[order], np.cumsum(~right[order]))


def _choose(ranked: _Ranked, target: float, level: float) -> float | None:
    """Return the threshold with the most predictions among those that the tests confirm; None without any.

    Tests share the level by the fallback procedure (Wiens 2003): each that confirms passes its part on to the next.
    """
    num_images, first = len(ranked.confidence), count_least(target, level * _START_SHARES[0])
    if num_images < first:
        return None
    # predictions of one probability are kept or dropped together
    ends = np.flatnonzero(np.append(np.diff(ranked.confidence) < 0, True)) + 1
    counts = np.unique(ends[np.searchsorted(ends, _list_counts(first, num_images))])
    levels = np.zeros(len(counts))
    for number, share in enumerate(_START_SHARES):
        levels[number * len(counts) // len(_START_SHARES)] += share * level
    chances = compute_chance(ranked.wrong[counts - 1], counts, target)
    passed, confirmed = 0.0, None
    for index, (chance, own) in enumerate(zip(chances.tolist(), levels.tolist(), strict=True)):
        passed = passed + own if chance <= passed + own and passed + own > 0 else 0.0
        if passed:
            confirmed = index
    if confirmed is None:
        return None
    # rounded down, so that the image it comes from stays above it in float32
    return float(np.nextafter(np.float32(ranked.confidence[counts[confirmed] - 1]), np.float32(0)))


def _list_counts(first: int, last: int) -> npt.NDArray[np.int64]:
    """Return growing numbers of predictions from `first` to `last`."""
    num_counts = 2 + int(math.log(last / first) / math.log(_GROWTH))
    return np.unique(np.geomspace(first, last, num_counts).round().astype(np.int64))


def _choose_own(
    own: float | None, overall: float, confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], target: float
) -> float | None:
    """Return the threshold of a class: its own, None for the overall one, or infinity if its labels are bad."""
    kept = confidence >= overall
    if own is not None and len(confidence) >= _MANY_IMAGES:
        return own
    if own is not None and (confidence >= own).sum() >= _LEAST_KEPT * kept.sum():
        return own
    num_kept, num_wrong = int(kept.sum()), int((~right[kept]).sum())
    is_bad = num_wrong > 0 and 1 - compute_chance(num_wrong - 1, num_kept, target) <= _BAD_LEVEL
    return (math.inf if own is None else own) if is_bad else None


def _measure(probability: float, confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> Threshold:
    above = confidence >= np.float32(probability)
    num_kept, num_right = int(above.sum()), int(right[above].sum())
    low, high = wilson(num_right, num_kept)
    share = num_kept / len(confidence) if len(confidence) else 0.0
    return Threshold(probability, num_right / num_kept if num_kept else 0.0, low, high, share, num_kept)
