"""Own columns of lists and tables, in names and types that every reader of Parquet knows.

Spark, Athena and BigQuery each refuse some of what Arrow can write: unsigned integers, nanoseconds, times of day,
halves, nulls without a type, and columns whose names differ only in case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as kinds

_TEXT = pa.string()
_PLAIN = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20),
    pa.float16(): pa.float32(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.date64(): pa.date32(),
    pa.null(): pa.string(),
}
_KEPT = (
    kinds.is_boolean,
    kinds.is_signed_integer,
    kinds.is_floating,
    kinds.is_string,
    kinds.is_binary,
    kinds.is_fixed_size_binary,
    kinds.is_date32,
    kinds.is_decimal128,
)
_FORBIDDEN = re.compile(r"[ ,;{}()\n\t=]")
"""Characters that Spark refuses in the name of a column."""


def name_columns(names: Sequence[str]) -> list[str]:
    """Return `input_NAME` for each column, numbered where two are alike but for case and the characters replaced."""
    taken: set[str] = set()
    chosen = []
    for name in names:
        base = candidate = "input_" + _FORBIDDEN.sub("_", name)
        number = 2
        while candidate.casefold() in taken:
            candidate = f"{base}_{number}"
            number += 1
        taken.add(candidate.casefold())
        chosen.append(candidate)
    return chosen


def make_portable(kind: pa.DataType) -> pa.DataType:
    """Return the type in which values of a type are written; text for those that few readers know."""
    if kinds.is_dictionary(kind) or kinds.is_run_end_encoded(kind):
        return make_portable(kind.value_type)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kinds.is_timestamp(kind):
        return pa.timestamp("us", kind.tz) if kind.unit in ("ns", "s") else kind
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        inner = make_portable(kind.value_type)
        return inner if inner == _TEXT and not _is_text(kind.value_type) else pa.list_(inner)
    if kinds.is_struct(kind) and kind.num_fields:
        inner = [pa.field(field.name, make_portable(field.type)) for field in kind]
        unknown = any(field.type == _TEXT and not _is_text(own.type) for field, own in zip(inner, kind, strict=True))
        return _TEXT if unknown else pa.struct(inner)
    return kind if any(test(kind) for test in _KEPT) else _TEXT


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    return bool(
        kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind) or kinds.is_null(kind)
    )


def convert(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert a column to `make_portable` of its type; nanoseconds are cut to microseconds.

    Raises:
        ArrowInvalid: binary values that are to be text are not UTF-8.
    """
    if column.type == kind:
        return column
    try:
        return column.cast(kind, safe=not _loses_nanoseconds(column.type))
    except pa.ArrowNotImplementedError:
        return pa.array([make_text(value) for value in column.to_pylist()], pa.string()).cast(kind)


def list_values(column: pa.Array, kind: pa.DataType) -> list[Any]:
    """Return the values of a column after `convert`, each as Arrow takes it back for that type.

    Times are counts of their unit, since Python's own end with the year 9999; text that is not UTF-8 is mended.
    """
    if kind == _TEXT and _is_text(column.type):
        plain = column.dictionary_decode() if kinds.is_dictionary(column.type) else column
        try:
            return list(plain.to_pylist())
        except UnicodeDecodeError:
            raw = plain.cast(pa.large_binary()).to_pylist()
            return [None if value is None else value.decode("utf-8", "replace") for value in raw]
    converted = convert(column, kind)
    if kinds.is_timestamp(kind):
        converted = converted.cast(pa.int64())
    elif kinds.is_date32(kind):
        converted = converted.cast(pa.int32())
    return list(converted.to_pylist())


def _loses_nanoseconds(kind: pa.DataType) -> bool:
    return "[ns" in str(kind)


def make_text(value: Any) -> str | None:
    """Return a value as text: text as it is, other values as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
