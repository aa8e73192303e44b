"""Addresses: local paths and s3:// uris, used raw; a key is never percent-decoded or parsed again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One file or object.

    Attributes:
        uri: absolute local path or s3:// address.
        name: its path below what was listed, with slashes; the file's own name where a single file was listed.
        size: bytes.
        etag: S3's, without quotes; None for a local file.
        mtime_ns: modification time in nanoseconds since the epoch.
        unreadable: why it cannot be read at all, None where it can.
    """

    uri: str
    name: str
    size: int
    etag: str | None
    mtime_ns: int
    unreadable: str | None = None


class Request(NamedTuple):
    """What is to be read, and what it must still be.

    Attributes:
        uri: file or object.
        offset, length: the range of bytes wanted; None for all of it.
        size, etag, mtime_ns: of the whole file as it was planned, None where unknown; another one now is CHANGED.
        max_bytes: a larger file is TOO_LARGE, and is not read.
    """

    uri: str
    offset: int | None = None
    length: int | None = None
    size: int | None = None
    etag: str | None = None
    mtime_ns: int | None = None
    max_bytes: int | None = None


def is_s3(uri: str) -> bool:
    """Whether an address points into object storage."""
    return uri.startswith("s3://")


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and raw key of an s3:// address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def resolve(uri: str) -> str:
    """A local path made absolute; an s3:// address without its trailing slash."""
    return uri.rstrip("/") if is_s3(uri) else str(Path(uri).expanduser().absolute())


def join(uri: str, *names: str) -> str:
    """The address of something below `uri`."""
    return "/".join((uri.rstrip("/"), *names))


def redact(text: str) -> str:
    """Take access keys, signatures and passwords in addresses out of a text."""
    text = re.sub(
        r"(?i)([?&](?:x-amz-[a-z-]+|x-goog-[a-z-]+|signature|sig|awsaccesskeyid|key-pair-id|policy|token)=)[^&\s\"'<>]+",
        r"\1***",
        text,
    )
    text = re.sub(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b", "***", text)
    text = re.sub(
        r"(?i)((?:secret|access)[a-z_ -]{0,20}key[a-z_ ]{0,4}[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+", r"\1***", text
    )
    # a user name, or one with a password, which may hold slashes; keys such as icon@2x.png stay
    return re.sub(r"(://)(?:[^/\s@\"'<>]+|[^/\s:@\"'<>]+:[^\s@\"'<>]+)@", r"\1***@", text)
