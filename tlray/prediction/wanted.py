"""What engines are to answer for a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.prediction.schema import ANSWER_FIELDS, list_extra_fields


@dataclass(frozen=True)
class Wanted:
    """What is to be answered beside the most probable class.

    Attributes:
        top_k: how many classes to list beside the first; 0 for none.
        embedding_size: D, to have pooled features too; 0 for none.
        least: float32 `[C]`, by class: labels below this probability need a review; None to mark none.
    """

    top_k: int = 0
    embedding_size: int = 0
    least: npt.NDArray[np.float32] | None = None

    @property
    def extra_fields(self) -> list[pa.Field]:
        """Of the answers, beside those that every output has."""
        return list_extra_fields(self.top_k, self.embedding_size)

    @property
    def fields(self) -> list[pa.Field]:
        """Of the answers."""
        return ANSWER_FIELDS + self.extra_fields
