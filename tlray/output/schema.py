"""The columns of the labels, and their tables as the bytes of Parquet files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

PREDICTION_FIELDS = [
    pa.field("row_id", pa.int64(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("predicted_index", pa.int32()),
    pa.field("class_name", pa.string()),
    pa.field("probability", pa.float32()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("needs_review", pa.bool_()),
    pa.field("ood_score", pa.float32()),
    pa.field("retries", pa.int32(), nullable=False),
]
"""An engine's prediction for a row; null where `status` is not "ok", except width and height.

`needs_review` is also null without `--min-probability` and `--max-ood`, `ood_score` if the bundle has none. `retries`,
the number of repeated requests, is only summed in the receipt.
"""

TOP_FIELDS = [
    pa.field("top_indices", pa.list_(pa.int32())),
    pa.field("top_class_names", pa.list_(pa.string())),
    pa.field("top_probabilities", pa.list_(pa.float32())),
]
"""Columns with `top_k`: the most probable classes, including the first."""

LABEL_FIELDS = [
    pa.field("row_id", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    *PREDICTION_FIELDS[1:-3],
    pa.field("model_id", pa.string(), nullable=False),
    *PREDICTION_FIELDS[-3:-1],
]
"""Columns of the labels of every output."""

EMBEDDING = "embedding"

MODEL_ID_KEY = b"tlray.model_id"
"""Key of the model id in the metadata of the files."""


def list_extra_fields(top_k: int, embedding_size: int) -> list[pa.Field]:
    """Return the optional columns: `TOP_FIELDS`, and pooled features as a list of fixed size."""
    embedding = pa.field(EMBEDDING, pa.list_(pa.float32(), embedding_size))
    return [*(TOP_FIELDS if top_k else []), *([embedding] if embedding_size else [])]


PREDICTED_COLUMNS = {field.name for field in [*PREDICTION_FIELDS[:-1], *TOP_FIELDS]} | {EMBEDDING}
"""Columns of the labels that come from an engine."""


@dataclass(frozen=True)
class RequestedColumns:
    """The columns to predict besides the most probable class.

    Attributes:
        top_k: number of most probable classes to list; 0 for none.
        embedding_size: size D of the pooled features; 0 for none.
        min_probabilities: float32 `[C]`, probability of each class below which a label needs a review; None for none.
        max_ood: `ood_score` above which a label needs a review; None for none.
    """

    top_k: int = 0
    embedding_size: int = 0
    min_probabilities: npt.NDArray[np.float32] | None = None
    max_ood: float | None = None

    @property
    def extra_fields(self) -> list[pa.Field]:
        """Optional columns of the predictions."""
        return list_extra_fields(self.top_k, self.embedding_size)

    @property
    def fields(self) -> list[pa.Field]:
        """All columns of the predictions."""
        return PREDICTION_FIELDS + self.extra_fields


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table in the bytes of a Parquet file.

    Arrow's own threads would outlive the call and hold the bytes; releasing them while Python exits aborts the process.

    Raises:
        ArrowException, OSError: the bytes are damaged, or not Parquet.
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)
