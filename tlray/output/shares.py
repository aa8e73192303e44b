"""The classes' shares in an output as labels count them, and corrected for label shift: `_shares.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tlray import storage
from tlray.storage.records import RecordError, dump_record, parse_record

NAME = "_shares.json"
FORMAT: Literal[1] = 1


@dataclass(frozen=True)
class Shares:
    """Shares of the labelled rows by class name.

    Attributes:
        format: version of this record.
        run_id, model_id: of the labels.
        rows: labelled rows that were counted; of a large output a sample, in parts spread evenly over it.
        labels: shares of the rows that carry each label.
        corrected: estimated shares of the rows that belong to each class, see `tlray.metrics.label_shift`; None where
            the classes are distributed as among the validation images, or it cannot be told.
    """

    format: Literal[1]
    run_id: str
    model_id: str
    rows: int
    labels: dict[str, float]
    corrected: dict[str, float] | None


def write_shares(output: str, shares: Shares) -> None:
    """Write the record, whole or not at all."""
    storage.put(storage.join(output, NAME), dump_record(shares))


def read_shares(output: str, run_id: str) -> Shares | None:
    """Read the record of a run; None where there is none."""
    address = storage.join(output, NAME)
    if not storage.exists(address):
        return None
    try:
        shares = parse_record(Shares, storage.get(address))
    except RecordError:
        return None
    return shares if shares.run_id == run_id else None
