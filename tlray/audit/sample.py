"""The record of a drawn sample, `sample.json`, against which answers are checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tlray import storage
from tlray.errors import OutputError
from tlray.storage.records import RecordError, dump_record, parse_record

NAME = "sample.json"
FORMAT: Literal[1] = 1

ReviewedLabels = dict[int, str | None]
"""Right class of each reviewed row, by row id; None if none of the classes is right."""


@dataclass(frozen=True)
class Drawn:
    """One row to review.

    Attributes:
        row_id, uri: as in the labels.
        class_name: predicted class.
        probability: of that class.
        inside: whether it lies in a table or packed archive, so that no list for training can name it.
    """

    row_id: int
    uri: str
    class_name: str
    probability: float
    inside: bool


@dataclass(frozen=True)
class Sample:
    """A stratified sample: simple random within each predicted class.

    Attributes:
        format: version of this record.
        run_id, model_id, finished: of the labelling run, as in its receipt.
        asked: rows requested.
        seed: of the draw.
        classes: class names of the model, by index.
        rows_by_class: labelled rows of the archive by predicted class, without classes that have none.
        rows: drawn, in order of class, then row id.
    """

    format: Literal[1]
    run_id: str
    model_id: str
    finished: str
    asked: int
    seed: int
    classes: list[str]
    rows_by_class: dict[str, int]
    rows: list[Drawn]


def write_sample(folder: str, sample: Sample) -> None:
    """Write the record, whole or not at all."""
    storage.put(storage.join(folder, NAME), dump_record(sample))


def read_sample(folder: str) -> Sample | None:
    """Read the record of a folder's sample; None if it has none.

    Raises:
        OutputError: the file is not such a record.
    """
    address = storage.join(folder, NAME)
    if not storage.exists(address):
        return None
    try:
        return parse_record(Sample, storage.get(address))
    except RecordError:
        raise OutputError(f"{address} is not the record of a tlray audit; give --output another folder") from None
