"""The candidate, a row that might be labelled, and the checks of its name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from tlray.errors import Code
from tlray.images.formats import EXTENSIONS


class SourceKind(StrEnum):
    """The way to read a row's bytes; rows of a kind in `REFUSED` are never read."""

    FILE = "file"
    TAR = "tar"
    TAR_SPARSE = "tar.sparse"
    TAR_PACKED = "tar.packed"
    TAR_PACKED_SPARSE = "tar.packed.sparse"
    ZIP = "zip"
    PARQUET = "parquet"
    LINK = "link"
    SPECIAL = "special"
    OUTSIDE = "outside"
    ENCRYPTED = "encrypted"
    DEFLATE64 = "deflate64"
    LZMA = "lzma"
    ZSTANDARD = "zstandard"
    OTHER_METHOD = "other method"
    CUT = "cut"


PACKED = (SourceKind.TAR_PACKED, SourceKind.TAR_PACKED_SPARSE)
"""Kinds that one pass over an archive reads."""

_REPACK = "pack it again by Deflate, or as tar"
REFUSED = {
    SourceKind.LINK: (Code.UNSUPPORTED, "a link inside an archive to no file in it; such links are not followed"),
    SourceKind.SPECIAL: (Code.UNSUPPORTED, "not a plain file inside its archive"),
    SourceKind.OUTSIDE: (Code.UNSUPPORTED, "its name leads out of its archive"),
    SourceKind.ENCRYPTED: (Code.UNSUPPORTED, "encrypted inside its archive"),
    SourceKind.DEFLATE64: (
        Code.UNSUPPORTED,
        "packed by Deflate64, as Windows packs zips over 2 GB; pack it again with 7-Zip by Deflate, or as tar",
    ),
    SourceKind.LZMA: (Code.UNSUPPORTED, f"packed by LZMA inside its archive; {_REPACK}"),
    SourceKind.ZSTANDARD: (Code.UNSUPPORTED, f"packed by Zstandard inside its archive; {_REPACK}"),
    SourceKind.OTHER_METHOD: (Code.UNSUPPORTED, f"packed by a method that is not read inside its archive; {_REPACK}"),
    SourceKind.CUT: (Code.TRUNCATED, "its archive ends before it does"),
}
"""Status and error of the rows that are never read, since their archive's index already shows the fault."""


_SYSTEM_FILES = {".ds_store", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini"}
_SYSTEM_FOLDERS = {"@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}


class Candidate(NamedTuple):
    """A file, an object, a member of an archive or a row of a table.

    Attributes:
        uri: address; a member's is `archive#member`.
        name: path below the input or inside the archive, which --include and --exclude match.
        source: kind of source.
        member: name inside an archive, or row in a table; None for a file.
        offset: start of its bytes in the archive (packed tar: in the unpacked content; zip: of its local header); its
            row in a table.
        length: bytes to read from there.
        size: bytes of the encoded image, None where unknown.
        etag, mtime_ns: of the file or archive as it was listed, None where unknown.
        crc32: checksum of a zip's member in the archive's directory, None for others.
        inputs: a manifest's or table's own columns.
        reason: reason for leaving it out, None if it is taken.
        named: whether a list or --input names this very file, so that it is taken whatever its extension.
    """

    uri: str
    name: str
    source: SourceKind = SourceKind.FILE
    member: str | None = None
    offset: int | None = None
    length: int | None = None
    size: int | None = None
    etag: str | None = None
    mtime_ns: int | None = None
    crc32: int | None = None
    inputs: dict[str, Any] | None = None
    reason: str | None = None
    named: bool = False


def has_image_name(name: str) -> bool:
    """Return whether a file's name has a known image extension, in any case, or none at all."""
    base = PurePosixPath(name).name
    extension = base if base.startswith(".") and base.count(".") == 1 else PurePosixPath(base).suffix
    return not extension or extension.lower() in EXTENSIONS


def find_litter(name: str) -> str | None:
    """Return why a name below an input is not that of an image which somebody put there, None if it may be.

    Systems and tools leave files beside images, some under an image's extension.
    """
    *folders, base = name.split("/")
    if base.startswith("._") or "__MACOSX" in folders:
        return "a resource fork of macOS"
    if base.lower() in _SYSTEM_FILES:
        return "a system's own file"
    hidden = [folder for folder in folders if folder.startswith(".") and folder not in (".", "..")]
    if hidden or any(folder.lower() in _SYSTEM_FOLDERS for folder in folders):
        return "in a hidden or a system's own folder"
    return None


def strip_here(name: str) -> str:
    """Return a member's name without a leading `./`."""
    while name.startswith("./"):
        name = name[2:]
    return name


def leads_outside(name: str) -> bool:
    """Return whether unpacking a member of this name could write outside the target folder."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or (len(parts[0]) == 2 and parts[0][1] == ":")


def make_printable(name: str) -> str:
    """Escape the bytes of a name that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
