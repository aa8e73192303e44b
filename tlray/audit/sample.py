"""The record of a drawn sample, `sample.json`, against which answers are checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tlray import storage
from tlray.errors import OutputError
from tlray.storage.records import RecordError, dump_record, parse_record

NAME = "sample.json"
FORMAT: Literal[2] = 2

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
        round: number of the round that drew it, from 1.
        inclusion: probability with which the row is in the sample, all rounds taken together.
    """

    row_id: int
    uri: str
    class_name: str
    probability: float
    inside: bool
    round: int
    inclusion: float


@dataclass(frozen=True)
class Sample:
    """Rows drawn at random with known probabilities, in rounds.

    Attributes:
        format: version of this record.
        run_id, model_id, finished: of the labelling run, as in its receipt.
        rounds: rows requested by each round, those of the rounds before it included.
        seed: of the draw.
        classes: class names of the model, by index.
        rows_by_class: labelled rows of the archive by predicted class, without classes that have none.
        confidence_by_class: sum of their probabilities.
        rows: drawn, in order of round, class, then row id.
    """

    format: Literal[2]
    run_id: str
    model_id: str
    finished: str
    rounds: list[int]
    seed: int
    classes: list[str]
    rows_by_class: dict[str, int]
    confidence_by_class: dict[str, float]
    rows: list[Drawn]

    def list_round(self, number: int) -> list[Drawn]:
        """List the rows of one round."""
        return [row for row in self.rows if row.round == number]


def name_round(name: str, number: int) -> str:
    """Return the name of a round's file: sample.csv, sample-2.csv, sample-3.csv."""
    stem, _, ending = name.rpartition(".")
    return name if number == 1 else f"{stem}-{number}.{ending}"


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
    data = storage.get(address)
    try:
        return parse_record(Sample, data)
    except RecordError:
        if b'"format": 1,' in data[:40]:
            raise OutputError(
                f"{address} was drawn by an earlier version of tlray; give --output a new folder"
            ) from None
        raise OutputError(f"{address} is not the record of a tlray audit; give --output another folder") from None
