"""Lists of addresses: manifests in CSV, Parquet or JSON lines, and S3 Inventory reports.

A manifest may come from anyone, so an address is used only if its scheme and prefix are allowed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.console import say
from tlray.errors import DataError, FetchError
from tlray.sources import archives, lists
from tlray.sources.candidates import Candidate
from tlray.sources.columns import name_columns
from tlray.storage import s3
from tlray.storage.s3_client import ARCHIVED, ARCHIVED_REASON

_INVENTORY = "/manifest.json"
_ROWS = 65_536
_MAX_KEY_BYTES = 1024
_S3_SCHEME = re.compile("s3[an]?://", re.IGNORECASE)
_S3_URL = re.compile(r"https://(?:([a-z0-9.-]+)\.)?s3(?:[.-][a-z0-9-]+)?\.amazonaws\.com/([^?#]+)", re.IGNORECASE)
_WORKING_DIR = re.compile(r"^/.*/runtime_resources/working_dir_files/[^/]+/")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def is_manifest(uri: str) -> bool:
    """Return whether a name is that of a list or an S3 Inventory report."""
    return lists.is_list(uri) or uri.lower().endswith(_INVENTORY)


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
    opened = lists.open_list(uri, uri_column)
    for option, column in (("--uri-column", uri_column), ("--id-column", id_column)):
        if column is not None and column not in opened.names:
            names = lists.shorten(", ".join(opened.names))
            raise DataError(f"{option} takes a column of {uri} ({names}); got {column!r}")
    own = [index for index, name in enumerate(opened.names) if name != uri_column]
    fields = [
        pa.field(name, opened.types[index])
        for name, index in zip(name_columns([opened.names[index] for index in own]), own, strict=True)
    ]
    if opened.drifting:
        say(f"{uri}: {lists.shorten(', '.join(opened.drifting))} of several types, taken as text")
    return fields, _read_lines(uri, opened, fields, uri_column, id_column, allow)


def _read_lines(
    manifest: str,
    opened: lists.ListFile,
    fields: list[pa.Field],
    uri_column: str,
    id_column: str | None,
    allow: Sequence[str],
) -> Iterator[Candidate]:
    base = manifest.rpartition("/")[0]
    allow = _resolve_allowed(allow)
    where, identity = opened.names.index(uri_column), None if id_column is None else opened.names.index(id_column)
    names = [field.name for field in fields]
    seen: set[bytes] = set()
    for _, values in opened.lines:
        typed = None if values is None else values[where]
        if values is None or typed is None or not typed.strip():
            yield Candidate(manifest, "", reason="a line without an address")
            continue
        address, reason = check_address(typed, base, allow)
        if reason is None and identity is not None and values[identity] is not None:
            key = hashlib.blake2b(repr(values[identity]).encode(), digest_size=16).digest()
            reason = f"its {id_column} is that of an earlier line" if key in seen else None
            seen.add(key)
        inputs = dict(zip(names, (*values[:where], *values[where + 1 :]), strict=True))
        yield Candidate(address, address, inputs=inputs or None, reason=reason, named=True)


def check_address(typed: str, base: str, allow: Sequence[str]) -> tuple[str, str | None]:
    """Return the address of a line, and the reason if it may not be read.

    Blanks around it are dropped; `s3a://`, `S3://` and the https:// address of an object are read as s3://, `~` and
    Windows separators in a local path as what they mean, unless a file has that very name.

    Args:
        typed: address as written in the manifest.
        base: the manifest's folder.
        allow: as in `read_manifest`.
    """
    written, typed = typed, _normalize(typed, base)
    if "\0" in typed:
        return written, "an address that holds a null character"
    scheme, separator, rest = typed.partition("://")
    if separator and scheme != "s3":
        return written, f"the scheme {lists.shorten(scheme)}:// is not allowed in a manifest; s3:// and paths are"
    if not separator and typed.startswith(("file:", "http:", "https:", "data:")):
        return written, "not a path or an s3:// address"
    if not separator and _DRIVE.match(typed):
        return written, "a path on a Windows drive; write paths relative to the list, or as this machine knows them"
    if separator and any(sign in rest.partition("/")[0] for sign in "@:"):
        return written, "a name or password in an address is not allowed"
    if separator and not rest.partition("/")[2]:
        return written, "an s3:// address without a key"
    if len(typed.partition("://")[2].partition("/")[2].encode("utf-8", "surrogateescape")) > _MAX_KEY_BYTES:
        return written, "an s3:// key of more than 1,024 bytes"
    if ".." in typed.replace("\\", "/").split("/"):
        return written, "'..' in an address is not allowed in a manifest"
    address = typed if separator or typed.startswith("/") else storage.join(base, typed)
    if allow:
        if not any(_lies_below(address, prefix) for prefix in allow):
            return address, f"not below what --allow names ({', '.join(allow)})"
    elif not storage.is_s3(address) and storage.is_s3(base):
        return address, "a local path in a manifest from S3; --allow PREFIX would allow it"
    return address, None


def _normalize(written: str, base: str) -> str:
    typed = written.strip()
    if found := _S3_URL.fullmatch(typed):
        bucket, key = found.groups()
        return f"s3://{bucket}/{unquote(key)}" if bucket else f"s3://{unquote(key)}"
    if found := _S3_SCHEME.match(typed):
        return f"s3://{typed[found.end() :]}"
    if "://" in typed or storage.is_s3(base) or _DRIVE.match(typed):
        return typed
    plain = os.path.expanduser(typed.replace("\\", "/")) if typed[0] == "~" else typed.replace("\\", "/")  # noqa: PTH111
    forms = [] if plain.isascii() else [unicodedata.normalize(form, plain) for form in ("NFC", "NFD")]
    if plain == written and not forms:
        return plain
    # os.path: Path.exists may raise
    exact = (name for name in (written, plain, *forms) if os.path.exists(os.path.join(base, name)))  # noqa: PTH110, PTH118
    return next(exact, plain)


def fingerprint(uri: str) -> str:
    """Return what changes with the content of a list: its sha256, or an object's etag; "" if it cannot be read."""
    try:
        if storage.is_s3(uri):
            return s3.head(uri)[1]
        with Path(uri).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FetchError, OSError):
        return ""


def strip_working_dir(uri: str) -> str:
    """Return an address without the folder into which Ray unpacked a job's files, which differs from job to job."""
    return _WORKING_DIR.sub("working_dir/", uri)


def list_prefixes(inputs: Sequence[str], allow: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes of all addresses that inputs may give: themselves, and what manifests among them may name."""
    prefixes = []
    for uri in inputs:
        if not is_manifest(uri):
            parts = archives.split_member(uri)
            prefixes.append(uri if parts is None else parts[0])
        elif allow and not uri.lower().endswith(_INVENTORY):
            prefixes += _resolve_allowed(allow)
        else:
            prefixes += ["s3://"] if storage.is_s3(uri) else ["s3://", "/"]
    return tuple(prefixes)


def lies_inside(address: str, prefixes: Sequence[str]) -> bool:
    """Return whether an address is one of the prefixes or lies below one; `..` may stand in the prefix alone."""
    address = strip_working_dir(address)
    if storage.is_s3(address):
        return any(address.startswith(prefix) for prefix in prefixes)
    below = (prefix for prefix in prefixes if _lies_below(address, prefix))
    return any(prefix == "/" or ".." not in address.removeprefix(prefix).split("/") for prefix in below)


def _resolve_allowed(allow: Sequence[str]) -> list[str]:
    return [prefix if prefix == "s3://" else storage.resolve(prefix) for prefix in allow]


def _lies_below(address: str, prefix: str) -> bool:
    return address == prefix or address.startswith(prefix if prefix.endswith("/") else prefix + "/")


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
