"""`tlray audit OUTPUT --answers FILE`: estimate an archive's accuracy from its reviewed sample."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from tlray import storage
from tlray.audit import form
from tlray.audit.draw import find_folder
from tlray.audit.sample import Drawn, ReviewedLabels, Sample, read_sample
from tlray.config import AuditConfig
from tlray.console import now
from tlray.errors import ConfigError, DataError, FetchError, OutputError
from tlray.metrics.classification import ConfusedPair
from tlray.metrics.intervals import wilson
from tlray.sources.labelled import URI
from tlray.sources.shards import LABEL

RESULT = "audit.json"
CORRECTIONS = "corrections.csv"
FORMAT = 1


@dataclass(frozen=True)
class Stratum:
    """One predicted class.

    Attributes:
        rows: labelled rows of the archive.
        sampled, reviewed, right: rows of them that were drawn, reviewed, and found right.
        precision: share of the reviewed rows that is right; None if none was reviewed.
        precision_low, precision_high: Wilson's 95% interval; (0, 1) if none was reviewed.
    """

    rows: int
    sampled: int
    reviewed: int
    right: int
    precision: float | None
    precision_low: float
    precision_high: float


@dataclass(frozen=True)
class AuditSummary:
    """Estimated quality of an archive's labels.

    Attributes:
        folder: address of the folder with audit.json and corrections.csv.
        model_id, run_id: of the labels.
        labelled: rows of the archive with a label.
        sampled, reviewed, right: rows that were drawn, reviewed, and found right.
        none_of_them: reviewed rows of none of the classes, or of one that nobody could tell.
        accuracy: estimated share of the archive's labels that is right.
        accuracy_low, accuracy_high: its 95% interval.
        covered: share of the labelled rows whose class was reviewed; the estimate is for these.
        by_class: by predicted class.
        most_confused: reviewed rows by right (true) and predicted class where these differ, the most frequent first.
        corrections: rows written as a training list.
        inside: reviewed rows left out of that list, since they lie in a table or packed archive.
    """

    folder: str
    model_id: str
    run_id: str
    labelled: int
    sampled: int
    reviewed: int
    right: int
    none_of_them: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    covered: float
    by_class: dict[str, Stratum]
    most_confused: list[ConfusedPair]
    corrections: int
    inside: int


def measure(config: AuditConfig) -> AuditSummary:
    """Measure a filled-in sample; write the result and the corrected labels into its folder.

    Raises:
        UsageError: no sample was drawn, or the answers cannot be used.
    """
    config.check()
    if config.answers is None:
        raise ConfigError(["--answers takes the filled CSV; got nothing"])
    storage.configure(config.s3_options)
    folder = find_folder(config)
    sample = read_sample(folder)
    if sample is None:
        raise OutputError(f"{folder} holds no sample; tlray audit {config.labels} --sample N draws one")
    address = storage.resolve(config.answers)
    try:
        data = storage.get(address)
    except FetchError as error:
        raise DataError(f"--answers {address} cannot be read: {error}") from None
    answers = form.read_form(data, address, sample)
    summary = summarize(folder, sample, answers)
    result = {"format": FORMAT, "measured": now(), **asdict(summary)}
    del result["folder"]
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    storage.put(storage.join(folder, RESULT), text.encode())
    storage.put(storage.join(folder, CORRECTIONS), write_corrections(find_corrections(sample.rows, answers)))
    return summary


def summarize(folder: str, sample: Sample, answers: ReviewedLabels) -> AuditSummary:
    """Count answers.

    Args:
        folder: address of the folder for the result.
        sample: the drawn sample.
        answers: right class of each reviewed row; not empty.
    """
    by_class = {}
    for name, in_archive in sample.rows_by_class.items():
        drawn = [row.row_id for row in sample.rows if row.class_name == name]
        reviewed = [answers[row_id] for row_id in drawn if row_id in answers]
        right = sum(label == name for label in reviewed)
        share = right / len(reviewed) if reviewed else None
        by_class[name] = Stratum(in_archive, len(drawn), len(reviewed), right, share, *wilson(right, len(reviewed)))
    strata = [(one.rows, one.reviewed, one.right) for one in by_class.values() if one.reviewed]
    labelled = sum(sample.rows_by_class.values())
    predicted = {row.row_id: row.class_name for row in sample.rows}
    pairs = Counter((predicted[row_id], label) for row_id, label in answers.items() if label is not None)
    accuracy, low, high = estimate_share(strata)
    return AuditSummary(
        folder=folder,
        model_id=sample.model_id,
        run_id=sample.run_id,
        labelled=labelled,
        sampled=len(sample.rows),
        reviewed=len(answers),
        right=sum(one.right for one in by_class.values()),
        none_of_them=sum(label is None for label in answers.values()),
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        covered=sum(rows for rows, _, _ in strata) / labelled,
        by_class=by_class,
        most_confused=[
            ConfusedPair(label, guess, count) for (guess, label), count in pairs.most_common() if guess != label
        ],
        corrections=len(find_corrections(sample.rows, answers)),
        inside=sum(row.inside and answers.get(row.row_id) is not None for row in sample.rows),
    )


def estimate_share(strata: Sequence[tuple[int, int, int]]) -> tuple[float, float, float]:
    """Estimate the share of right rows over all strata, with its 95% interval.

    The estimate weights each stratum's share by its rows (Cochran 1977, Sampling Techniques, chapter 5). The interval
    is Wilson's on the effective sample size, p (1 - p) / variance, as Dean and Pagano 2015 (Journal of Survey
    Statistics and Methodology 3, 484-503) define it for survey samples. For that size alone, each stratum's share is
    (right + 1) / (reviewed + 2), since a stratum of few rows that are all right would have no variance. No finite
    population correction is applied, so the interval is too wide for a stratum that was reviewed in large part.

    Args:
        strata: rows, reviewed rows (above 0) and right rows of each.
    """
    total = sum(rows for rows, _, _ in strata)
    share = smooth = variance = 0.0
    for rows, reviewed, right in strata:
        weight, guess = rows / total, (right + 1) / (reviewed + 2)
        share += weight * right / reviewed
        smooth += weight * guess
        variance += weight**2 * guess * (1 - guess) / reviewed
    share = min(1.0, share)  # rounding may bring the weights above 1
    size = smooth * (1 - smooth) / variance
    return share, *wilson(share * size, size)


def find_corrections(rows: Sequence[Drawn], answers: ReviewedLabels) -> dict[str, str]:
    """Return the right class of each reviewed file that has one, by address."""
    files = [(row.uri, answers.get(row.row_id)) for row in rows if not row.inside]
    return {_straighten(uri): label for uri, label in files if label is not None}


def write_corrections(corrections: dict[str, str]) -> bytes:
    """Return a list for `train --data` as CSV; its cells are not disarmed, since no spreadsheet reads it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((URI, LABEL))
    writer.writerows(corrections.items())
    return text.getvalue().encode()


def _straighten(uri: str) -> str:
    """Resolve '..' in a local path, which a manifest may not contain."""
    return uri if storage.is_s3(uri) or ".." not in PurePosixPath(uri).parts else str(Path(uri).resolve())
