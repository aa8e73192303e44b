"""Local paths and s3:// addresses behind one set of verbs; no other module tells them apart.

boto3 lists, heads, writes and says what is wrong, by its own credential chain and endpoint settings (AWS_ENDPOINT_URL);
obstore carries the bodies with the same credentials. A key is used raw: it is never percent-decoded or parsed again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tlray.errors import Code, DataError, FetchError, OutputError

FETCH_THREADS = 16
"""Requests that one process keeps in flight."""


class Entry(NamedTuple):
    """One file or object.

    Attributes:
        uri: absolute local path or s3:// address.
        name: its path below what was listed, with slashes; the file's own name where a single file was listed.
        size: bytes.
        etag: S3's, without quotes; None for a local file.
        mtime_ns: modification time in nanoseconds since the epoch.
    """

    uri: str
    name: str
    size: int
    etag: str | None
    mtime_ns: int


def is_s3(uri: str) -> bool:
    """Whether an address points into object storage."""
    return uri.startswith("s3://")


def resolve(uri: str) -> str:
    """A local path made absolute; an s3:// address without its trailing slash."""
    return uri.rstrip("/") if is_s3(uri) else str(Path(uri).expanduser().absolute())


def join(uri: str, *names: str) -> str:
    """The address of something below `uri`."""
    return "/".join((uri.rstrip("/"), *names))


def redact(text: str) -> str:
    """Take access keys, signatures and passwords in addresses out of a text."""
    text = re.sub(r"(?i)([?&](?:x-amz-[a-z-]+|signature|awsaccesskeyid|token)=)[^&\s\"'<>]+", r"\1***", text)
    text = re.sub(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b", "***", text)
    return re.sub(r"(://)[^/\s:@]+:[^/\s@]+@", r"\1***@", text)


def list_files(uri: str) -> list[Entry]:
    """Every file below a folder or prefix in order of its name, or the one file that `uri` is.

    Raises:
        DataError: nothing is there, or it cannot be listed.
    """
    return _list_s3(uri) if is_s3(uri) else _list_local(uri)


def exists(uri: str) -> bool:
    """Whether a file or object is there."""
    if not is_s3(uri):
        return Path(uri).is_file()
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _split_s3(uri)
    try:
        _get_client().head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return False
        raise DataError(f"{uri} cannot be read: {_explain_s3(error)}") from None
    except BotoCoreError as error:
        raise DataError(f"{uri} cannot be read: {_explain_s3(error)}") from None
    return True


def has_content(uri: str) -> bool:
    """Whether a folder or prefix holds anything, or a file of that name is there."""
    if not is_s3(uri):
        path = Path(uri)
        return path.is_file() or (path.is_dir() and any(path.iterdir()))
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _split_s3(uri)
    prefix = f"{key}/" if key else ""
    try:
        return bool(_get_client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"))
    except (ClientError, BotoCoreError) as error:
        raise OutputError(f"{uri} cannot be listed: {_explain_s3(error)}") from None


def get(uri: str) -> bytes:
    """The whole content of a file or object.

    Raises:
        FetchError: NOT_FOUND, DENIED, THROTTLED or TIMEOUT.
    """
    return _get_s3(uri) if is_s3(uri) else _get_local(uri)


def get_many(uris: Iterable[str]) -> Iterator[bytes | FetchError]:
    """The contents of many files or objects, in order, several requests in flight; an error takes its file's place."""
    uris = list(uris)
    if not any(is_s3(uri) for uri in uris):
        yield from (_try(get, uri) for uri in uris)
        return
    for bucket in {_split_s3(uri)[0] for uri in uris if is_s3(uri)}:
        _get_store(bucket)  # made once, before many threads would each make their own
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        yield from pool.map(lambda uri: _try(get, uri), uris)


def get_ranges(requests: Iterable[tuple[str, int, int]]) -> Iterator[bytes | FetchError]:
    """Parts of files or objects, in order: `(uri, offset, length)` each; an error takes its part's place."""
    requests = list(requests)
    if not any(is_s3(uri) for uri, _, _ in requests):
        yield from (_try(_get_local_range, *request) for request in requests)
        return
    for bucket in {_split_s3(uri)[0] for uri, _, _ in requests}:
        _get_store(bucket)
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        yield from pool.map(lambda request: _try(_get_s3_range, *request), requests)


def put(uri: str, data: bytes) -> None:
    """Write a file or object so that it appears whole or not at all.

    Local: a temporary name, fsync, rename. S3: one PUT.

    Raises:
        OutputError: it cannot be written.
    """
    if is_s3(uri):
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, key = _split_s3(uri)
        try:
            _get_client().put_object(Bucket=bucket, Key=key, Body=data)
        except (ClientError, BotoCoreError) as error:
            raise OutputError(f"{uri} cannot be written: {_explain_s3(error)}") from None
        return
    path = Path(uri)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{uri} cannot be written: {error.strerror}") from None


def put_folder(uri: str, files: dict[str, bytes], last: str) -> None:
    """Write a folder of files that counts as there only when the file named `last` is.

    Local: all of it under a temporary name, then one rename. S3: one PUT each, `last` at the end.

    Raises:
        OutputError: it cannot be written.
    """
    names = [*(name for name in sorted(files) if name != last), last]
    if is_s3(uri):
        for name in names:
            put(join(uri, name), files[name])
        return
    path = Path(uri)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        for name in names:
            put(join(str(partial), name), files[name])
        if path.is_dir():
            path.rmdir()  # an empty folder that the user made beforehand
        partial.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{uri} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def delete(uri: str) -> None:
    """Remove a file or object, if it is there."""
    if is_s3(uri):
        bucket, key = _split_s3(uri)
        _get_client().delete_object(Bucket=bucket, Key=key)
    else:
        Path(uri).unlink(missing_ok=True)


def delete_folder(uri: str) -> None:
    """Remove a folder, or every object below a prefix, if it is there."""
    if not is_s3(uri):
        shutil.rmtree(uri, ignore_errors=True)
        return
    if has_content(uri):
        for entry in _list_s3(uri):
            delete(entry.uri)


def make_arrow_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem and path of an address, with boto3's region and endpoint."""
    from pyarrow import fs

    if not is_s3(uri):
        return fs.LocalFileSystem(), uri
    client = _get_client()
    endpoint: str = client.meta.endpoint_url
    custom: dict[str, Any] = {} if endpoint.endswith(".amazonaws.com") else {"endpoint_override": endpoint}
    return fs.S3FileSystem(region=client.meta.region_name, **custom), uri.removeprefix("s3://")


def check_writable(uri: str, option: str = "--output") -> None:
    """Raise `OutputError` where a new folder or prefix could not be written, before any work is done for it."""
    if is_s3(uri):
        has_content(uri)
        return
    parent = Path(uri)
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{option} {uri} cannot be written: {parent} is not a folder that you may write to")


def _list_local(uri: str) -> list[Entry]:
    root = Path(uri)
    if root.is_file():
        return [_stat_local(root, root.name)]
    if not root.is_dir():
        raise DataError(f"{uri} does not exist; give an existing folder or file, or an s3:// address")
    entries = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            path = Path(folder, name)
            if path.exists():
                entries.append(_stat_local(path, path.relative_to(root).as_posix()))
    return sorted(entries, key=lambda entry: entry.name)


def _stat_local(path: Path, name: str) -> Entry:
    status = path.stat()
    return Entry(str(path), name, status.st_size, None, status.st_mtime_ns)


def _list_s3(uri: str) -> list[Entry]:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _split_s3(uri)
    prefix = f"{key}/" if key else ""
    try:
        entries = list(_iter_objects(bucket, prefix))
        if not entries and key:
            entries = [entry for entry in _iter_objects(bucket, key) if entry.uri == uri]
            entries = [entry._replace(name=key.rpartition("/")[2]) for entry in entries]
    except (ClientError, BotoCoreError) as error:
        raise DataError(f"{uri} cannot be listed: {_explain_s3(error)}") from None
    if not entries:
        raise DataError(f"{uri} holds no objects; give a prefix or an object that exists")
    return sorted(entries, key=lambda entry: entry.name)


def _iter_objects(bucket: str, prefix: str) -> Iterator[Entry]:
    for page in _get_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            key: str = item["Key"]
            yield Entry(
                uri=f"s3://{bucket}/{key}",
                name=key[len(prefix) :],
                size=item["Size"],
                etag=item["ETag"].strip('"'),
                mtime_ns=int(item["LastModified"].timestamp() * 1e9),
            )


def _try(fetch: Callable[..., bytes], *arguments: Any) -> bytes | FetchError:
    try:
        return fetch(*arguments)
    except FetchError as error:
        return error


def _get_local(uri: str) -> bytes:
    with _explain_local():
        return Path(uri).read_bytes()


def _get_local_range(uri: str, offset: int, length: int) -> bytes:
    with _explain_local(), Path(uri).open("rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


@contextlib.contextmanager
def _explain_local() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise FetchError(Code.NOT_FOUND, "the file is not there any more") from None
    except PermissionError:
        raise FetchError(Code.DENIED, "the file may not be read") from None
    except OSError as error:
        code = Code.TIMEOUT if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT) else Code.NOT_FOUND
        raise FetchError(code, f"the file cannot be read: {error.strerror}") from None


def _get_s3(uri: str) -> bytes:
    bucket, key = _split_s3(uri)
    if not _is_plain_key(key):
        return _get_s3_odd_key(bucket, key)
    import obstore

    with _explain_obstore():
        return bytes(obstore.get(_get_store(bucket), key).bytes())


def _get_s3_range(uri: str, offset: int, length: int) -> bytes:
    bucket, key = _split_s3(uri)
    if not _is_plain_key(key):
        return _get_s3_odd_key(bucket, key)[offset : offset + length]
    import obstore

    with _explain_obstore():
        return bytes(obstore.get_range(_get_store(bucket), key, start=offset, length=length))


@contextlib.contextmanager
def _explain_obstore() -> Iterator[None]:
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except FileNotFoundError:
        raise FetchError(Code.NOT_FOUND, "the object is not there any more") from None
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
        raise FetchError(Code.DENIED, _shorten(error)) from None
    except (BaseError, OSError) as error:
        text = str(error)
        code = Code.THROTTLED if "503" in text or "SlowDown" in text else Code.TIMEOUT
        raise FetchError(code, _shorten(error)) from None


def _get_s3_odd_key(bucket: str, key: str) -> bytes:
    """Keys that obstore would normalise or refuse go through boto3, which takes them as they are."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        body: bytes = _get_client().get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = {403: Code.DENIED, 404: Code.NOT_FOUND, 503: Code.THROTTLED}.get(status, Code.TIMEOUT)
        raise FetchError(code, _explain_s3(error)) from None
    except BotoCoreError as error:
        raise FetchError(Code.TIMEOUT, _explain_s3(error)) from None
    return body


def _is_plain_key(key: str) -> bool:
    """Whether obstore's path rules leave a key as it is."""
    return key.isprintable() and not {"", ".", ".."} & set(key.split("/"))


def _split_s3(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@cache
def _get_client() -> Any:
    """One boto3 client a process; clients are thread-safe."""
    import boto3

    return boto3.session.Session().client("s3")


@cache
def _get_store(bucket: str) -> Any:
    """One obstore store a process and bucket, with boto3's credentials, region and endpoint."""
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    client = _get_client()
    endpoint: str = client.meta.endpoint_url
    custom: dict[str, Any] = {} if endpoint.endswith(".amazonaws.com") else {"endpoint": endpoint}
    return S3Store(
        bucket,
        region=client.meta.region_name,
        credential_provider=Boto3CredentialProvider(boto3.session.Session()),
        client_options={"allow_http": endpoint.startswith("http://")},
        **custom,
    )


def _explain_s3(error: Exception) -> str:
    """One sentence on what S3 said, without secrets."""
    response: dict[str, Any] = getattr(error, "response", {})
    code = response.get("Error", {}).get("Code", "")
    known = {
        "NoSuchBucket": "the bucket does not exist",
        "AccessDenied": "access denied; check the credentials and the bucket's policy",
        "403": "access denied; check the credentials and the bucket's policy",
        "InvalidAccessKeyId": "the access key is not known",
        "SignatureDoesNotMatch": "the secret key does not match",
    }
    if type(error).__name__ == "NoCredentialsError":
        return "no AWS credentials were found; set a profile, environment variables or a role"
    return known.get(code) or _shorten(error)


def _shorten(error: Exception) -> str:
    return redact(str(error).splitlines()[0])[:300] if str(error) else type(error).__name__


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
