"""Seekable files: local ones, and objects read by ranges."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO, cast

from tlray.errors import FetchError
from tlray.storage import local, s3
from tlray.storage.addresses import Request, is_s3
from tlray.storage.fetch import fetch

if TYPE_CHECKING:
    import pyarrow as pa

_READ_AHEAD_BYTES = 4 * 2**20


def open_file(uri: str) -> BinaryIO:
    """Open a file or object for reading and seeking; an object is read by ranges, up to 4 MiB ahead.

    Raises:
        FetchError: the file cannot be read; reads of an object raise it too.
    """
    if not is_s3(uri):
        with local.explain():
            return io.BufferedReader(cast("io.FileIO", _LocalFile(uri)))
    return io.BufferedReader(cast("io.FileIO", _RangeFile(uri)), _READ_AHEAD_BYTES)


def open_arrow(uri: str) -> pa.NativeFile:
    """Open a file or object for Arrow's readers; decompress it if its name ends in `.gz`.

    Raises:
        FetchError: the file cannot be read; reads of an object raise it too.
    """
    import pyarrow as pa

    if is_s3(uri):
        file = pa.PythonFile(open_file(uri), mode="r")
    else:
        with local.explain():
            file = pa.OSFile(uri)
    return pa.CompressedInputStream(file, "gzip") if uri.lower().endswith(".gz") else file


class _LocalFile(io.FileIO):
    """A local file whose reads raise `FetchError`, as those of an object do."""

    def readinto(self, buffer: bytearray) -> int | None:  # type: ignore[override]
        with local.explain():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with local.explain():
            return super().readall()


class ReadOnlyFile(io.RawIOBase):
    """Base of raw files that keep their own position; subclasses add `seek` and `readinto`.

    Attributes:
        position: bytes from the start.
    """

    position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True; `seek` may refuse some offsets."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self.position


class _RangeFile(ReadOnlyFile):
    """An object as a file: each read is one request for a range, and raises CHANGED if the object has changed."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._size, self._etag = s3.head(uri)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self._size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        length = min(len(buffer), self._size - self.position)
        if length <= 0:
            return 0
        data = fetch(Request(self._uri, self.position, length, self._size, self._etag)).data
        if isinstance(data, FetchError):
            raise data
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
