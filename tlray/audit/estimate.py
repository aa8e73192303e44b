"""The result of a reviewed sample: an archive's classes and the quality of its labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from tlray import storage
from tlray.audit.draw import SampleSummary
from tlray.audit.sample import Drawn, ReviewedLabels, Sample
from tlray.metrics.census import NO_CLASS, Census, Estimate, Reviewed, take_census
from tlray.metrics.classification import ConfusedPair
from tlray.notebook import Card, Shown


@dataclass(frozen=True)
class AuditedClass:
    """One class of an archive. Intervals are of 95%.

    Attributes:
        rows: labelled rows of the archive that are predicted as the class.
        sampled, reviewed, right: rows of them that were drawn, reviewed, and found right.
        count, count_low, count_high: estimated rows of the archive that belong to the class; None and the widest bounds
            if several rows predicted as it were drawn and none of them was reviewed.
        share, share_low, share_high: the same as a share of the rows.
        precision, precision_low, precision_high: share of the predicted rows that belong to the class; None and (0, 1)
            if none of them was reviewed.
        recall, recall_low, recall_high: share of the class's rows that are predicted as it; None and (0, 1) if there
            seem to be none, or the count of some class is None.
        shifted_share: share of the rows that belong to the class by the model's probabilities alone, corrected for
            label shift; None where the prediction run did not tell.
    """

    rows: int
    sampled: int
    reviewed: int
    right: int
    count: int | None
    count_low: int
    count_high: int
    share: float | None
    share_low: float
    share_high: float
    precision: float | None
    precision_low: float
    precision_high: float
    recall: float | None
    recall_low: float
    recall_high: float
    shifted_share: float | None


@dataclass(frozen=True, repr=False)
class AuditSummary(Shown):
    """Estimated classes and quality of an archive's labels. Intervals are of 95%.

    Attributes:
        folder: address of the folder with audit.json, report.html and corrections.csv.
        model_id, run_id: of the labels.
        labelled: rows of the archive with a label.
        sampled, reviewed, right: rows that were drawn, reviewed, and found right.
        none_of_them: reviewed rows of none of the classes, or of one that nobody could tell.
        no_class, no_class_low, no_class_high: estimated share of such rows.
        accuracy, accuracy_low, accuracy_high: estimated share of the archive's labels that is right.
        covered: share of the labelled rows that the reviewed ones stand for; the estimates are for these.
        trust: weight of the model's probabilities in the estimates, from 0 to 1.
        by_class: by class name, in the model's order.
        most_confused: reviewed rows by right (true) and predicted class where these differ, the most frequent first.
        corrections: rows written as a training list.
        inside: reviewed rows left out of that list, since they lie in a table or packed archive.
        widest, width: class whose share has the widest interval, and its width.
        verdict: one sentence on whether `--until` is reached; None without it.
        next_round: rows drawn to reach it.
    """

    folder: str
    model_id: str
    run_id: str
    labelled: int
    sampled: int
    reviewed: int
    right: int
    none_of_them: int
    no_class: float
    no_class_low: float
    no_class_high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    covered: float
    trust: float
    by_class: dict[str, AuditedClass]
    most_confused: list[ConfusedPair]
    corrections: int
    inside: int
    widest: str
    width: float
    verdict: str | None = None
    next_round: SampleSummary | None = None

    def describe(self) -> Card:
        """Return what a notebook shows: the accuracy, and the estimated classes."""
        interval = f"95% interval {self.accuracy_low:.3f} to {self.accuracy_high:.3f}"
        figures = [
            ("right", f"{self.accuracy:.3f} of {self.labelled:,} labels ({interval})"),
            ("reviewed", f"{self.reviewed:,} of {self.sampled:,} rows"),
            ("widest interval", f"{self.widest}, {self.width:.4f}"),
            ("report", f"{self.folder}/report.html"),
        ]
        return Card("Audited", figures, {name: one.share for name, one in self.by_class.items() if one.share})


def summarize(
    folder: str, sample: Sample, answers: ReviewedLabels, shifted: Mapping[str, float] | None = None
) -> AuditSummary:
    """Estimate from answers.

    Args:
        folder: address of the folder for the result.
        sample: the drawn sample.
        answers: right class of each reviewed row; not empty.
        shifted: shares of the classes corrected for label shift, where known.
    """
    census = _take_census(sample, answers)
    reviewed = [row for row in sample.rows if row.row_id in answers]
    names = [Counter(row.class_name for row in rows) for rows in (sample.rows, reviewed)]
    right = Counter(row.class_name for row in reviewed if answers[row.row_id] == row.class_name)
    found = Counter(answers[row.row_id] for row in reviewed)
    labelled = sum(sample.rows_by_class.values())
    by_class = {}
    for name, one in zip(sample.classes, census.classes, strict=True):
        share, precision, recall = one.share, one.precision, one.recall
        bounds, in_all = share or _UNKNOWN, census.rows if share else labelled
        low = max(found[name], math.floor(bounds.low * in_all))
        high = min(in_all - len(reviewed) + found[name], math.ceil(bounds.high * in_all))
        by_class[name] = AuditedClass(
            rows=sample.rows_by_class.get(name, 0),
            sampled=names[0][name],
            reviewed=names[1][name],
            right=right[name],
            count=None if share is None else min(max(round(share.value * census.rows), low), high),
            count_low=low,
            count_high=high,
            share=None if share is None else share.value,
            share_low=bounds.low,
            share_high=bounds.high,
            precision=None if precision is None else precision.value,
            precision_low=(precision or _UNKNOWN).low,
            precision_high=(precision or _UNKNOWN).high,
            recall=None if recall is None else recall.value,
            recall_low=(recall or _UNKNOWN).low,
            recall_high=(recall or _UNKNOWN).high,
            shifted_share=None if shifted is None else shifted.get(name),
        )
    pairs = Counter((row.class_name, answers[row.row_id]) for row in reviewed)
    widths = {name: one.share.width for name, one in zip(sample.classes, census.classes, strict=True) if one.share}
    widest = max(widths, key=lambda name: widths[name])
    return AuditSummary(
        folder=folder,
        model_id=sample.model_id,
        run_id=sample.run_id,
        labelled=labelled,
        sampled=len(sample.rows),
        reviewed=len(reviewed),
        right=sum(right.values()),
        none_of_them=sum(label is None for label in answers.values()),
        no_class=census.no_class.value,
        no_class_low=census.no_class.low,
        no_class_high=census.no_class.high,
        accuracy=census.accuracy.value,
        accuracy_low=census.accuracy.low,
        accuracy_high=census.accuracy.high,
        covered=census.rows / labelled,
        trust=census.trust,
        by_class=by_class,
        most_confused=[
            ConfusedPair(label, guess, count)
            for (guess, label), count in pairs.most_common()
            if label is not None and guess != label
        ],
        corrections=len(find_corrections(sample.rows, answers)),
        inside=sum(row.inside and answers[row.row_id] is not None for row in reviewed),
        widest=widest,
        width=widths[widest],
    )


_UNKNOWN = Estimate(0.0, 0.0, 1.0)


def _take_census(sample: Sample, answers: ReviewedLabels) -> Census:
    places = {name: index for index, name in enumerate(sample.classes)}
    rows = [row for row in sample.rows if row.row_id in answers]
    true = [answers[row.row_id] for row in rows]
    return take_census(
        np.array([sample.rows_by_class.get(name, 0) for name in sample.classes], np.int64),
        np.array([sample.confidence_by_class.get(name, 0.0) for name in sample.classes]),
        Reviewed(
            predicted=np.array([places[row.class_name] for row in rows], np.int64),
            probabilities=np.array([row.probability for row in rows]),
            true=np.array([NO_CLASS if name is None else places[name] for name in true], np.int64),
            inclusion=np.array([row.inclusion for row in rows]),
            drawn=np.bincount([places[row.class_name] for row in sample.rows], minlength=len(places)),
        ),
    )


def find_corrections(rows: Sequence[Drawn], answers: ReviewedLabels) -> dict[str, str]:
    """Return the right class of each reviewed file that has one, by address."""
    files = [(row.uri, answers.get(row.row_id)) for row in rows if not row.inside]
    return {_straighten(uri): label for uri, label in files if label is not None}


def _straighten(uri: str) -> str:
    """Resolve '..' in a local path, which a manifest may not contain."""
    return uri if storage.is_s3(uri) or ".." not in PurePosixPath(uri).parts else str(Path(uri).resolve())
