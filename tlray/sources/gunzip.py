"""What a gzipped file unpacks to, as a file that only goes forward.

Unlike `gzip.GzipFile`, a file that is cut short gives every byte before the cut and then simply ends.
"""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from tlray.storage.files import ReadOnlyFile

_CHUNK_BYTES = 2**20
_GZIP = 16 + zlib.MAX_WBITS


class Unpacked(ReadOnlyFile):
    """Reads `file` from where it stands; gzip members that follow each other are one stream (RFC 1952, 2.2).

    Raises:
        zlib.error: from a read; what is there is not gzip.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(_GZIP)
        self._packed = b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Skip to `offset`, or to the end where that comes first."""
        target = self.position + offset if whence == io.SEEK_CUR else offset
        if target < self.position or whence == io.SEEK_END:
            raise io.UnsupportedOperation("a gzipped file is only read forward")
        while self.position < target and self.read(min(_CHUNK_BYTES, target - self.position)):
            pass
        return self.position

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Fill a buffer as far as the next packed bytes allow; 0 at the end."""
        while True:
            if self._inflater.eof:
                self._packed = self._inflater.unused_data or self._packed
                self._inflater = zlib.decompressobj(_GZIP)
            if not self._packed:
                self._packed = self._file.read(_CHUNK_BYTES)
                if not self._packed:
                    return 0
            data = self._inflater.decompress(self._packed, len(buffer))
            self._packed = b"" if self._inflater.eof else self._inflater.unconsumed_tail
            if data:
                buffer[: len(data)] = data
                self.position += len(data)
                return len(data)
