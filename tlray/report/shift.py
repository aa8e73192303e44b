"""Comparison of an archive's predictions with those on the validation images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlray.model.manifest import Manifest
from tlray.report.page import clean, format_percent, shorten

_LEAST_DISTANCE = 0.1  # share of images in other classes; less is not worth a warning
_LEAST_DIFFERENCE = 0.05  # in mean confidence
_SURE = 0.01  # accepted rate of false alarms
_SURE_DEVIATIONS = 2.576  # the same two-sided level, in standard deviations of a normal distribution


@dataclass(frozen=True)
class Validation:
    """Predictions on the bundle's validation images.

    Attributes:
        images: number of images.
        shares: shares of the images by predicted class.
        confidence: mean probability of the predicted class.
        confidences: `[20]`, images by that probability over [0, 1].
    """

    images: int
    shares: dict[str, float]
    confidence: float
    confidences: list[int]


@dataclass(frozen=True)
class Shift:
    """Distance of an archive's predictions from those on validation images, with limits above which it matters.

    Attributes:
        distance: total variation distance of the class shares, in [0, 1]: the share of images in other classes.
        distance_limit: limit of `distance`; more is neither small nor noise.
        difference: mean confidence in the archive minus that on validation images.
        difference_limit: limit of `difference` in either direction; more is neither small nor noise.
        class_name: class whose share differs most.
    """

    distance: float
    distance_limit: float
    difference: float
    difference_limit: float
    class_name: str

    @property
    def fits(self) -> bool:
        """True if both are within their limits."""
        return self.distance <= self.distance_limit and abs(self.difference) <= self.difference_limit


def read_validation(manifest: Manifest) -> Validation | None:
    """Return the predictions on a bundle's validation images; None without any."""
    measured = manifest.metrics.validation
    if measured is None or not measured.images:
        return None
    images = measured.images
    return Validation(
        images=images,
        shares={name: one.predicted / images for name, one in measured.by_class.items()},
        confidence=sum(entry.images * entry.confidence for entry in measured.bins) / images,
        confidences=list(measured.confidences),
    )


def measure_shift(
    class_counts: Mapping[str, int],
    confidences: Sequence[int],
    confidence: float | None,
    validation: Validation | None,
) -> Shift | None:
    """Compare class shares and confidence with those on validation images; None if there is nothing to compare.

    Shares differ by more than noise if their total variation distance exceeds the one expected of two samples of one
    distribution (half the sum of the mean absolute deviations of normal variables) by more than McDiarmid's inequality
    allows in 1% of cases; means differ by more than noise if they are more than 2.576 standard errors apart.

    Args:
        class_counts: labelled rows by class.
        confidences: `[20]`, labelled rows by probability over [0, 1].
        confidence: mean probability, None without labelled rows.
        validation: predictions on validation images, None without any.
    """
    labelled = sum(class_counts.values())
    if validation is None or confidence is None or not labelled:
        return None
    names = list(dict.fromkeys([*validation.shares, *class_counts]))
    here = np.array([class_counts.get(name, 0) / labelled for name in names])
    there = np.array([validation.shares.get(name, 0.0) for name in names])
    parts = 1 / labelled + 1 / validation.images
    together = (here * labelled + there * validation.images) / (labelled + validation.images)
    expected = 0.5 * float(np.sqrt(2 / math.pi * together * (1 - together) * parts).sum())
    noise = math.sqrt(-math.log(_SURE) / 2 * parts)
    variances = _measure_variance(confidences) / labelled
    variances += _measure_variance(validation.confidences) / validation.images
    return Shift(
        distance=0.5 * float(np.abs(here - there).sum()),
        distance_limit=expected + max(_LEAST_DISTANCE, noise),
        difference=confidence - validation.confidence,
        difference_limit=max(_LEAST_DIFFERENCE, _SURE_DEVIATIONS * math.sqrt(variances)),
        class_name=names[int(np.abs(here - there).argmax())],
    )


def _measure_variance(histogram: Sequence[int]) -> float:
    """Return the variance of values counted in equal bins over [0, 1]."""
    counts = np.array(histogram, np.float64)
    middles = (np.arange(len(counts)) + 0.5) / len(counts)
    total = max(counts.sum(), 1.0)
    mean = (counts * middles).sum() / total
    return float((counts * (middles - mean) ** 2).sum() / total)


def compare_with_validation(
    class_counts: Mapping[str, int],
    confidences: Sequence[int],
    confidence: float | None,
    validation: Validation | None,
) -> str | None:
    """Return one sentence comparing the predictions with those on validation images; None without such.

    Args:
        class_counts, confidences, confidence, validation: as in `measure_shift`.
    """
    shift = measure_shift(class_counts, confidences, confidence, validation)
    if shift is None or validation is None:
        return None
    if shift.fits:
        return "Classes and confidence look like those of the validation images."
    faults = []
    if shift.distance > shift.distance_limit:
        name = shift.class_name
        share = class_counts.get(name, 0) / sum(class_counts.values())
        faults.append(
            f"the classes are distributed differently ({shorten(clean(name), 40)} is {format_percent(share)} here and "
            f"{format_percent(validation.shares.get(name, 0.0))} there)"
        )
    if abs(shift.difference) > shift.difference_limit:
        way = "less" if shift.difference < 0 else "more"
        faults.append(
            f"the predictions are {way} confident (on average {format_percent(confidence)} here and "
            f"{format_percent(validation.confidence)} there)"
        )
    return f"This archive differs from the validation images: {' and '.join(faults)}. Review a sample of its labels."
