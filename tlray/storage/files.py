"""Files to seek in, local ones and objects alike."""

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
    """A file or object to read and seek in; an object is read by ranges, some MiB at a time.

    Raises:
        FetchError: it cannot be read; also from every read.
    """
    if not is_s3(uri):
        with local.explain():
            return open(uri, "rb")  # noqa: PTH123
    return io.BufferedReader(cast("io.FileIO", _RangeFile(uri)), _READ_AHEAD_BYTES)


def open_arrow(uri: str) -> pa.NativeFile:
    """`open_file` for Arrow's readers; gzip is undone by the name's `.gz`.

    Raises:
        FetchError: it cannot be read; also from every read of an object.
    """
    import pyarrow as pa

    if is_s3(uri):
        file = pa.PythonFile(open_file(uri), mode="r")
    else:
        with local.explain():
            file = pa.OSFile(uri)
    return pa.CompressedInputStream(file, "gzip") if uri.lower().endswith(".gz") else file


class ReadOnlyFile(io.RawIOBase):
    """What raw files that keep their own position share.

    Attributes:
        position: bytes from the start.
    """

    position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """As far as `seek` goes."""
        return True

    def tell(self) -> int:
        """Where it stands."""
        return self.position


class _RangeFile(ReadOnlyFile):
    """An object as a file; every read is one request for a range, and a changed object is an error."""

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
