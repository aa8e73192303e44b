"""Parse, join and redact addresses: local paths and s3:// URIs. Keys are used as given, never percent-decoded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One file or object.

    Attributes:
        uri: absolute local path or s3:// address.
        name: path below the listed folder or prefix, with slashes; the file's own name where a single file was listed.
        size: bytes.
        etag: S3 etag without quotes; None for a local file.
        mtime_ns: modification time in nanoseconds since the epoch.
        ctime_ns: time of the last change of a local file's content or status; 0 if unknown.
        unreadable: reason why it cannot be read, None where it can.
    """

    uri: str
    name: str
    size: int
    etag: str | None
    mtime_ns: int
    unreadable: str | None = None
    ctime_ns: int = 0

    @property
    def version(self) -> str:
        """Size, and etag or times, which change with the content; "" if neither is known."""
        if self.etag is not None:
            return f"{self.size} {self.etag}"
        return f"{self.size} {self.mtime_ns} {self.ctime_ns}" if self.ctime_ns else ""


class Written(NamedTuple):
    """The identity of a file or object that was just written: its etag, or a local file's modification time."""

    etag: str | None
    mtime_ns: int | None


class Request(NamedTuple):
    """A file, object or range to read, and the version it must still have.

    Attributes:
        uri: file or object.
        offset, length: range to read, in bytes; None for the whole file.
        size, etag, mtime_ns: of the whole file when it was planned, None where unknown; a difference is CHANGED.
        max_bytes: bytes that a whole file may hold, None for any; a larger one is TOO_LARGE and is not read.
        room: bytes for which there is memory now, None for any; a larger object is a `LargerError` and is not read.
    """

    uri: str
    offset: int | None = None
    length: int | None = None
    size: int | None = None
    etag: str | None = None
    mtime_ns: int | None = None
    max_bytes: int | None = None
    room: int | None = None


class LargerError(Exception):
    """An object of unknown size that holds more than its request has room for.

    Attributes:
        size: bytes of the object.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def is_s3(uri: str) -> bool:
    """Return whether an address points into S3."""
    return uri.startswith("s3://")


def split_s3(uri: str) -> tuple[str, str]:
    """Return the bucket and raw key of an s3:// address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def resolve(uri: str) -> str:
    """Return a local path as absolute, or an s3:// address without trailing slashes."""
    return uri.rstrip("/") if is_s3(uri) else str(Path(uri).expanduser().absolute())


def join(uri: str, *names: str) -> str:
    """Return the address of `names` below `uri`."""
    return "/".join((uri.rstrip("/"), *names))


def redact(text: str) -> str:
    """Replace access keys, signatures and passwords in a text by ***."""
    text = re.sub(
        r"(?i)([?&](?:x-amz-[a-z-]+|x-goog-[a-z-]+|signature|sig|awsaccesskeyid|key-pair-id|policy|token)=)[^&\s\"'<>]+",
        r"\1***",
        text,
    )
    text = re.sub(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b", "***", text)
    text = re.sub(
        r"(?i)((?:secret|access)[a-z_ -]{0,20}key[a-z_ ]{0,4}[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+", r"\1***", text
    )
    # a user name, with or without a password that may hold slashes; keys such as icon@2x.png stay
    return re.sub(r"(://)(?:[^/\s@\"'<>]+|[^/\s:@\"'<>]+:[^\s@\"'<>]+)@", r"\1***@", text)
