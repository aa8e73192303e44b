"""Write frozen dataclasses as JSON and read them back strictly.

A field that is missing, unknown, of another type or not a finite number is an error that names it. Nothing is
converted, except that an integer may stand for a float. Fields may be `str`, `int`, `float`, `bool`, a `Literal`,
another record, `list[T]`, `tuple[T, ...]`, `dict[str, T]`, one of these or None, or `Json` for any plain value.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar, Union

Json: TypeAlias = Any
"""A plain JSON value whose shape the record does not fix."""

R = TypeVar("R")


class RecordError(ValueError):
    """A text that is not the expected record; the message names the faulty fields."""


def dump_record(record: object) -> bytes:
    """Return a record, or a list of them, as indented UTF-8 JSON with a final newline.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    plain = [asdict(each) for each in record] if isinstance(record, list) else asdict(record)  # type: ignore[call-overload]
    return (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_record(kind: type[R], data: bytes | str) -> R:
    """Return the record of a JSON text.

    Raises:
        RecordError: the text is not JSON or not this record.
    """
    return build_record(kind, _parse_json(data))


def parse_records(kind: type[R], data: bytes | str) -> list[R]:
    """Return the records of a JSON list; errors as `parse_record`."""
    return _build(list[kind], _parse_json(data), "")  # type: ignore[valid-type,no-any-return]


def build_record(kind: type[R], value: Json) -> R:
    """Return the record of a parsed JSON value; errors as `parse_record`."""
    record: R = _build(kind, value, "")
    return record


def _parse_json(data: bytes | str) -> Json:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # malformed, or nested too deep
        raise RecordError(f"not JSON ({error})") from None


def _build(kind: Any, value: Json, path: str) -> Any:
    """Return `value` as `kind`; `path` is its position in the record, for errors."""
    origin = typing.get_origin(kind)
    if kind is Any:
        _check_finite(value, path)
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        (inner,) = (choice for choice in typing.get_args(kind) if choice is not type(None))
        return _build(inner, value, path)
    if origin is Literal:
        if (type(value), value) not in [(type(choice), choice) for choice in typing.get_args(kind)]:
            raise RecordError(f"{path} takes {' or '.join(map(repr, typing.get_args(kind)))}; got {_show(value)}")
        return value
    if origin in (list, tuple):
        _check_type(value, list, "a list", path)
        item = typing.get_args(kind)[0]
        return origin(_build(item, entry, f"{path}[{index}]") for index, entry in enumerate(value))
    if origin is dict:
        _check_type(value, dict, "an object", path)
        return {name: _build(typing.get_args(kind)[1], entry, f"{path}.{name}") for name, entry in value.items()}
    if is_dataclass(kind):
        return _build_dataclass(kind, value, path)
    if kind is float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise RecordError(f"{path} takes a finite number; got {_show(value)}")
        return float(value)
    if type(value) is not kind:  # not isinstance: bool is a subclass of int
        raise RecordError(f"{path} takes {kind.__name__}; got {_show(value)}")
    return value


def _build_dataclass(kind: Any, value: Json, path: str) -> Any:
    where = path or "the record"
    _check_type(value, dict, "an object", where)
    hints = _find_hints(kind)
    required = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}
    faults = [f"{where} lacks {name}" for name in sorted(required - value.keys())]
    faults += [f"{where} has an unknown field {name!r}" for name in sorted(value.keys() - hints.keys())]
    if faults:
        raise RecordError("; ".join(faults))
    return kind(**{name: _build(hints[name], entry, f"{path}.{name}".lstrip(".")) for name, entry in value.items()})


@cache
def _find_hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _check_type(value: Json, kind: type, name: str, path: str) -> None:
    if not isinstance(value, kind):
        raise RecordError(f"{path or 'the text'} takes {name}; got {_show(value)}")


def _check_finite(value: Json, path: str) -> None:
    for each in _iter_numbers(value):
        if not math.isfinite(each):
            raise RecordError(f"{path} takes finite numbers; got {each}")


def _iter_numbers(value: Json) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _iter_numbers(entry)
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _iter_numbers(entry)


def _show(value: Json) -> str:
    """Return a value as JSON, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
