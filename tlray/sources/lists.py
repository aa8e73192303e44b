"""Read a list, in CSV, TSV, JSON lines or Parquet, as named columns and lines: all of it, or an error with its line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.errors import UNREACHABLE, DataError, FetchError, StoppedError
from tlray.images import formats
from tlray.sources.columns import list_values, make_portable, make_text

DELIMITED = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_JSON = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_PARQUET = (".parquet",)
EXTENSIONS = (*DELIMITED, *_JSON, *_PARQUET)

Values = Sequence[Any]

_ROWS = 65_536
_MAX_LINE_CHARACTERS = 2**24
_MAX_QUOTED = 200
_MAX_PLAUSIBLE_LINES = 20
"""Lines of one quoted value above which they count as lines of the list wherever they look like such."""

_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_EXCEL = re.compile(r'"?sep=([,;\t])"?\s*', re.IGNORECASE)
"""A first line that tells Excel the delimiter."""
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_EXACT = 2**53
"""Integers up to here are exact as float64."""


@dataclass(frozen=True)
class ListFile:
    """An open list.

    Attributes:
        names: columns, in order.
        types: type of each column's values; text for every column of a CSV or TSV.
        lines: number of each line, from 1, and its values; no values for an empty line. Iterating raises as
            `open_list`.
        drifting: columns of JSON lines whose values change their type on the way, which makes them text.
    """

    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]
    lines: Iterator[tuple[int, Values | None]]
    drifting: tuple[str, ...] = ()


def is_list(uri: str) -> bool:
    """Return whether a name has a list's extension, and is not that of a local folder, as Spark writes them."""
    return uri.lower().endswith(EXTENSIONS) and not storage.is_folder(uri)


def open_list(uri: str, address: str, *, as_text: Sequence[str] = ()) -> ListFile:
    """Open a list.

    Args:
        uri: its address; the extension tells its kind.
        address: column of addresses, which are text.
        as_text: other columns whose values are turned into text.

    Raises:
        DataError: a line cannot be read, or a column of `address` and `as_text` occurs twice.
        StoppedError: it cannot be reached.
    """
    open_kind: Callable[[str, str, set[str]], ListFile]
    if uri.lower().endswith(_PARQUET):
        open_kind = _open_parquet
    else:
        open_kind = _open_delimited if uri.lower().endswith(DELIMITED) else _open_json
    try:
        opened = open_kind(uri, address, {address, *as_text})
    except (pa.ArrowException, FetchError, OSError, UnicodeError, _LineError) as error:
        raise _explain(uri, error) from None
    for name in (address, *as_text):
        if (count := opened.names.count(name)) > 1:
            raise DataError(f"the manifest {uri} has {count} columns {name!r}; rename all but one")
    return ListFile(opened.names, opened.types, _guard(uri, opened.lines), opened.drifting)


def _guard(uri: str, lines: Iterator[tuple[int, Values | None]]) -> Iterator[tuple[int, Values | None]]:
    try:
        yield from lines
    except (pa.ArrowException, FetchError, OSError, ValueError, OverflowError) as error:
        raise _explain(uri, error) from None


def _explain(uri: str, error: Exception) -> Exception:
    if isinstance(error, FetchError) and error.code in UNREACHABLE:
        return StoppedError(f"the manifest {uri} cannot be reached: {error}; run the same command to start over")
    return DataError(f"the manifest {uri} cannot be read: {storage.redact(shorten(str(error)))}")


def shorten(text: str) -> str:
    """Return a text that a message may quote: its first 200 characters."""
    return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "..."


class _LineError(ValueError):
    """A line that cannot be read."""

    def __init__(self, number: int, fault: str) -> None:
        super().__init__(f"line {number:,}: {fault}")


# ---- text -----------------------------------------------------------------------------------------------------------


def _iter_text(uri: str) -> Iterator[str]:
    """Yield the lines of a text with their ends, decoded by its byte order mark, else as UTF-8."""
    with storage.open_arrow(uri) as file, io.BufferedReader(file) as buffered:
        head = buffered.peek(4)
        encoding = next((name for mark, name in _ENCODINGS if head.startswith(mark)), "utf-8")
        text = io.TextIOWrapper(buffered, encoding, "surrogateescape" if "8" in encoding else "strict", newline="")
        number = 0
        while line := text.readline(_MAX_LINE_CHARACTERS):
            number += 1
            if len(line) == _MAX_LINE_CHARACTERS:
                raise _LineError(number, f"longer than {_MAX_LINE_CHARACTERS:,} characters")
            if not line.isascii() and (found := _NOT_UTF8.search(line)):
                byte = ord(found[0]) - 0xDC00
                raise _LineError(
                    number, f"the byte 0x{byte:02X} is not UTF-8 (Latin-1 or Windows-1252?); save the list as UTF-8"
                )
            if "\0" in line:
                raise _LineError(number, "a zero byte (UTF-16 without its mark?); save the list as UTF-8")
            yield line


# ---- CSV and TSV ----------------------------------------------------------------------------------------------------


def _open_delimited(uri: str, address: str, text: set[str]) -> ListFile:
    lines = enumerate(_iter_text(uri), start=1)
    number, header = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if found := _EXCEL.fullmatch(header):
        number, header = next(((number, line) for number, line in lines if line.strip()), (number, ""))
    if not header:
        raise _LineError(1, "no header that names the columns")
    delimiters = found[1] if found else "\t,;" if ".tsv" in uri.lower()[-7:] else ",\t;"
    splits = [(delimiter, *split) for delimiter in delimiters if (split := _split_header(header, delimiter))]
    if not splits:
        raise _LineError(number, "the header cannot be read: one of its quotation marks has no counterpart")
    fitting = [split for split in splits if address in split[1]]
    delimiter, columns, spaced = fitting[0] if fitting else max(splits, key=lambda split: len(split[1]))
    where = columns.index(address) if address in columns else 0
    records = _Records((line for _, line in lines), delimiter, spaced, number + 1)
    checked = _check_records(records, len(columns), where, delimiter)
    return ListFile(columns, (pa.string(),) * len(columns), checked)


def _split_header(header: str, delimiter: str) -> tuple[tuple[str, ...], bool] | None:
    """Return the columns, and whether a blank follows each delimiter; None if the header has another delimiter."""
    try:
        names = next(csv.reader([header], delimiter=delimiter, strict=True))
        spaced = len(names) > 1 and all(name.startswith(" ") for name in names[1:])
        if spaced:
            names = next(csv.reader([header], delimiter=delimiter, strict=True, skipinitialspace=True))
    except csv.Error:
        return None
    return tuple(name.strip() for name in names), spaced


class _Records:
    """Records of a delimited text, each with the number of the line in which it begins."""

    def __init__(self, lines: Iterator[str], delimiter: str, spaced: bool, first: int) -> None:
        self._delimiter, self._spaced, self._first = delimiter, spaced, first
        self._read: list[str] = []
        self._reader = csv.reader(self._keep(lines), delimiter=delimiter, skipinitialspace=spaced, strict=True)

    def _keep(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            self._read.append(line)
            yield line

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            number = self._first + self._reader.line_num
            self._read.clear()
            limit = csv.field_size_limit(_MAX_LINE_CHARACTERS)
            try:
                values = next(self._reader, None)
            except csv.Error as error:
                raise self._explain(number, str(error)) from None
            finally:
                csv.field_size_limit(limit)  # it is the whole process's
            if values is None:
                return
            yield number, values

    def _explain(self, number: int, fault: str) -> _LineError:
        opened = number + self._find_opening()
        if fault.startswith("unexpected end"):
            return _LineError(opened, "a quotation mark opens here that is never closed; remove it, or double it")
        if "expected after" in fault:
            closed = self._first + self._reader.line_num - 1
            where = "here" if closed == opened else f"in line {closed:,}"
            return _LineError(
                opened, f"a quotation mark opens here and closes {where}, before other text; remove it, or double it"
            )
        return _LineError(opened, fault)

    def _find_opening(self) -> int:
        """Return the line, counted from the record's first, that opened the last quoted value."""
        opened, inside, closing, start = 0, False, False, True
        for offset, line in enumerate(self._read):
            for character in line:
                if character == '"' and inside:
                    inside, closing = False, True
                    continue
                if character == '"' and (closing or start):
                    inside, opened = True, opened if closing else offset
                closing = False
                start = (
                    character == self._delimiter or character in "\r\n" or (start and self._spaced and character == " ")
                )
        return opened


def _check_records(
    records: _Records, num_columns: int, where: int, delimiter: str
) -> Iterator[tuple[int, Values | None]]:
    for number, values in records:
        if len(values) <= 1 and not "".join(values).strip():
            yield number, None
            continue
        if len(values) > num_columns and not any(values[num_columns:]):  # delimiters at the end, as spreadsheets write
            values = values[:num_columns]
        if len(values) != num_columns:
            raise _LineError(number, f"{len(values)} values, where the header names {num_columns} columns")
        if _holds_lines(values, where, delimiter):
            raise _LineError(
                number,
                "a quotation mark opens here and closes some lines below, and the lines between look like "
                "lines of the list; remove it, or double it",
            )
        yield number, values


def _holds_lines(values: list[str], where: int, delimiter: str) -> bool:
    """Return whether a quoted value over several lines looks like lines of the list that two stray marks swallowed."""
    for index, value in enumerate(values):
        if "\n" not in value and "\r" not in value:
            continue
        first, *between, last = re.split(r"\r\n|\r|\n", value)
        rows = [values[:index] + first.split(delimiter), *(line.split(delimiter) for line in between)]
        rows.append(last.split(delimiter) + values[index + 1 :])
        if all(len(row) == len(values) for row in rows) and (
            len(rows) > _MAX_PLAUSIBLE_LINES or all(_looks_like_address(row[where]) for row in rows)
        ):
            return True
    return False


def _looks_like_address(text: str) -> bool:
    return "/" in text or text.strip().lower().endswith(tuple(formats.EXTENSIONS))


# ---- JSON lines -----------------------------------------------------------------------------------------------------


def _open_json(uri: str, address: str, text: set[str]) -> ListFile:
    kinds: dict[str, set[type]] = {}
    inexact: set[str] = set()
    for number, record in _iter_json(uri):
        for name, value in (record or {}).items():
            found = kinds.setdefault(name, set())
            if value is None:
                continue
            found.add(type(value))
            if name in text and type(value) not in (str, int):
                raise _LineError(number, f"{name} is {shorten(json.dumps(value))}, neither text nor a whole number")
            if isinstance(value, int) and abs(value) > _MAX_EXACT:
                found.add(str if abs(value) >= 2**63 else int)
                inexact.add(name)
    types = {
        name: pa.string() if name in text else _choose_type(found, name in inexact) for name, found in kinds.items()
    }
    drifting = tuple(
        name for name, found in kinds.items() if name not in text and len(found) > 1 and types[name] == pa.string()
    )
    names = tuple(types)
    return ListFile(names, tuple(types.values()), _iter_values(uri, types), drifting)


def _choose_type(kinds: set[type], inexact: bool) -> pa.DataType:
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    if kinds and kinds <= {int, float} and not inexact:
        return pa.float64()
    return pa.string()


def _iter_values(uri: str, types: dict[str, pa.DataType]) -> Iterator[tuple[int, Values | None]]:
    for number, record in _iter_json(uri):
        yield number, None if record is None else [_fit(record.get(name), kind) for name, kind in types.items()]


def _fit(value: Any, kind: pa.DataType) -> Any:
    if kind != pa.string():
        return value
    text = make_text(value)
    return text if text is None or text.isascii() else _SURROGATE.sub("\ufffd", text)


def _iter_json(uri: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    for number, line in enumerate(_iter_text(uri), start=1):
        if not line.strip():
            yield number, None
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            part = line.strip() in ("{", "[")
            fault = "a part of a JSON value; write each object on one line (jq -c)" if part else f"not JSON: {error}"
            raise _LineError(number, fault) from None
        except RecursionError:
            raise _LineError(number, "JSON that is nested too deeply") from None
        if not isinstance(record, dict):
            fault = "a JSON array; write each object on a line of its own (jq -c '.[]')"
            raise _LineError(number, fault if isinstance(record, list) else "no JSON object")
        if "\\u" in line or not line.isascii():
            record = {_SURROGATE.sub("\ufffd", name): value for name, value in record.items()}
        yield number, record


# ---- Parquet --------------------------------------------------------------------------------------------------------


def _open_parquet(uri: str, address: str, text: set[str]) -> ListFile:
    file = pq.ParquetFile(storage.open_arrow(uri))
    schema = file.schema_arrow
    for name in text & set(schema.names):
        if not _holds_text(kind := schema.field(schema.names.index(name)).type):
            raise DataError(f"the manifest {uri} has a column {name} of {kind}, not text")
    types = tuple(pa.string() if field.name in text else make_portable(field.type) for field in schema)
    return ListFile(tuple(schema.names), types, _iter_table(file, types))


def _iter_table(file: pq.ParquetFile, types: tuple[pa.DataType, ...]) -> Iterator[tuple[int, Values | None]]:
    number = 0
    for batch in file.iter_batches(_ROWS):
        columns = [list_values(column, kind) for column, kind in zip(batch.columns, types, strict=True)]
        for values in zip(*columns, strict=True):
            number += 1
            yield number, values


def _holds_text(kind: pa.DataType) -> bool:
    """Return whether values may be addresses or labels, which may be whole numbers."""
    return pa.types.is_integer(kind) or make_portable(kind) in (pa.string(), pa.binary())
