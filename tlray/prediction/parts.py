"""The Parquet parts of a labelling run: a fixed range of row ids each, written once whole, found again by name.

A part's name follows from the rows it holds, so a late or repeated write overwrites and never doubles.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.bundle import Bundle
from tlray.errors import FetchError
from tlray.prediction.schema import LABEL_FIELDS, TOP_FIELDS

FOLDER = "labels"

_NAME = re.compile(r"part-(\d{12})-(\d{12})\.parquet")


@dataclass(frozen=True)
class Part:
    """One written part.

    Attributes:
        name: file name below `labels/`.
        rows: how many it holds.
        sha256: of the file.
        failed_by_code: rows whose status is not "ok", by status.
    """

    name: str
    rows: int
    sha256: str
    failed_by_code: dict[str, int]


class PartWriter:
    """Collects answers in any order and writes each part when its last row has arrived."""

    def __init__(
        self, output: str, plan: pa.Table, rows_per_part: int, bundle: Bundle, run_id: str, top_k: int
    ) -> None:
        self._output = output
        self._plan = plan
        self._rows_per_part = rows_per_part
        self._model_id = bundle.model_id
        fields = LABEL_FIELDS + (TOP_FIELDS if top_k else [])
        metadata = {
            "tlray.model_id": bundle.model_id,
            "tlray.classes": json.dumps(bundle.classes, ensure_ascii=False),
            "tlray.preprocessing": bundle.preprocessing_fingerprint,
            "tlray.run_id": run_id,
        }
        self._schema = pa.schema(fields, metadata=metadata)
        self._waiting: dict[int, list[pa.Table]] = {}

    def add(self, answers: pa.Table) -> Iterator[Part]:
        """Take answers; yields every part that they complete, once it is written."""
        numbers = answers["row_id"].to_numpy() // self._rows_per_part
        for number in np.unique(numbers):
            pieces = self._waiting.setdefault(int(number), [])
            pieces.append(answers.filter(pa.array(numbers == number)))
            if sum(piece.num_rows for piece in pieces) == self._get_range(int(number))[1]:
                yield self._write(int(number), pa.concat_tables(self._waiting.pop(int(number))))

    def _get_range(self, number: int) -> tuple[int, int]:
        """First row id and number of rows of a part."""
        first = number * self._rows_per_part
        return first, min(self._rows_per_part, self._plan.num_rows - first)

    def _write(self, number: int, answers: pa.Table) -> Part:
        first, count = self._get_range(number)
        answers = answers.sort_by("row_id")
        planned = self._plan.slice(first, count)
        columns = {name: answers[name] for name in answers.column_names}
        columns |= {
            "uri": planned["uri"],
            "model_id": pa.array([self._model_id] * count, pa.string()),
            "needs_review": pa.nulls(count, pa.bool_()),
            "oddness": pa.nulls(count, pa.float32()),
        }
        table = pa.table([columns[field.name] for field in self._schema], schema=self._schema)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue()
        name = f"part-{first:012d}-{first + count - 1:012d}.parquet"
        storage.put(storage.join(self._output, FOLDER, name), data)
        return _describe(name, data, table)


def find_parts(output: str, bundle: Bundle) -> list[Part]:
    """Every valid part that an earlier run of the same job left; others don't count and will be written again."""
    folder = storage.join(output, FOLDER)
    if not storage.has_content(folder):
        return []
    parts = []
    for entry in storage.list_files(folder):
        match = _NAME.fullmatch(entry.name)
        if match is None:
            continue
        try:
            data = storage.get(entry.uri)
            file = pq.ParquetFile(io.BytesIO(data))
            table = file.read(columns=["row_id", "status"])
        except (FetchError, pa.ArrowException, OSError):
            continue
        metadata = file.schema_arrow.metadata or {}
        first, last = int(match[1]), int(match[2])
        expected = np.arange(first, last + 1)
        if metadata.get(b"tlray.model_id") == bundle.model_id.encode() and np.array_equal(
            table["row_id"].to_numpy(), expected
        ):
            parts.append(_describe(entry.name, data, table))
    return parts


def get_row_ids(part: Part) -> range:
    """The row ids that a part holds, from its name."""
    match = _NAME.fullmatch(part.name)
    assert match is not None
    return range(int(match[1]), int(match[2]) + 1)


def _describe(name: str, data: bytes, table: pa.Table) -> Part:
    failed: dict[str, int] = {}
    for status in table["status"].to_pylist():
        if status != "ok":
            failed[status] = failed.get(status, 0) + 1
    return Part(name, table.num_rows, hashlib.sha256(data).hexdigest(), failed)
