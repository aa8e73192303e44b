"""The receipt of a finished prediction run, written last: its counts, parts, options and times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tlray import storage
from tlray.errors import OutputError
from tlray.output.parts import Part, get_row_ids
from tlray.storage.records import Json, RecordError, dump_record, parse_record

NAME = "_receipt.json"
FORMAT: Literal[1] = 1


@dataclass(frozen=True)
class PartRecord:
    """A part: file name below `labels/`, number of rows, checksum."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class UpdateRecord:
    """Numbers of rows in a run with `--update-from`.

    Attributes:
        earlier: address of the earlier output.
        new: rows that the earlier output lacks.
        changed: rows of both whose object or model differs, or cannot be compared.
        kept: rows copied from the earlier output.
        vanished: rows that only the earlier output has.
    """

    earlier: str
    new: int = 0
    changed: int = 0
    kept: int = 0
    vanished: int = 0

    def __str__(self) -> str:
        return f"{self.kept:,} kept, {self.new:,} new, {self.changed:,} changed, {self.vanished:,} vanished"


@dataclass(frozen=True)
class ProbeOutcome:
    """Images/s that `tlray plan --probe` estimated, and the steady rate of the run."""

    estimated: float
    measured: float


@dataclass(frozen=True)
class Receipt:
    """Proof of a finished run: every planned row is in exactly one part.

    Attributes:
        format: version of this record.
        planned, labelled, failed: numbers of rows; planned = labelled + failed.
        failed_by_code: failed rows by status.
        excluded: addresses left out of the plan.
        retries: requests repeated by the last run of the job, as are the rates, `stages` and `engines`.
        update: rows of a run with `--update-from`, else None.
        config: the options that decide the labels.
        started, finished: UTC, ISO 8601.
        images_per_s: rate including start-up.
        images_per_s_steady: rate from the first labels to the last.
        first_label_s: seconds until the first labels; None if nothing was left to predict.
        stages: seconds by stage.
        needs_review: labels below `--min-probability` or above `--max-ood`; None without these options.
        engines: number of engines by compute type.
        probe: None without an earlier probe.
    """

    format: Literal[1]
    run_id: str
    model_id: str
    planned: int
    labelled: int
    failed: int
    failed_by_code: dict[str, int]
    excluded: int
    retries: int
    update: UpdateRecord | None
    parts: list[PartRecord]
    config: dict[str, Json]
    started: str
    finished: str
    images_per_s: float
    images_per_s_steady: float
    first_label_s: float | None
    stages: dict[str, float]
    versions: dict[str, str]
    needs_review: int | None = None
    engines: dict[str, int] = field(default_factory=dict)
    probe: ProbeOutcome | None = None


def count_failed(parts: Sequence[Part]) -> dict[str, int]:
    """Return the number of failed rows by code, sorted."""
    failed: Counter[str] = Counter()
    for part in parts:
        failed.update(part.failed_by_code)
    return dict(sorted(failed.items()))


def write_receipt(output: str, receipt: Receipt) -> None:
    """Write a receipt atomically."""
    storage.put(storage.join(output, NAME), dump_record(receipt))


def read_receipt(output: str) -> Receipt | None:
    """Return the receipt of a finished run, None if there is none.

    Raises:
        OutputError: the receipt is damaged.
    """
    address = storage.join(output, NAME)
    if not storage.exists(address):
        return None
    try:
        receipt = parse_record(Receipt, storage.get(address))
    except RecordError as error:
        raise OutputError(f"{address} is damaged: {error}; it was written by another tlray, or edited") from None
    for part in receipt.parts:
        if len(get_row_ids(part.name)) != part.rows or part.rows < 1:  # a name that leads elsewhere has no rows
            raise OutputError(f"{address} is damaged: {part.name!r} is no part of {part.rows:,} rows; it was edited")
    return receipt
