"""Tar archives, plain or gzipped: indexed in one pass over their headers, never unpacked to disk."""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from tlray import storage
from tlray.sources import zips
from tlray.sources.candidates import Candidate, SourceKind, leads_outside, make_printable
from tlray.storage.files import ReadOnlyFile

_CHUNK_BYTES = 2**20
_GZIP = 16 + zlib.MAX_WBITS

_ARCHIVE = re.compile(r"\.(tar|tar\.gz|tgz|zip)$", re.IGNORECASE)
_MEMBER = re.compile(r"(.*?\.(?:tar|tar\.gz|tgz|zip))#(.+)", re.IGNORECASE | re.DOTALL)

_BUFFER_BYTES = 2**18
_MAX_HEADER_BYTES = 2**20

_CUT = "the archive is cut short or damaged; members after the last whole one cannot be listed"


def is_archive(uri: str) -> bool:
    """Return whether a name has an archive's extension."""
    return _ARCHIVE.search(uri) is not None


def split_member(uri: str) -> tuple[str, str] | None:
    """Split `archive#member` into archive and member; None for anything else."""
    match = _MEMBER.fullmatch(uri)
    return None if match is None else (match[1], match[2])


def resolve(uri: str) -> str:
    """Make a local path absolute; `archive#member` keeps its member."""
    parts = split_member(uri)
    return storage.resolve(uri) if parts is None else f"{storage.resolve(parts[0])}#{parts[1]}"


def index(archive: storage.Entry) -> list[Candidate]:
    """List every member of an archive in its order; if some cannot be listed, a last candidate gives the reason.

    Raises:
        FetchError: the archive cannot be read.
    """
    kind = _get_kind(archive.uri)
    with storage.open_file(archive.uri) as file:
        if kind is SourceKind.ZIP:
            return list(zips.index(archive, file))
        if kind is SourceKind.TAR:
            return list(_index_tar(archive, file, SourceKind.TAR))
        return list(_index_tar(archive, open_unpacked(file), SourceKind.TAR_GZ))


def open_unpacked(file: BinaryIO) -> BinaryIO:
    """Open the unpacked content of a gzipped archive, to be read forward through a buffer."""
    return io.BufferedReader(cast("io.FileIO", Unpacked(file)), _BUFFER_BYTES)


def _get_kind(uri: str) -> SourceKind:
    name = uri.lower()
    return SourceKind.ZIP if name.endswith(".zip") else SourceKind.TAR if name.endswith(".tar") else SourceKind.TAR_GZ


def _index_tar(archive: storage.Entry, file: BinaryIO, kind: SourceKind) -> Iterator[Candidate]:
    headers = _Headers(file)
    reached = -1
    try:
        with tarfile.open(fileobj=cast("BinaryIO", headers), mode="r:") as tar:
            while (member := tar.next()) is not None:
                if member.size < 0 or member.offset_data <= reached:
                    raise tarfile.HeaderError("sizes that lead backwards")
                reached = member.offset_data
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                yield _describe(archive, member, kind)
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError, zlib.error):
        headers.last_block = b""
    # an archive ends with a block of zeros; anything else is a damaged header or a missing end
    if headers.last_block != bytes(tarfile.BLOCKSIZE):
        yield Candidate(archive.uri, archive.name, reason=_CUT)


class _Headers:
    """The file from which tarfile reads its headers.

    It keeps the last block, since tarfile stops at a damaged header as it does at an archive's end, and refuses large
    headers, since tarfile would read a name of gigabytes whole.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.last_block = b""

    def read(self, size: int) -> bytes:
        """Read a header or its extension."""
        if size > _MAX_HEADER_BYTES:
            raise tarfile.HeaderError("a header of more than a mebibyte")
        data = self._file.read(size)
        if size >= tarfile.BLOCKSIZE:
            self.last_block = data
        return data

    def seek(self, offset: int) -> int:
        """Move to an offset."""
        return self._file.seek(offset)

    def tell(self) -> int:
        """Return the current offset."""
        return self._file.tell()


def _describe(archive: storage.Entry, member: tarfile.TarInfo, kind: SourceKind) -> Candidate:
    name = make_printable(member.name)
    source, reason = kind, None
    if member.isdir():
        reason = "a folder"
    elif leads_outside(name):
        source = SourceKind.OUTSIDE
    elif member.issym() or member.islnk():
        source = SourceKind.LINK
    elif not member.isreg() or member.issparse():
        source = SourceKind.SPECIAL
    elif kind is SourceKind.TAR and member.offset_data + member.size > archive.size:
        source = SourceKind.CUT
    return Candidate(
        uri=f"{archive.uri}#{name}",
        name=name,
        source=source,
        member=name,
        offset=member.offset_data,
        length=member.size,
        size=member.size,
        etag=archive.etag,
        mtime_ns=archive.mtime_ns,
        reason=reason,
    )


class Unpacked(ReadOnlyFile):
    """The unpacked content of a gzipped file from its current offset on.

    Consecutive gzip members are one stream (RFC 1952, 2.2).

    Raises:
        zlib.error: from a read; the content is not gzip.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(_GZIP)
        self._packed = b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Skip to `offset`, or to the end if that comes first."""
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
