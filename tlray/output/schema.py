"""The columns of the labels, in one place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
"""What the engine answers for a row; null where `status` is not "ok", but for width and height.

`needs_review` is null too where no `--min-probability` was asked for, `ood_score` where the bundle has nothing to
compare with. `retries`, how often its bytes were asked for again, goes into the receipt alone.
"""

TOP_FIELDS = [
    pa.field("top_indices", pa.list_(pa.int32())),
    pa.field("top_class_names", pa.list_(pa.string())),
    pa.field("top_probabilities", pa.list_(pa.float32())),
]
"""With `top_k`: the most probable classes, the first one included."""

LABEL_FIELDS = [
    pa.field("row_id", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    *PREDICTION_FIELDS[1:-3],
    pa.field("model_id", pa.string(), nullable=False),
    *PREDICTION_FIELDS[-3:-1],
]
"""Columns of every output's labels; the answers are null where `status` is not "ok"."""

EMBEDDING = "embedding"


def list_extra_fields(top_k: int, embedding_size: int) -> list[pa.Field]:
    """Columns of answers that were asked for on top: `TOP_FIELDS`, and pooled features as a list of fixed size."""
    embedding = pa.field(EMBEDDING, pa.list_(pa.float32(), embedding_size))
    return [*(TOP_FIELDS if top_k else []), *([embedding] if embedding_size else [])]


PREDICTED_COLUMNS = {field.name for field in [*PREDICTION_FIELDS[:-1], *TOP_FIELDS]} | {EMBEDDING}
"""Columns of the labels that come from engines."""


@dataclass(frozen=True)
class RequestedColumns:
    """What is to be answered beside the most probable class.

    Attributes:
        top_k: how many classes to list beside the first; 0 for none.
        embedding_size: D, to have pooled features too; 0 for none.
        min_probabilities: float32 `[C]`, by class: labels below this probability need a review; None to mark none.
    """

    top_k: int = 0
    embedding_size: int = 0
    min_probabilities: npt.NDArray[np.float32] | None = None

    @property
    def extra_fields(self) -> list[pa.Field]:
        """Of the answers, beside those that every output has."""
        return list_extra_fields(self.top_k, self.embedding_size)

    @property
    def fields(self) -> list[pa.Field]:
        """Of the answers."""
        return PREDICTION_FIELDS + self.extra_fields
