"""Zip archives: listed by their directory, or by their local headers if it is missing; read by ranges.

The layout is that of PKWARE's APPNOTE 6.3, sections 4.3 and 4.4.
"""

from __future__ import annotations

import bz2
import contextlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from tlray import storage
from tlray.errors import Code, FetchError
from tlray.sources.candidates import Candidate, SourceKind, leads_outside, make_printable, strip_here
from tlray.sources.sidecars import Sidecars

_LOCAL = struct.Struct("<4s5H3I2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_DESCRIPTOR_SIGNATURE = b"PK\x07\x08"
_HEADER_SLACK_BYTES = 1024
_ENCRYPTED = 0x1
_SIZES_FOLLOW = 0x8
_UTF8 = 0x800
_UNICODE_PATH = 0x7075
_READ_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_OTHER_METHODS = {9: SourceKind.DEFLATE64, 14: SourceKind.LZMA, 93: SourceKind.ZSTANDARD}
_CHUNK_BYTES = 2**20
_BEFORE = "another archive stands before this one in the file; its members are not listed"
_CUT = "the archive is cut short or damaged; its directory is missing, and any further members cannot be listed"


def index(archive: storage.Entry, file: BinaryIO) -> Iterator[Candidate]:
    """List every member in the directory's order; without a directory, the members found by their local headers."""
    try:
        members = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        yield from _recover(archive, file)
        return
    if members and min(member.header_offset for member in members) > 0 and _starts_archive(file):
        yield Candidate(archive.uri, archive.name, reason=_BEFORE)
    for member in members:
        found = _read_name(member)
        name = make_printable(_normalize(found))
        source, reason = SourceKind.ZIP, None
        if name.endswith("/"):
            reason = "a folder"
        elif leads_outside(found):
            source = SourceKind.OUTSIDE
        elif stat.S_ISLNK(member.external_attr >> 16):
            source = SourceKind.LINK
        elif member.flag_bits & _ENCRYPTED:
            source = SourceKind.ENCRYPTED
        elif not 0 <= member.header_offset <= archive.size - member.compress_size:
            source = SourceKind.CUT
        elif member.compress_type not in _READ_METHODS:
            source = _OTHER_METHODS.get(member.compress_type, SourceKind.OTHER_METHOD)
        place = (member.header_offset, member.compress_size, member.file_size, member.CRC)
        yield _make(archive, name, source, *place, reason)


def _starts_archive(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(4) == _LOCAL_SIGNATURE


def _read_name(member: zipfile.ZipInfo) -> str:
    """Return a member's name: by its Unicode extra field, else as UTF-8 where it may be that, else as cp437."""
    extra = member.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == _UNICODE_PATH and length > 5:
            return extra[9 : 4 + length].decode("utf-8", "surrogateescape")
        extra = extra[4 + length :]
    return member.filename if member.flag_bits & _UTF8 else _decode_name(member.orig_filename.encode("cp437"))


def _decode_name(raw: bytes) -> str:
    try:
        return raw.decode()  # most tools that write UTF-8 do not set its flag
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _normalize(name: str) -> str:
    """Return a member's name with slashes, as some tools of Windows do not write them."""
    return strip_here(name.replace("\\", "/"))


def _recover(archive: storage.Entry, file: BinaryIO) -> Iterator[Candidate]:
    """List members by their local headers, from the start to the first damaged one."""
    offset = 0
    while True:
        file.seek(offset)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(_LOCAL_SIGNATURE):
            break
        _, _, flags, method, _, _, checksum, packed, unpacked, name_length, extra_length = _LOCAL.unpack(header)
        raw = file.read(name_length)
        typed = raw.decode("utf-8", "surrogateescape") if flags & _UTF8 else _decode_name(raw)
        name = make_printable(_normalize(typed))
        data = offset + _LOCAL.size + name_length + extra_length
        source = SourceKind.ENCRYPTED if flags & _ENCRYPTED else SourceKind.ZIP
        if flags & _SIZES_FOLLOW:
            file.seek(data)
            sizes = _measure(file, method)
            if sizes is None:
                yield _make(archive, name, SourceKind.CUT, offset, None, None, None, None)
                break
            packed, unpacked = sizes
            file.seek(data + packed)
            descriptor = file.read(16)
            signed = descriptor.startswith(_DESCRIPTOR_SIGNATURE)
            checksum = int.from_bytes(descriptor[4:8] if signed else descriptor[:4], "little")
            end = data + packed + (16 if signed else 12)
        else:
            end = data + packed
            if end > archive.size:
                source = SourceKind.CUT
        if leads_outside(typed):
            source = SourceKind.OUTSIDE
        reason = "a folder" if name.endswith("/") else None
        yield _make(archive, name, source, offset, packed, unpacked, checksum, reason)
        offset = end
    yield Candidate(archive.uri, archive.name, reason=_CUT)


def _measure(file: BinaryIO, method: int) -> tuple[int, int] | None:
    """Count the packed and unpacked bytes of a deflated member whose header lacks them; None if its end is missing."""
    if method != zipfile.ZIP_DEFLATED:
        return None
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = unpacked = 0
    while not inflater.eof:
        chunk = inflater.unconsumed_tail or file.read(_CHUNK_BYTES)
        if not chunk:
            return None
        packed += len(chunk)
        try:
            unpacked += len(inflater.decompress(chunk, _CHUNK_BYTES))
        except zlib.error:
            return None
        packed -= len(inflater.unconsumed_tail) + len(inflater.unused_data)
    return packed, unpacked


def _make(
    archive: storage.Entry,
    name: str,
    source: SourceKind,
    offset: int,
    length: int | None,
    size: int | None,
    crc32: int | None,
    reason: str | None,
) -> Candidate:
    return Candidate(
        uri=f"{archive.uri}#{name}",
        name=name,
        source=source,
        member=name,
        offset=offset,
        length=length,
        size=size,
        etag=archive.etag,
        mtime_ns=archive.mtime_ns,
        crc32=crc32,
        reason=reason,
    )


def read_sidecars(file: BinaryIO, members: Iterable[Candidate], sidecars: Sidecars) -> None:
    """Collect the sidecars among the members, without those that cannot be read."""
    for member in members:
        if member.source is SourceKind.ZIP and member.size is not None and sidecars.includes(member.name, member.size):
            file.seek(member.offset or 0)
            head = file.read(get_span(member.length or 0))
            with contextlib.suppress(FetchError):
                start = find_data(head)
                data = head[start : start + (member.length or 0)]
                sidecars.add(member, unpack(head, data, member.size, member.crc32))


def get_span(length: int) -> int:
    """Return how many bytes to read from a member's local header on, so that they nearly always include its data."""
    return _LOCAL.size + _HEADER_SLACK_BYTES + length


def find_data(head: bytes) -> int:
    """Return the offset of a member's data from its local header.

    Raises:
        FetchError: CORRUPT; the local header is missing.
    """
    if len(head) < _LOCAL.size or not head.startswith(_LOCAL_SIGNATURE):
        raise FetchError(Code.CORRUPT, "no local header where the archive's directory says it is")
    *_, name_length, extra_length = _LOCAL.unpack_from(head)
    return _LOCAL.size + int(name_length) + int(extra_length)


def unpack(head: bytes, data: bytes, size: int, crc32: int | None) -> bytes:
    """Unpack a member.

    Args:
        head: its local header.
        data: its packed bytes.
        size: unpacked bytes in the archive's index; at most one more is unpacked.
        crc32: checksum in the archive's index, which archives written as a stream have nowhere else.

    Raises:
        FetchError: UNSUPPORTED, TRUNCATED or CORRUPT.
    """
    method = _LOCAL.unpack_from(head)[3]
    try:
        if method == zipfile.ZIP_STORED:
            unpacked = data
        elif method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
            inflater: Any = zlib.decompressobj(-zlib.MAX_WBITS) if method == 8 else bz2.BZ2Decompressor()
            unpacked = inflater.decompress(data, size + 1)
        else:
            raise FetchError(Code.UNSUPPORTED, f"packed by method {method} inside its archive")
    except (zlib.error, OSError, EOFError) as error:
        raise FetchError(Code.CORRUPT, f"cannot be unpacked from its archive: {error}") from None
    if len(unpacked) != size:
        raise FetchError(Code.CORRUPT, f"does not unpack to the {size:,} bytes that its archive states")
    if crc32 is not None and zlib.crc32(unpacked) != crc32:
        raise FetchError(Code.CORRUPT, "its checksum is not the one in its archive")
    return unpacked
