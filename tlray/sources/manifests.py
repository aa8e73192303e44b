"""Lists of addresses: manifests in CSV, Parquet or JSON lines, and S3 Inventory reports.

A manifest may come from anyone, so an address is used only if its scheme and prefix are allowed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.errors import DataError, FetchError, StoppedError
from tlray.sources.candidates import Candidate
from tlray.storage.s3_client import ARCHIVED, ARCHIVED_REASON

_KINDS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".parquet")
_INVENTORY = "/manifest.json"
_ROWS = 65_536
_MAX_KEY_BYTES = 1024


def is_list(uri: str) -> bool:
    """Return whether a name has a manifest's extension."""
    return uri.lower().endswith(_KINDS)


def is_manifest(uri: str) -> bool:
    """Return whether a name is that of a manifest or an S3 Inventory report."""
    return uri.lower().endswith((*_KINDS, _INVENTORY))


def read_manifest(
    uri: str, uri_column: str, id_column: str | None, allow: Sequence[str]
) -> tuple[list[pa.Field], Iterator[Candidate]]:
    """Return a manifest's own columns as `input_*` fields, and one candidate for each of its lines, in order.

    Args:
        uri: the manifest.
        uri_column: the column of addresses; relative ones start at the manifest's folder.
        id_column: the column that identifies a line; a second line with the same value is left out. None: every line
            is a row, even if two name the same file.
        allow: allowed prefixes of addresses; empty for s3://, and for local paths if the manifest is local too.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    if uri.lower().endswith(_INVENTORY):
        return [], _read_inventory(uri)
    try:
        schema, batches = open_batches(uri)
    except (pa.ArrowException, FetchError, OSError) as error:
        raise DataError(f"the manifest {uri} cannot be read: {storage.redact(str(error))}") from None
    for option, column in (("--uri-column", uri_column), ("--id-column", id_column)):
        if column is not None and column not in schema.names:
            raise DataError(f"{option} takes a column of {uri} ({', '.join(schema.names)}); got {column!r}")
    own = [field for field in schema if field.name != uri_column]
    fields = [pa.field(f"input_{field.name}", field.type) for field in own]
    return fields, _read_lines(uri, batches, uri_column, id_column, allow)


def _read_lines(
    manifest: str, batches: Iterator[pa.RecordBatch], uri_column: str, id_column: str | None, allow: Sequence[str]
) -> Iterator[Candidate]:
    base = manifest.rpartition("/")[0]
    allow = [prefix if prefix == "s3://" else storage.resolve(prefix) for prefix in allow]
    seen: set[bytes] = set()
    try:
        for batch in batches:
            own = [name for name in batch.schema.names if name != uri_column]
            for line in batch.to_pylist():
                typed = line[uri_column]
                if typed is None or not str(typed).strip():
                    yield Candidate(manifest, "", reason="a line without an address")
                    continue
                address, reason = check_address(str(typed), base, allow)
                if reason is None and id_column is not None and line[id_column] is not None:
                    key = hashlib.blake2b(repr(line[id_column]).encode(), digest_size=16).digest()
                    reason = f"its {id_column} is that of an earlier line" if key in seen else None
                    seen.add(key)
                inputs = {f"input_{name}": line[name] for name in own}
                yield Candidate(address, address, inputs=inputs or None, reason=reason)
    except FetchError as error:
        raise StoppedError(
            f"the manifest {manifest} cannot be reached: {error}; run the same command to start over"
        ) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"the manifest {manifest} cannot be read to its end: {storage.redact(str(error))}") from None


def check_address(typed: str, base: str, allow: Sequence[str]) -> tuple[str, str | None]:
    """Return the address of a line, and the reason if it may not be read.

    Args:
        typed: address as written in the manifest.
        base: the manifest's folder.
        allow: as in `read_manifest`.
    """
    scheme, separator, rest = typed.partition("://")
    if separator and scheme != "s3":
        return typed, f"the scheme {scheme}:// is not allowed in a manifest; s3:// and paths are"
    if not separator and typed.startswith(("file:", "http:", "https:", "data:")):
        return typed, "not a path or an s3:// address"
    if separator and any(sign in rest.partition("/")[0] for sign in "@:"):
        return typed, "a name or password in an address is not allowed"
    if separator and not rest.partition("/")[2]:
        return typed, "an s3:// address without a key"
    if len(typed.partition("://")[2].partition("/")[2].encode("utf-8", "surrogateescape")) > _MAX_KEY_BYTES:
        return typed, "an s3:// key of more than 1,024 bytes"
    if ".." in typed.replace("\\", "/").split("/"):
        return typed, "'..' in an address is not allowed in a manifest"
    address = typed if separator or typed.startswith("/") else storage.join(base, typed)
    if allow:
        if not any(_lies_below(address, prefix) for prefix in allow):
            return address, f"not below what --allow names ({', '.join(allow)})"
    elif not storage.is_s3(address) and storage.is_s3(base):
        return address, "a local path in a manifest from S3; --allow PREFIX would allow it"
    return address, None


def _lies_below(address: str, prefix: str) -> bool:
    return address == prefix or address.startswith(prefix if prefix.endswith("/") else prefix + "/")


def open_batches(uri: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Open a manifest: its columns and its lines; all values of a CSV are text.

    Raises:
        ArrowException, FetchError, OSError: it cannot be read; also from the lines.
    """
    name = uri.lower()
    if name.endswith(".parquet"):
        table = pq.ParquetFile(storage.open_arrow(uri))
        return table.schema_arrow, table.iter_batches(_ROWS)
    from pyarrow import csv
    from pyarrow import json as arrow_json

    if ".csv" in name[-7:]:
        quoted = csv.ParseOptions(newlines_in_values=True)  # a file's name may hold a newline
        names = csv.open_csv(storage.open_arrow(uri), parse_options=quoted).schema.names
        as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        reader = csv.open_csv(storage.open_arrow(uri), parse_options=quoted, convert_options=as_text)
        return reader.schema, iter(reader)
    reader = arrow_json.open_json(storage.open_arrow(uri))
    return reader.schema, iter(reader)


def _read_inventory(uri: str) -> Iterator[Candidate]:
    """Yield the objects of an S3 Inventory report: CSV, Parquet or ORC files beside a `manifest.json`."""
    try:
        report: dict[str, Any] = json.loads(storage.get(uri))
        source, kind = report["sourceBucket"], report["fileFormat"].lower()
        bucket = report["destinationBucket"].rpartition(":")[2]
        columns = [name.strip() for name in report["fileSchema"].split(",")] if kind == "csv" else []
        files = [storage.join(f"s3://{bucket}", item["key"]) for item in report["files"]]
    except (FetchError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{uri} is not the manifest of an S3 Inventory: {type(error).__name__} {error}") from None
    for file in files:
        try:
            for batch in _open_inventory_file(file, kind, columns):
                for line in batch.to_pylist():
                    yield _read_inventory_line(source, line, decode=kind == "csv")
        except (pa.ArrowException, FetchError, OSError) as error:
            raise DataError(f"the S3 Inventory file {file} cannot be read: {storage.redact(str(error))}") from None


def _open_inventory_file(uri: str, kind: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if kind == "parquet":
        return iter(pq.ParquetFile(storage.open_arrow(uri)).iter_batches(_ROWS))
    if kind == "orc":
        from pyarrow import orc

        return iter(orc.ORCFile(storage.open_arrow(uri)).read().to_batches(_ROWS))
    from pyarrow import csv

    return iter(
        csv.open_csv(
            storage.open_arrow(uri),
            read_options=csv.ReadOptions(column_names=columns),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        )
    )


def _read_inventory_line(bucket: str, line: dict[str, Any], *, decode: bool) -> Candidate:
    """Convert one line: CSV has columns `Key`, `ETag` and URL-encoded keys; Parquet and ORC have `key`, `e_tag`."""
    values = {name.lower().replace("_", ""): value for name, value in line.items()}
    key = unquote_plus(values["key"]) if decode else values["key"]
    reason = None
    if key.endswith("/"):
        reason = "a folder marker"
    elif str(values.get("storageclass", "")).upper() in ARCHIVED:
        reason = ARCHIVED_REASON
    elif str(values.get("isdeletemarker", "")).lower() == "true":
        reason = "deleted"
    elif str(values.get("islatest", "true")).lower() == "false":
        reason = "not the latest version"
    size, etag = values.get("size"), values.get("etag")
    return Candidate(
        f"s3://{bucket}/{key}",
        key,
        size=int(size) if size not in (None, "") else None,
        etag=etag.strip('"') if etag else None,
        reason=reason,
    )
