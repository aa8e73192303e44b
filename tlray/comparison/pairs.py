"""Find the rows that two outputs have in common, by their addresses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.output.reader import LabelsReader, hash_addresses

Indices = npt.NDArray[np.int64]

_MAX_EXAMPLES = 8


@dataclass(frozen=True)
class Pairs:
    """Rows of an earlier and a later output with the same address; of equal addresses, the first with the first.

    Attributes:
        old, new: int64 `[P]`, row ids; `new` ascending.
        only_old, only_new: int64, row ids of the rows that one output has alone, ascending.
    """

    old: Indices
    new: Indices
    only_old: Indices
    only_new: Indices


def pair_rows(old: LabelsReader, new: LabelsReader) -> Pairs:
    """Pair the rows of two outputs, with 24 bytes a row in memory where both list the same inputs, else about 100.

    Raises:
        OutputError: a part cannot be read.
    """
    theirs, ours = (_hash_all(reader) for reader in (old, new))
    if np.array_equal(theirs, ours):
        both, none = np.arange(len(ours)), np.zeros(0, np.int64)
        return Pairs(both, both, none, none)
    _, old_rows, new_rows = np.intersect1d(
        _number_repeats(theirs), _number_repeats(ours), assume_unique=True, return_indices=True
    )
    order = np.argsort(new_rows)
    old_rows, new_rows = old_rows[order].astype(np.int64), new_rows[order].astype(np.int64)
    return Pairs(
        old_rows,
        new_rows,
        np.setdiff1d(np.arange(len(theirs)), old_rows),
        np.setdiff1d(np.arange(len(ours)), new_rows),
    )


def read_pairs(
    old: LabelsReader, new: LabelsReader, pairs: Pairs, columns: list[str], more: list[str]
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield some columns of paired rows, and `more` of the new ones, a part of the new output at a time.

    Where the outputs list their inputs in another order, the columns of the old one are held in memory.

    Raises:
        OutputError: a part cannot be read.
    """
    in_order = bool((np.diff(pairs.old) > 0).all())
    held = None if in_order else _hold(old, ["row_id", *columns])
    for table in new.read(["row_id", *columns, *more]):
        if not table.num_rows:
            continue
        first = table["row_id"][0].as_py()
        start, stop = np.searchsorted(pairs.new, [first, first + table.num_rows])
        if start < stop:
            ours = table.take(pa.array(pairs.new[start:stop] - first))
            rows = pairs.old[start:stop]
            yield old.take(rows, ["row_id", *columns]) if held is None else held.take(pa.array(rows)), ours


def _hold(reader: LabelsReader, columns: list[str]) -> pa.Table:
    """Return some columns of all rows, their texts as numbers of a dictionary."""
    tables = []
    for table in reader.read(columns):
        for place, name in enumerate(columns):
            if pa.types.is_string(table.schema.field(name).type):
                table = table.set_column(place, name, table[name].dictionary_encode())
        tables.append(table)
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def list_examples(reader: LabelsReader, row_ids: Indices) -> list[str]:
    """List the addresses of the first few rows."""
    addresses: list[str] = reader.take(row_ids[:_MAX_EXAMPLES], ["uri"])["uri"].to_pylist()
    return addresses


def _hash_all(reader: LabelsReader) -> Indices:
    return np.concatenate([np.zeros(0, np.int64), *(hash_addresses(table) for table in reader.read(["uri"]))])


def _number_repeats(hashes: Indices) -> Indices:
    """Return hashes of address and number of its repeat, so that all are different."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1 if len(ordered) else 0))
    lengths = np.diff(np.append(starts, len(ordered)))
    repeats = np.empty(len(hashes), np.int64)
    repeats[order] = np.arange(len(hashes)) - np.repeat(starts, lengths)
    return hashes + repeats * np.int64(0x1E3779B97F4A7C15)  # wraps around
