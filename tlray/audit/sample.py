"""The record of a drawn sample, `sample.json`, against which answers are checked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from tlray import storage
from tlray.errors import OutputError

NAME = "sample.json"
FORMAT = 1

ReviewedLabels = dict[int, str | None]
"""Right class of each reviewed row, by row id; None if none of the classes is right."""


@dataclass(frozen=True)
class Drawn:
    """One row to review.

    Attributes:
        row_id, uri: as in the labels.
        class_name: predicted class.
        probability: of that class.
        inside: whether it lies in an archive or table, so that it cannot be read by its address alone.
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

    format: int
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
    storage.put(storage.join(folder, NAME), (json.dumps(asdict(sample), indent=1, ensure_ascii=False) + "\n").encode())


def read_sample(folder: str) -> Sample | None:
    """Read the record of a folder's sample; None if it has none.

    Raises:
        OutputError: the file is not such a record.
    """
    address = storage.join(folder, NAME)
    if not storage.exists(address):
        return None
    try:
        fields = json.loads(storage.get(address))
        return Sample(**{**fields, "rows": [Drawn(**row) for row in fields["rows"]]})
    except (ValueError, TypeError, KeyError):
        raise OutputError(f"{address} is not the record of a tlray audit; give --output another folder") from None
