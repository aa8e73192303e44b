"""Count and list the labels that change between two outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.errors import OK

COLUMNS = ["status", "class_name", "probability"]
"""Columns that are compared."""

MAX_LISTED = 100_000
"""Changes kept for the list: of other labels the surest, and as many labels that are lost or gained."""

_SHRINK = 2


@dataclass(frozen=True)
class Change:
    """A row that the outputs label differently.

    Attributes:
        row_id: in the new output.
        uri: address of the image.
        old, new: class name, or the status of a row without a label.
        old_probability, new_probability: of the class; None without a label.
    """

    row_id: int
    uri: str
    old: str
    new: str
    old_probability: float | None
    new_probability: float | None


@dataclass
class Changes:
    """Counts over paired rows.

    Attributes:
        transitions: rows by old and new class, where both outputs have a label.
        lost: rows that only the old output labels, by the new one's status; `gained`: the reverse.
        unlabelled: rows that neither labels.
        differences: sum of the absolute differences of probability over rows with the same label.
        largest_difference: the largest of them.
    """

    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    gained: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    differences: float = 0.0
    largest_difference: float = 0.0
    _listed: list[pa.Table] = field(default_factory=list)
    _one_sided: list[pa.Table] = field(default_factory=list)

    def add(self, old: pa.Table, new: pa.Table) -> None:
        """Add paired rows with `row_id` and `COLUMNS`, and `uri` of the new ones."""
        old, new = (_decode(table) for table in (old, new))
        was, now = (table["status"].to_numpy(zero_copy_only=False) == OK for table in (old, new))
        theirs, ours = (table["class_name"].to_numpy(zero_copy_only=False) for table in (old, new))
        before, after = (table["probability"].to_numpy(zero_copy_only=False).astype(float) for table in (old, new))
        both = was & now
        same = both & (theirs == ours)
        self.transitions.update(zip(theirs[both].tolist(), ours[both].tolist(), strict=True))
        self.lost.update(new["status"].filter(pa.array(was & ~now)).to_pylist())
        self.gained.update(old["status"].filter(pa.array(~was & now)).to_pylist())
        self.unlabelled += int((~was & ~now).sum())
        moved = np.abs(before[same] - after[same])
        self.differences += float(moved.sum())
        self.largest_difference = max(self.largest_difference, float(moved.max(initial=0.0)))
        self._list(self._listed, old, new, both & ~same, np.fmin(before, after))
        self._list(self._one_sided, old, new, was != now, np.where(was, before, after))

    def _list(
        self,
        listed: list[pa.Table],
        old: pa.Table,
        new: pa.Table,
        changed: npt.NDArray[np.bool_],
        sureness: npt.NDArray[np.float64],
    ) -> None:
        if not changed.any():
            return
        mask = pa.array(changed)
        columns = {"row_id": new["row_id"].filter(mask), "uri": new["uri"].filter(mask)}
        for name, table in (("old", old), ("new", new)):
            kept = table.filter(mask)
            columns[f"{name}_status"] = kept["status"]
            columns[f"{name}_class_name"] = kept["class_name"]
            columns[f"{name}_probability"] = kept["probability"]
        columns["sureness"] = pa.array(sureness[changed])
        listed.append(pa.table(columns))
        if sum(table.num_rows for table in listed) > _SHRINK * MAX_LISTED:
            listed[:] = [_find_surest(listed)]

    @property
    def labelled_by_both(self) -> int:
        """Rows that both outputs label."""
        return self.transitions.total()

    @property
    def same(self) -> int:
        """Rows with the same label in both outputs."""
        return sum(count for (old, new), count in self.transitions.items() if old == new)

    @property
    def changed(self) -> int:
        """Rows whose label differs, or that one output labels alone."""
        return self.labelled_by_both - self.same + self.lost.total() + self.gained.total()

    def list_changes(self) -> pa.Table:
        """Return changed rows: those of which both outputs were surest first, then labels that are lost or gained."""
        lists = [_find_surest(listed).drop_columns("sureness") for listed in (self._listed, self._one_sided) if listed]
        return pa.concat_tables(lists) if lists else make_empty_list()


def _decode(table: pa.Table) -> pa.Table:
    """Return a table with texts in place of dictionaries."""
    for place, name in enumerate(table.column_names):
        if pa.types.is_dictionary(table.schema.field(name).type):
            table = table.set_column(place, name, table[name].cast(pa.string()))
    return table


def _find_surest(listed: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(listed)
    order = np.lexsort((table["row_id"].to_numpy(), -table["sureness"].to_numpy()))
    return table.take(pa.array(order[:MAX_LISTED]))


def make_empty_list() -> pa.Table:
    """Return a list without changes."""
    fields = [("row_id", pa.int64()), ("uri", pa.string())]
    for name in ("old", "new"):
        fields += [
            (f"{name}_status", pa.string()),
            (f"{name}_class_name", pa.string()),
            (f"{name}_probability", pa.float32()),
        ]
    return pa.schema(fields).empty_table()


def read_changes(table: pa.Table) -> list[Change]:
    """Return the rows of a list of changes."""
    return [
        Change(
            row_id=row["row_id"],
            uri=row["uri"],
            old=row["old_class_name"] if row["old_status"] == OK else row["old_status"],
            new=row["new_class_name"] if row["new_status"] == OK else row["new_status"],
            old_probability=row["old_probability"],
            new_probability=row["new_probability"],
        )
        for row in table.to_pylist()
    ]
