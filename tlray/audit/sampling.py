"""Draw labelled rows with known probabilities: every row has a chance, uncertain labels and rare classes a larger one.

A row's size is proportional to its probability of being drawn. Its key is a uniform random number divided by its size;
the rows with the smallest keys are the sample, and the next key tells the probability with which each of them was
drawn: priority sampling (Duffield, Lund and Thorup 2007, Journal of the ACM 54). A further round
adds rows to a sample, and one pass over the labels, in bounded memory, draws it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

MIN_ROWS = 5
"""Rows of each predicted class that are about expected, where it has them; at most half of the sample for all."""

UNIFORM = 0.4
"""Share of a sample that is drawn whatever the labels' probabilities, which may be wrong."""

_SHRINK_ROWS = 65_536


class Totals:
    """Sums over an archive by predicted class.

    Attributes:
        counts: int64 `[C]`, rows.
        confidence: float64 `[C]`, sum of the rows' probabilities p of that class.
        doubt: float64 `[C]`, sum of sqrt(p (1 - p)), the standard deviation of whether a label is right.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = np.zeros(num_classes, np.int64)
        self.confidence = np.zeros(num_classes)
        self.doubt = np.zeros(num_classes)

    def add(self, labels: Indices, probabilities: Floats) -> None:
        """Add rows."""
        size = len(self.counts)
        self.counts += np.bincount(labels, minlength=size)
        self.confidence += np.bincount(labels, probabilities, size)
        self.doubt += np.bincount(labels, _compute_doubt(probabilities), size)


class Sizes:
    """The sizes of rows.

    Args:
        totals: of the archive; at least one row.
        wanted: rows of the first sample, by which classes with few rows are enlarged.
    """

    def __init__(self, totals: Totals, wanted: int) -> None:
        rows = totals.counts.sum()
        self._usual = totals.doubt.sum() / rows
        sizes = UNIFORM * totals.counts + (1 - UNIFORM) * totals.doubt / max(self._usual, 1e-12)
        least = np.minimum(totals.counts, min(MIN_ROWS, wanted / (2 * np.count_nonzero(totals.counts))))
        self._scale = np.maximum(1.0, least * sizes.sum() / np.maximum(wanted * sizes, 1e-12))

    def measure(self, labels: Indices, probabilities: Floats) -> Floats:
        """Return the size of each row."""
        doubt = _compute_doubt(probabilities) / max(self._usual, 1e-12)
        sizes: Floats = self._scale[labels] * (UNIFORM + (1 - UNIFORM) * doubt)
        return sizes


def _compute_doubt(probabilities: Floats) -> Floats:
    doubt: Floats = np.sqrt(np.clip(probabilities * (1 - probabilities), 0.0, None))
    return doubt


@dataclass(frozen=True)
class DrawnRows:
    """A sample.

    Attributes:
        row_ids: int64 `[n]`, in the order in which samples of growing size take them.
        inclusion: float64 `[n]`, probability of each row to be among the n.
    """

    row_ids: Indices
    inclusion: Floats


class PrioritySample:
    """The rows with the smallest keys.

    Args:
        wanted: n, rows to draw.
        seed: of the keys, together with the first row id of the part.
    """

    def __init__(self, wanted: int, seed: int) -> None:
        self._wanted = wanted
        self._seed = seed
        self._kept: list[tuple[Floats, Indices, Floats]] = []

    def add(self, row_ids: Indices, labelled: npt.NDArray[np.bool_], sizes: Floats) -> None:
        """Take the rows of a part, `labelled` of which have the `sizes`."""
        if not labelled.any():
            return
        uniform = 1 - np.random.default_rng([self._seed, int(row_ids[0])]).random(len(row_ids))  # above 0
        self._kept.append((uniform[labelled] / sizes, row_ids[labelled], sizes))
        if sum(len(keys) for keys, _, _ in self._kept) > max(_SHRINK_ROWS, 4 * self._wanted):
            self._kept = [self._find_smallest()]

    def take(self) -> DrawnRows:
        """Return the sample; all rows where there are no more than wanted."""
        keys, row_ids, sizes = self._find_smallest()
        if len(keys) <= self._wanted:
            return DrawnRows(row_ids, np.ones(len(keys)))
        inclusion = np.minimum(1.0, sizes[:-1] * keys[-1])
        return DrawnRows(row_ids[:-1], inclusion)

    def _find_smallest(self) -> tuple[Floats, Indices, Floats]:
        """Return one row more than wanted, in order of their keys."""
        keys, row_ids, sizes = (np.concatenate(pieces) for pieces in zip(*self._kept, strict=True))
        order = np.lexsort((row_ids, keys))[: self._wanted + 1]
        return keys[order], row_ids[order], sizes[order]
