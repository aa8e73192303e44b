"""Tar archives, plain or packed: indexed in one pass over their headers, never unpacked to disk.

A plain one is read by ranges; one packed by gzip, bzip2, xz or Zstandard in one pass.
"""

from __future__ import annotations

import bz2
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol, cast

from tlray import storage
from tlray.errors import Code, FetchError
from tlray.sources import zips
from tlray.sources.candidates import Candidate, SourceKind, leads_outside, make_printable, strip_here
from tlray.sources.sidecars import Sidecars
from tlray.storage.files import ReadOnlyFile

_CHUNK_BYTES = 2**20
_GZIP = 16 + zlib.MAX_WBITS
_SIGNATURES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of a Zstandard frame that holds no content, as pzstd begins with (RFC 8878, 3.1.2)."""
_TAR_SIGNATURE = slice(257, 262)

_EXTENSIONS = r"\.(?:tar|tar\.gz|tar\.bz2|tar\.xz|tar\.zst|tgz|tbz|tbz2|txz|tzst|zip)"
_ARCHIVE = re.compile(_EXTENSIONS + "$", re.IGNORECASE)
_MEMBER = re.compile(f"(.*?{_EXTENSIONS})#(.+)", re.IGNORECASE | re.DOTALL)

DAMAGE = (zlib.error, lzma.LZMAError, EOFError, OSError)
"""Exceptions that reading damaged packed content raises."""

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


def index(archive: storage.Entry, sidecars: Sequence[str] = ()) -> list[Candidate]:
    """List every member of an archive in its order; if some cannot be listed, a last candidate gives the reason.

    Args:
        archive: the archive.
        sidecars: extensions of members that tell of an image, see `Sidecars`.

    Raises:
        FetchError: the archive cannot be read.
    """
    collected = Sidecars(sidecars)
    with storage.open_file(archive.uri) as file:
        kind = _find_kind(file, archive.uri)
        if kind is SourceKind.ZIP:
            members = list(zips.index(archive, file))
            zips.read_sidecars(file, members, collected)
        else:
            plain = file if kind is SourceKind.TAR else open_unpacked(file)
            members = list(_index_tar(archive, plain, kind, collected))
    if kind is SourceKind.TAR_PACKED:  # a hard link behind its target, so that one pass reads both
        members.sort(key=lambda member: (member.offset is None, member.offset or 0))
    return collected.attach(members) if sidecars else members


def open_unpacked(file: BinaryIO) -> BinaryIO:
    """Open the unpacked content of a packed archive, to be read forward with a buffer."""
    packing = _find_packing(file)
    unpacked: ForwardFile
    if packing == "bzip2":
        unpacked = ForwardFile(bz2.BZ2File(file))
    elif packing == "xz":
        unpacked = ForwardFile(lzma.LZMAFile(file))  # noqa: SIM115  (it goes with the file)
    elif packing == "zstd":
        import pyarrow as pa

        unpacked = ForwardFile(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))
    else:
        unpacked = Unpacked(file)
    return io.BufferedReader(cast("io.FileIO", unpacked), _BUFFER_BYTES)


def _find_packing(file: BinaryIO) -> str:
    """Return how a file is packed, by its first bytes: `tar` or nothing if it is not; it is at its start again."""
    file.seek(0)
    head = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    if head[_TAR_SIGNATURE] == b"ustar":  # first: a member's name may begin with a signature
        return "tar"
    if head[1:4] == _SKIPPABLE:
        return "zstd"
    return next((packing for signature, packing in _SIGNATURES.items() if head.startswith(signature)), "")


def _find_kind(file: BinaryIO, uri: str) -> SourceKind:
    """Return an archive's kind: by its content, or by its extension if the content is of no known kind."""
    name = uri.lower()
    if name.endswith(".zip") and zipfile.is_zipfile(file):  # which reads its end alone
        return SourceKind.ZIP
    packing = _find_packing(file)
    if packing in ("zip", "tar"):
        return SourceKind.ZIP if packing == "zip" else SourceKind.TAR
    if packing:
        return SourceKind.TAR_PACKED
    return (
        SourceKind.ZIP if name.endswith(".zip") else SourceKind.TAR if name.endswith(".tar") else SourceKind.TAR_PACKED
    )


def _index_tar(archive: storage.Entry, file: BinaryIO, kind: SourceKind, sidecars: Sidecars) -> Iterator[Candidate]:
    """Yield the members, and collect the sidecars among them; archives that were put together are read as one."""
    headers = _Headers(file)
    reached = -1
    places: dict[str, tuple[int, int]] = {}
    try:
        while not headers.is_exhausted():
            with tarfile.open(fileobj=cast("BinaryIO", headers), mode="r:") as tar:
                while (member := tar.next()) is not None:
                    if member.size < 0 or member.offset_data <= reached:
                        raise tarfile.HeaderError("sizes that lead backwards")
                    reached = member.offset_data
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                    if member.islnk() and member.linkname in places:  # another name for bytes in the same archive
                        member.type = tarfile.REGTYPE
                        member.offset_data, member.size = places[member.linkname]
                    elif member.isreg() and not member.issparse():
                        places[member.name] = (member.offset_data, member.size)
                    described = _describe(archive, member, kind, tar.offset)
                    if member.isreg() and sidecars.includes(described.name, member.size):
                        sidecars.add(described, cast("BinaryIO", tar.extractfile(member)).read())
                    yield described
            # an archive ends with a block of zeros; anything else is a damaged header or a missing end
            if headers.last_block != bytes(tarfile.BLOCKSIZE):
                raise tarfile.HeaderError("no end")
    except (tarfile.TarError, ValueError, RecursionError, *DAMAGE):
        yield Candidate(archive.uri, archive.name, reason=_CUT)


def fill_holes(record: bytes, size: int) -> bytes | FetchError:
    """Return the `size` bytes of a sparse member, from its header and data."""
    try:
        with tarfile.open(fileobj=io.BytesIO(record), mode="r:") as tar:
            member = tar.next()
            if member is not None and member.size == size and (file := tar.extractfile(member)):
                return file.read()
    except (tarfile.TarError, ValueError):
        pass
    return FetchError(Code.CORRUPT, "its header in the archive is damaged")


class _Headers:
    """The file from which tarfile reads its headers.

    It keeps the last block, since tarfile stops at a damaged header as it does at an archive's end, and refuses large
    headers, since tarfile would read a name of gigabytes whole.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ahead = b""
        self.last_block = b""

    def is_exhausted(self) -> bool:
        """Return whether nothing but zeros follows; else the next read begins behind them."""
        while block := self._file.read(tarfile.BLOCKSIZE):
            if block.strip(b"\0"):
                self._ahead = block
                return False
        return self._file.tell() > 0

    def read(self, size: int) -> bytes:
        """Read a header or its extension."""
        if size > _MAX_HEADER_BYTES:
            raise tarfile.HeaderError("a header of more than a mebibyte")
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        data += self._file.read(size - len(data))
        if size >= tarfile.BLOCKSIZE:
            self.last_block = data
        return data

    def seek(self, offset: int) -> int:
        """Move to an offset."""
        self._ahead = b""
        return self._file.seek(offset)

    def tell(self) -> int:
        """Return the current offset."""
        return self._file.tell() - len(self._ahead)


def _describe(archive: storage.Entry, member: tarfile.TarInfo, kind: SourceKind, end: int) -> Candidate:
    """Return a member as a candidate; `end` is the offset behind its data."""
    name = make_printable(strip_here(member.name))
    source, reason = kind, None
    offset, length = member.offset_data, member.size
    if member.issparse():  # its header tells where its holes are
        source = SourceKind.TAR_SPARSE if kind is SourceKind.TAR else SourceKind.TAR_PACKED_SPARSE
        offset, length = member.offset, end - member.offset
    if member.isdir():
        reason = "a folder"
    elif leads_outside(name):
        source = SourceKind.OUTSIDE
    elif member.issym() or member.islnk():
        source = SourceKind.LINK
    elif not member.isreg():
        source = SourceKind.SPECIAL
    elif kind is SourceKind.TAR and offset + length > archive.size:
        source = SourceKind.CUT
    return Candidate(
        uri=f"{archive.uri}#{name}",
        name=name,
        source=source,
        member=name,
        offset=offset,
        length=length,
        size=member.size,
        etag=archive.etag,
        mtime_ns=archive.mtime_ns,
        reason=reason,
    )


class Readable(Protocol):
    """A stream that is read forward."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""


class ForwardFile(ReadOnlyFile):
    """A file that is only sought forward, over a stream of unpacked content."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Skip to `offset`, or to the end if that comes first."""
        target = self.position + offset if whence == io.SEEK_CUR else offset
        if target < self.position or whence == io.SEEK_END:
            raise io.UnsupportedOperation("a packed file is only read forward")
        while self.position < target and self.read(min(_CHUNK_BYTES, target - self.position)):
            pass
        return self.position

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Fill a buffer; 0 at the end."""
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


class Unpacked(ForwardFile):
    """The unpacked content of a gzipped file from its current offset on.

    Consecutive gzip members are one stream (RFC 1952, 2.2); what follows them is ignored, as gzip does.

    Raises:
        zlib.error: from a read; the content is not gzip.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._inflater = zlib.decompressobj(_GZIP)
        self._packed = b""

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Fill a buffer as far as the next packed bytes allow; 0 at the end."""
        while True:
            if self._inflater.eof:
                self._packed = self._inflater.unused_data or self._packed
                if len(self._packed) < 2:
                    self._packed += self._stream.read(_CHUNK_BYTES)
                if not self._packed.startswith(b"\x1f\x8b"):  # padding, or the end
                    return 0
                self._inflater = zlib.decompressobj(_GZIP)
            if not self._packed:
                self._packed = self._stream.read(_CHUNK_BYTES)
                if not self._packed:
                    return 0
            data = self._inflater.decompress(self._packed, len(buffer))
            self._packed = b"" if self._inflater.eof else self._inflater.unconsumed_tail
            if data:
                buffer[: len(data)] = data
                self.position += len(data)
                return len(data)
