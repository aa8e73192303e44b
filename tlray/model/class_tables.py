"""Metrics and thresholds by class as Parquet tables: `bundle.json` stays small with thousands of classes.

metrics/classes.parquet      one row a class and role: precision, recall, F1, their intervals, images
metrics/confusion.parquet    one row a pair of true and predicted class that occurs, by role
metrics/thresholds.parquet   one row a class: the probability above which its labels reach the target precision, or how
                             many more images would do
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tlray.metrics.classification import ClassMeasurement, Measurement
from tlray.metrics.thresholds import Needed, Threshold
from tlray.model.manifest import Manifest
from tlray.storage.records import Json, RecordError, build_record

if TYPE_CHECKING:
    import pyarrow as pa

CLASSES = "metrics/classes.parquet"
CONFUSION = "metrics/confusion.parquet"
THRESHOLDS = "metrics/thresholds.parquet"

_ROLES = ("validation", "test")
_MAX_PAIRS = 5_000_000
_TYPES = {"float": "float64", "int": "int64"}
_INDICES = {"true_index": "int32", "predicted_index": "int32", "images": "int64"}
_NAMES = {"class_index": "int32", "class_name": "string"}


def _list_types(kind: type[ClassMeasurement | Threshold]) -> dict[str, str]:
    return {field.name: _TYPES[str(field.type)] for field in fields(kind)}


_CLASSES = {"role": "string", **_NAMES, **_list_types(ClassMeasurement)}
_CONFUSION = {"role": "string", **_INDICES}
_THRESHOLDS = {**_NAMES, "pooled": "bool", "needed": "int64", "one_in": "int64", **_list_types(Threshold)}


def write_class_tables(manifest: Manifest) -> dict[str, bytes]:
    """Return the tables by name of a manifest that holds everything; none if nothing was measured."""
    classes, measured = manifest.classes, dict(manifest.metrics.list_measured())
    tables = {}
    if measured:
        rows: list[dict[str, Json]] = [
            {"role": role, "class_index": index, "class_name": name, **asdict(one.by_class[name])}
            for role, one in measured.items()
            for index, name in enumerate(classes)
        ]
        tables[CLASSES] = _dump(rows, _CLASSES)
        rows = [
            {"role": role, **dict(zip(_INDICES, pair, strict=True))}
            for role, one in measured.items()
            for pair in _list_most_frequent(one.confusion, _MAX_PAIRS // len(measured))
        ]
        tables[CONFUSION] = _dump(rows, _CONFUSION)
    if manifest.thresholds is not None:
        pooled, needed = set(manifest.thresholds.pooled), manifest.thresholds.needed_by_class
        rows = []
        for index, name in enumerate(classes):
            threshold = manifest.thresholds.by_class[name]
            numbers = asdict(threshold) if threshold is not None else dict.fromkeys(_list_types(Threshold))
            more = needed.get(name)
            rule = {"pooled": name in pooled, "needed": more and more.images, "one_in": more and more.one_in}
            rows.append({"class_index": index, "class_name": name, **rule, **numbers})
        tables[THRESHOLDS] = _dump(rows, _THRESHOLDS)
    return tables


def _list_most_frequent(pairs: list[list[int]], most: int) -> list[list[int]]:
    """Return pairs in their order, without the rarest if they are too many to be read again."""
    if len(pairs) <= most:
        return pairs
    frequent = np.argsort([-images for _, _, images in pairs], kind="stable")[:most]
    return [pairs[index] for index in np.sort(frequent)]


def drop_class_tables(manifest: Manifest) -> Manifest:
    """Return a manifest without what the tables hold."""

    def drop(measured: Measurement | None) -> Measurement | None:
        return None if measured is None else replace(measured, by_class={}, confusion=[])

    metrics, thresholds = manifest.metrics, manifest.thresholds
    return replace(
        manifest,
        metrics=replace(metrics, validation=drop(metrics.validation), test=drop(metrics.test)),
        thresholds=None if thresholds is None else replace(thresholds, by_class={}, pooled=[], needed_by_class={}),
    )


def join_class_tables(manifest: Manifest, folder: Path) -> Manifest:
    """Return a manifest with what the tables in a bundle's folder hold.

    Raises:
        RecordError: a table is missing, damaged, or of other classes.
    """
    metrics, thresholds, num_classes = manifest.metrics, manifest.thresholds, len(manifest.classes)
    measured = dict(metrics.list_measured())
    if measured:
        classes = _open(manifest, folder, CLASSES, _CLASSES, 2 * num_classes)
        pairs = _open(manifest, folder, CONFUSION, _CONFUSION, min(_MAX_PAIRS, 2 * num_classes**2))
        for role, one in measured.items():
            rows = _iter_rows(classes.of_role(role), ClassMeasurement, manifest.classes)
            by_class = {name: build_record(ClassMeasurement, row) for name, row in rows}
            confusion = np.stack([pairs.of_role(role).read_integers(name) for name in _INDICES], axis=1)
            if not ((confusion[:, :2] >= 0) & (confusion[:, :2] < num_classes)).all():
                raise RecordError("the confusion matrix has classes that the bundle has not")
            measured[role] = replace(one, by_class=by_class, confusion=confusion.tolist())
    if thresholds is not None:
        table = _open(manifest, folder, THRESHOLDS, _THRESHOLDS, num_classes)
        chosen = {
            name: None if row["probability"] is None else build_record(Threshold, row)
            for name, row in _iter_rows(table, Threshold, manifest.classes)
        }
        pooled = [name for name, is_pooled in zip(manifest.classes, table.read("pooled"), strict=True) if is_pooled]
        needed = {
            name: None if images is None else build_record(Needed, {"images": images, "one_in": one_in})
            for name, images, one_in in zip(manifest.classes, table.read("needed"), table.read("one_in"), strict=True)
        }
        thresholds = replace(thresholds, by_class=chosen, pooled=pooled, needed_by_class=needed)
    metrics = replace(metrics, validation=measured.get("validation"), test=measured.get("test"))
    return replace(manifest, metrics=metrics, thresholds=thresholds)


@dataclass(frozen=True)
class _Table:
    """Columns of a table by name, without class names.

    pyarrow's conversions from and to NumPy, and its functions of values, would import pandas, which takes a second.

    Attributes:
        rows: indices of the rows to read; None for all.
        roles: index of each row's role in `_ROLES`; None if the table has none.
    """

    columns: pa.Table
    rows: npt.NDArray[np.int64] | None = None
    roles: npt.NDArray[np.int64] | None = None

    def of_role(self, role: str) -> _Table:
        """Return the rows of a role."""
        return _Table(self.columns, np.flatnonzero(self.roles == _ROLES.index(role)))

    def read(self, name: str) -> list[Json]:
        """Return the values of a column."""
        values: list[Json] = self.columns[name].to_pylist()
        return values if self.rows is None else [values[row] for row in self.rows.tolist()]

    def read_integers(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column of integers, none of which may be missing."""
        if self.columns[name].null_count:
            raise RecordError(f"a value of {name} is missing")
        values: npt.NDArray[np.int64] = np.from_dlpack(self.columns[name].combine_chunks()).astype(np.int64)
        return values if self.rows is None else values[self.rows]


def _iter_rows(
    table: _Table, kind: type[ClassMeasurement | Threshold], classes: Sequence[str]
) -> Iterator[tuple[str, dict[str, Json]]]:
    """Yield each class with its values of a record's fields."""
    if table.read("class_index") != list(range(len(classes))):
        raise RecordError("its rows are not the bundle's classes in order")
    names = list(_list_types(kind))
    for name, row in zip(classes, zip(*map(table.read, names), strict=True), strict=True):
        yield name, dict(zip(names, row, strict=True))


def _dump(rows: Sequence[Mapping[str, Json]], types: Mapping[str, str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _make_schema(types)), buffer)
    return buffer.getvalue()


def _make_schema(types: Mapping[str, str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([pa.field(name, pa.type_for_alias(kind)) for name, kind in types.items()])


def _open(manifest: Manifest, folder: Path, name: str, types: Mapping[str, str], max_rows: int) -> _Table:
    """Read a table that somebody else may have made: a few bytes may stand for billions of rows, or for long texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if name not in manifest.files:
        raise RecordError(f"{name} is not listed")
    try:
        if not pq.read_schema(folder / name).remove_metadata().equals(_make_schema(types)):
            raise RecordError(f"{name} has other columns")
        with pq.ParquetFile(folder / name, read_dictionary=["role"] if "role" in types else None) as file:
            if file.metadata.num_rows > max_rows:
                raise RecordError(f"{name} has {file.metadata.num_rows:,} rows; at most {max_rows:,} are possible")
            columns = file.read(columns=[column for column in types if column != "class_name"])
        if "role" not in types:
            return _Table(columns)
        encoded = columns["role"].combine_chunks()
        known = encoded.dictionary.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{name} cannot be read ({error})") from None
    if encoded.null_count or not set(known) <= set(_ROLES):
        raise RecordError(f"{name} has other roles than {' and '.join(_ROLES)}")
    roles = np.array([_ROLES.index(role) for role in known], np.int64)[np.from_dlpack(encoded.indices)]
    return _Table(columns, roles=roles)
