"""A set of row ids as a bitmap: 125 MB for a billion rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class RowSet:
    """Row ids from 0 to `num_rows - 1`, one bit each."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._bits = np.zeros((num_rows + 7) // 8, np.uint8)

    def add(self, row_ids: npt.NDArray[np.int64]) -> None:
        """Add row ids."""
        np.bitwise_or.at(self._bits, row_ids >> 3, (128 >> (row_ids & 7)).astype(np.uint8))

    def update(self, others: RowSet) -> None:
        """Add the rows of another set of the same range."""
        np.bitwise_or(self._bits, others._bits, out=self._bits)

    def mask_missing(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Return a mask of the rows from `first` on that are not in the set; `count` is cut at `num_rows`."""
        stop = min(first + count, self.num_rows)
        start = first & ~7
        here = np.unpackbits(self._bits[start >> 3 : (stop + 7) >> 3])[first - start : stop - start]
        return np.equal(here, 0)

    def find_missing(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Return the row ids from `first` to `first + count - 1` that are not in the set, ascending."""
        return np.flatnonzero(self.mask_missing(first, count)).astype(np.int64) + first

    def __len__(self) -> int:
        return int(np.bitwise_count(self._bits).sum())

    def invert(self) -> None:
        """Replace the set by its complement."""
        self._bits = ~self._bits
        if self.num_rows % 8:
            self._bits[-1] &= 256 - (1 << (8 - self.num_rows % 8))

    def copy(self) -> RowSet:
        """Return a copy."""
        twin = RowSet(self.num_rows)
        twin._bits[:] = self._bits
        return twin
