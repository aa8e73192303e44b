"""What a bundle tells by class, as Parquet tables: `bundle.json` stays small with thousands of classes.

metrics/classes.parquet      one row a class and role: precision, recall, F1, their intervals, images
metrics/confusion.parquet    one row a pair of true and predicted class that occurs, by role
metrics/thresholds.parquet   one row a class: the probability above which its labels reach the target precision
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tlray.metrics.classification import ClassMeasurement, Measurement
from tlray.metrics.thresholds import Threshold
from tlray.model.manifest import Manifest
from tlray.storage.records import Json, RecordError, build_record

if TYPE_CHECKING:
    import pyarrow as pa

CLASSES = "metrics/classes.parquet"
CONFUSION = "metrics/confusion.parquet"
THRESHOLDS = "metrics/thresholds.parquet"

_ROLES = ("validation", "test")
_INDICES = {"true_index": "int32", "predicted_index": "int32", "images": "int64"}
_TYPES = {"str": "string", "float": "float64", "int": "int64"}


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
        tables[CLASSES] = _dump(rows, {**_name_class("role"), **_list_types(ClassMeasurement)})
        rows = [
            {"role": role, **dict(zip(_INDICES, pair, strict=True))}
            for role, one in measured.items()
            for pair in one.confusion
        ]
        tables[CONFUSION] = _dump(rows, {"role": "string", **_INDICES})
    if manifest.thresholds is not None:
        few = set(manifest.thresholds.few)
        rows = []
        for index, name in enumerate(classes):
            threshold = manifest.thresholds.by_class[name]
            numbers = asdict(threshold) if threshold is not None else dict.fromkeys(_list_types(Threshold))
            rows.append({"class_index": index, "class_name": name, "few": name in few, **numbers})
        tables[THRESHOLDS] = _dump(rows, {**_name_class(), "few": "bool", **_list_types(Threshold)})
    return tables


def drop_class_tables(manifest: Manifest) -> Manifest:
    """Return a manifest without what the tables hold."""

    def drop(measured: Measurement | None) -> Measurement | None:
        return None if measured is None else replace(measured, by_class={}, confusion=[])

    metrics, thresholds = manifest.metrics, manifest.thresholds
    return replace(
        manifest,
        metrics=replace(metrics, validation=drop(metrics.validation), test=drop(metrics.test)),
        thresholds=None if thresholds is None else replace(thresholds, by_class={}, few=[]),
    )


def join_class_tables(manifest: Manifest, folder: Path) -> Manifest:
    """Return a manifest with what the tables in a bundle's folder hold.

    Raises:
        RecordError: a table is damaged, or of other classes.
    """
    metrics, thresholds, classes = manifest.metrics, manifest.thresholds, manifest.classes
    measured: dict[str, Measurement] = {}
    if CLASSES in manifest.files and CONFUSION in manifest.files:
        by_role = _group(_load(folder / CLASSES))
        pairs = _group(_load(folder / CONFUSION))
        for role, one in metrics.list_measured():
            by_class = _read_classes(by_role[role], classes)
            confusion = build_record(list[list[int]], [[row.get(name) for name in _INDICES] for row in pairs[role]])
            if any(not (0 <= index < len(classes)) for true, predicted, _ in confusion for index in (true, predicted)):
                raise RecordError("the confusion matrix has classes that the bundle has not")
            measured[role] = replace(one, by_class=by_class, confusion=confusion)
    if thresholds is not None and THRESHOLDS in manifest.files:
        rows = _load(folder / THRESHOLDS)
        chosen = _read_thresholds(rows, classes)
        thresholds = replace(thresholds, by_class=chosen, few=[row["class_name"] for row in rows if row["few"]])
    joined = {role: measured.get(role, getattr(metrics, role)) for role in _ROLES}
    return replace(manifest, metrics=replace(metrics, **joined), thresholds=thresholds)


def _read_classes(rows: Sequence[Mapping[str, Json]], classes: Sequence[str]) -> dict[str, ClassMeasurement]:
    _check_classes(rows, classes)
    names = list(_list_types(ClassMeasurement))
    return {row["class_name"]: build_record(ClassMeasurement, {name: row.get(name) for name in names}) for row in rows}


def _read_thresholds(rows: Sequence[Mapping[str, Json]], classes: Sequence[str]) -> dict[str, Threshold | None]:
    _check_classes(rows, classes)
    names = list(_list_types(Threshold))
    return {
        row["class_name"]: None
        if row.get("probability") is None
        else build_record(Threshold, {name: row.get(name) for name in names})
        for row in rows
    }


def _check_classes(rows: Sequence[Mapping[str, Json]], classes: Sequence[str]) -> None:
    if [row.get("class_name") for row in rows] != list(classes):
        raise RecordError("its rows are not the bundle's classes in order")


def _group(rows: Sequence[Mapping[str, Json]]) -> dict[str, list[Mapping[str, Json]]]:
    groups: dict[str, list[Mapping[str, Json]]] = {role: [] for role in _ROLES}
    for row in rows:
        if row.get("role") not in groups:
            raise RecordError(f"it has the role {row.get('role')!r}")
        groups[row["role"]].append(row)
    return groups


def _name_class(*before: str) -> dict[str, str]:
    return {**dict.fromkeys(before, "string"), "class_index": "int32", "class_name": "string"}


def _list_types(kind: type[ClassMeasurement | Threshold]) -> dict[str, str]:
    return {field.name: _TYPES[str(field.type)] for field in fields(kind)}


def _dump(rows: Sequence[Mapping[str, Json]], types: Mapping[str, str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field(name, pa.type_for_alias(kind)) for name, kind in types.items()])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    return buffer.getvalue()


def _load(path: Path) -> list[dict[str, Json]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table: pa.Table = pq.read_table(path)
        rows: list[dict[str, Json]] = table.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{path.name} cannot be read ({error})") from None
    return rows
