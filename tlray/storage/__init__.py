"""Local paths and s3:// addresses behind one set of verbs; no module outside this package tells them apart.

`addresses` names things, `local` and `s3` (with `s3_listing` and `s3_client`) are the two kinds, `fetch` reads many at
once, `files` are to seek in, `lock` holds an output.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tlray.errors import FetchError
from tlray.storage import local, s3, s3_listing
from tlray.storage.addresses import Entry, Request, is_s3, join, redact, resolve
from tlray.storage.fetch import Fetched, fetch, fetch_many
from tlray.storage.files import open_arrow, open_file
from tlray.storage.s3_client import S3Options, configure

__all__ = [
    "Entry",
    "Fetched",
    "Request",
    "S3Options",
    "check_writable",
    "configure",
    "delete",
    "delete_folder",
    "exists",
    "fetch",
    "fetch_many",
    "find_any",
    "find_size",
    "get",
    "get_many",
    "get_ranges",
    "has_content",
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
    "try_writing",
]


def iter_files(uri: str) -> Iterator[Entry]:
    """Every file below a folder or prefix in order of its path, or the one file that `uri` is, as the listing goes on.

    Raises:
        DataError: nothing is there, or it cannot be listed.
    """
    return s3_listing.iter_files(uri) if is_s3(uri) else local.iter_files(uri)


def list_files(uri: str) -> list[Entry]:
    """`iter_files` as a list."""
    return list(iter_files(uri))


def find_any(uri: str) -> Entry:
    """Some file below a folder or prefix, with content where possible, or the one file that `uri` is; no full listing.

    Raises:
        FetchError: nothing is there, or it cannot be listed.
    """
    return s3_listing.find_any(uri) if is_s3(uri) else local.find_any(uri)


def exists(uri: str) -> bool:
    """Whether a file or object is there."""
    return s3.exists(uri) if is_s3(uri) else Path(uri).is_file()


def find_size(uri: str) -> int | None:
    """Bytes of a local file, None where there is none; 0 for an object, since asking would cost a request."""
    return 0 if is_s3(uri) else local.find_size(uri)


def has_content(uri: str) -> bool:
    """Whether a folder or prefix holds anything, or a file of that name is there."""
    return s3_listing.has_content(uri) if is_s3(uri) else local.has_content(uri)


def get(uri: str) -> bytes:
    """The whole content of a file or object.

    Raises:
        FetchError: NOT_FOUND, DENIED, THROTTLED or TIMEOUT.
    """
    data = fetch(Request(uri)).data
    if isinstance(data, FetchError):
        raise data
    return data


def get_many(uris: Iterable[str]) -> Iterator[bytes | FetchError]:
    """The contents of many files or objects, in order, several requests in flight; an error takes its file's place."""
    return (fetched.data for fetched in fetch_many(Request(uri) for uri in uris))


def get_ranges(requests: Iterable[tuple[str, int, int]]) -> Iterator[bytes | FetchError]:
    """Parts of files or objects, in order: `(uri, offset, length)` each; an error takes its part's place."""
    return (fetched.data for fetched in fetch_many(Request(*request) for request in requests))


def put(uri: str, data: bytes) -> None:
    """Write a file or object so that it appears whole or not at all.

    Local: a temporary name, fsync, rename. S3: one PUT.

    Raises:
        OutputError: it cannot be written.
    """
    if is_s3(uri):
        s3.put(uri, data)
    else:
        local.put(uri, data)


def put_folder(uri: str, files: dict[str, bytes], last: str) -> None:
    """Write a folder of files that counts as there only when the file named `last` is.

    Local: all of it under a temporary name, then one rename. S3: one PUT each, `last` at the end.

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
    """Remove a file or object, if it is there."""
    if is_s3(uri):
        s3.delete(uri)
    else:
        Path(uri).unlink(missing_ok=True)


def delete_folder(uri: str) -> None:
    """Remove a folder, or every object below a prefix, if it is there."""
    if not is_s3(uri):
        shutil.rmtree(uri, ignore_errors=True)
    elif has_content(uri):
        for entry in list_files(uri):
            s3.delete(entry.uri)


def make_arrow_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem and path of an address, with boto3's region and endpoint."""
    if is_s3(uri):
        return s3.make_arrow_filesystem(), uri.removeprefix("s3://")
    from pyarrow import fs

    return fs.LocalFileSystem(), uri


def check_writable(uri: str, option: str = "--output") -> None:
    """Raise `OutputError` where a new folder or prefix could not be written, before any work is done for it."""
    if is_s3(uri):
        s3_listing.has_content(uri)
    else:
        local.check_writable(uri, option)


def try_writing(uri: str) -> None:
    """Write a small object below a prefix and remove it; of a local folder, ask its permissions only.

    Raises:
        FetchError: it cannot be written.
    """
    if is_s3(uri):
        s3.try_writing(uri)
    else:
        local.try_writing(uri)
