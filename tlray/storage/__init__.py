"""Read, write and list local paths and s3:// addresses through the same functions.

- `addresses`: parse, join and redact addresses.
- `local`: local files.
- `s3`: objects.
- `s3_listing`: list objects.
- `s3_client`: the clients of S3, their options and their errors.
- `fetch`: read many files or objects at once, with retries.
- `retries`: how often a request is made again, by what a process has seen of its store.
- `files`: seekable files.
- `lock`, `lock_stores`: let one driver at a time write to an output.
- `records`: dataclasses as JSON.

Every process imports this package: boto3, botocore, obstore and pyarrow are imported inside functions.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tlray.errors import FetchError
from tlray.storage import local, s3, s3_listing
from tlray.storage.addresses import Entry, Request, Written, is_s3, join, redact, resolve
from tlray.storage.fetch import Fetched, fetch, fetch_many, try_reading
from tlray.storage.files import open_arrow, open_file
from tlray.storage.s3_client import S3Options, adopt, configure, get_options

__all__ = [
    "Entry",
    "Fetched",
    "Request",
    "S3Options",
    "Written",
    "adopt",
    "check_writable",
    "configure",
    "delete",
    "delete_empty",
    "delete_folder",
    "exists",
    "fetch",
    "fetch_many",
    "find_any",
    "find_file",
    "get",
    "get_many",
    "get_options",
    "get_ranges",
    "has_content",
    "is_folder",
    "is_s3",
    "iter_files",
    "join",
    "list_files",
    "make_arrow_filesystem",
    "open_arrow",
    "open_file",
    "put",
    "put_folder",
    "redact",
    "resolve",
    "try_reading",
    "try_writing",
]


def iter_files(uri: str) -> Iterator[Entry]:
    """Yield the files below a folder or prefix in order of their paths, or the one file at `uri`, lazily.

    Raises:
        DataError: `uri` does not exist or cannot be listed.
    """
    return s3_listing.iter_files(uri) if is_s3(uri) else local.iter_files(uri)


def list_files(uri: str) -> list[Entry]:
    """Return the files of `iter_files` as a list."""
    return list(iter_files(uri))


def find_any(uri: str) -> Entry:
    """Return some file below a folder or prefix, not empty if possible, or the one file at `uri`; list only the first.

    Raises:
        FetchError: `uri` does not exist or cannot be listed.
    """
    return s3_listing.find_any(uri) if is_s3(uri) else local.find_any(uri)


def exists(uri: str) -> bool:
    """Return whether a file or object exists."""
    return s3.exists(uri) if is_s3(uri) else Path(uri).is_file()


def find_file(uri: str) -> Entry | None:
    """Return a local file, None if it does not exist; an object without size or version, to save a request."""
    return Entry(uri, uri, 0, None, 0) if is_s3(uri) else local.find_file(uri)


def has_content(uri: str) -> bool:
    """Return whether a folder or prefix holds anything, or a local file has that name."""
    return s3_listing.has_content(uri) if is_s3(uri) else local.has_content(uri)


def is_folder(uri: str) -> bool:
    """Return whether there is a local folder of that name."""
    return not is_s3(uri) and local.is_folder(uri)


def get(uri: str) -> bytes:
    """Return the whole content of a file or object.

    Raises:
        FetchError: NOT_FOUND, DENIED, THROTTLED or TIMEOUT.
    """
    data = fetch(Request(uri)).data
    if isinstance(data, FetchError):
        raise data
    return data


def get_many(uris: Iterable[str]) -> Iterator[bytes | FetchError]:
    """Yield the contents of many files or objects in order, several requests in flight; errors take their places."""
    return (fetched.data for fetched in fetch_many(Request(uri) for uri in uris))


def get_ranges(requests: Iterable[tuple[str, int, int]]) -> Iterator[bytes | FetchError]:
    """Yield parts of files or objects, `(uri, offset, length)` each, in order; errors take their places."""
    return (fetched.data for fetched in fetch_many(Request(*request) for request in requests))


def put(uri: str, data: bytes) -> Written:
    """Write a file or object so that it appears whole or not at all; return what identifies it in a listing.

    Local: a temporary name, fsync, rename. S3: one PUT.

    Raises:
        OutputError: it cannot be written.
    """
    return Written(s3.put(uri, data), None) if is_s3(uri) else Written(None, local.put(uri, data))


def put_folder(uri: str, files: dict[str, bytes], last: str) -> None:
    """Write a folder of files that counts as complete once it holds the file named `last`.

    Local: all files under a temporary name, then one rename. S3: one PUT each, `last` at the end.

    Raises:
        OutputError: it cannot be written.
    """
    names = [*(name for name in sorted(files) if name != last), last]
    if not is_s3(uri):
        local.put_folder(uri, files, names)
        return
    for name in names:
        s3.put(join(uri, name), files[name])


def delete(uri: str) -> None:
    """Remove a file or object if it exists."""
    if is_s3(uri):
        s3.delete(uri)
    else:
        Path(uri).unlink(missing_ok=True)


def delete_folder(uri: str) -> None:
    """Remove a folder, or every object below a prefix, if it exists."""
    if not is_s3(uri):
        shutil.rmtree(uri, ignore_errors=True)
    elif has_content(uri):
        for entry in list_files(uri):
            s3.delete(entry.uri)


def delete_empty(uri: str) -> None:
    """Remove a local folder if it exists and is empty; a prefix that holds no object does not exist."""
    if not is_s3(uri):
        with contextlib.suppress(OSError):
            Path(uri).rmdir()


def make_arrow_filesystem(uri: str) -> tuple[Any, str]:
    """Return the pyarrow filesystem and path of an address, with boto3's region and endpoint."""
    if is_s3(uri):
        return s3.make_arrow_filesystem(), uri.removeprefix("s3://")
    from pyarrow import fs

    return fs.LocalFileSystem(), uri


def check_writable(uri: str, option: str = "--output") -> None:
    """Raise `OutputError` if a new folder or prefix cannot be written, before any work is done for it."""
    if is_s3(uri):
        s3_listing.has_content(uri)
    else:
        local.check_writable(uri, option)


def try_writing(uri: str) -> None:
    """Write a small object below a prefix and remove it; of a local folder, check only the permissions.

    Raises:
        FetchError: the location cannot be written to.
    """
    if is_s3(uri):
        s3.try_writing(uri)
    else:
        local.try_writing(uri)
