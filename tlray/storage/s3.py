"""S3: boto3 lists, heads, writes and says what is wrong; obstore carries the bodies with the same credentials.

Both find credentials, region and endpoint the way boto3 does (AWS_ENDPOINT_URL included). `configure` sets the usual
switches in the environment, where the processes of a run find them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from itertools import islice
from queue import SimpleQueue
from typing import Any

from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage.addresses import Entry, Request, redact, split_s3
from tlray.storage.local import check_size, check_unchanged

OPTIONS_VARIABLE = "TLRAY_S3_OPTIONS"

ARCHIVED = {"GLACIER", "DEEP_ARCHIVE"}
"""Storage classes whose objects can only be read after they were restored."""

ARCHIVED_REASON = "archived (Glacier); restore it first"

_LIST_THREADS = 16
_PAGE_KEYS = 1000
_CONNECTIONS = 64
_CODES = {
    401: Code.DENIED,
    403: Code.DENIED,
    404: Code.NOT_FOUND,
    416: Code.CHANGED,  # the range was there when it was planned
    429: Code.THROTTLED,
    503: Code.THROTTLED,
}
_STATUS = re.compile(r"status code: (\d{3})")


@dataclass(frozen=True)
class S3Options:
    """S3's usual switches.

    Attributes:
        no_sign_request: ask without credentials, as public buckets allow.
        request_payer: pay for requests to a bucket whose owner doesn't.
        kms_key_id: key of the server-side encryption (SSE-KMS) of what is written; None for the bucket's own default.
    """

    no_sign_request: bool = False
    request_payer: bool = False
    kms_key_id: str | None = None


def configure(options: S3Options) -> None:
    """Use these switches from now on, in this process and those it starts."""
    os.environ[OPTIONS_VARIABLE] = json.dumps(asdict(options))
    _get_client.cache_clear()
    _get_store.cache_clear()
    get_options.cache_clear()


@cache
def get_options() -> S3Options:
    """The switches that were configured in this process or the one that started it."""
    return S3Options(**json.loads(os.environ.get(OPTIONS_VARIABLE, "{}")))


_NO_CREDENTIALS = "no AWS credentials were found; set a profile, environment variables or a role"
_SAID = {
    Code.DENIED: "access denied; check the credentials and the bucket's policy",
    Code.NOT_FOUND: "the object is not there any more",
    Code.CHANGED: "not what was planned: it ends before the range that was",
    Code.THROTTLED: "the store asks to slow down",
}


def exists(uri: str) -> bool:
    """Whether an object is there.

    Raises:
        DataError: it cannot be asked.
    """
    bucket, key = split_s3(uri)
    try:
        with _explain_as(DataError, uri, "read"):
            _get_client().head_object(Bucket=bucket, Key=key, **_payer())
    except FileNotFoundError:
        return False
    return True


def head(uri: str) -> tuple[int, str]:
    """Size in bytes and etag of an object.

    Raises:
        FetchError: it cannot be had.
    """
    bucket, key = split_s3(uri)
    with _explain_fetch():
        answer = _get_client().head_object(Bucket=bucket, Key=key, **_payer())
    return answer["ContentLength"], answer["ETag"].strip('"')


def has_content(uri: str) -> bool:
    """Whether a prefix holds anything.

    Raises:
        OutputError: it cannot be listed.
    """
    bucket, key = split_s3(uri)
    prefix = f"{key}/" if key else ""
    with _explain_as(OutputError, uri, "listed"):
        return bool(_get_client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1, **_payer()).get("Contents"))


def iter_files(uri: str) -> Iterator[Entry]:
    """Every object below a prefix in order of its key, or the one object that `uri` is.

    The prefixes below are listed side by side and wait on disk for their turn, so that memory stays bounded.

    Raises:
        DataError: nothing is there, or it cannot be listed.
    """
    bucket, key = split_s3(uri)
    prefix = f"{key}/" if key else ""
    found = False
    with _explain_as(DataError, uri, "listed"):
        for entry in _iter_tree(bucket, prefix):
            found = True
            yield entry
        if not found and key:
            for entry in _iter_objects(bucket, key, ""):
                if entry.uri == uri:
                    yield entry._replace(name=key.rpartition("/")[2])
                    return
    if not found:
        raise DataError(f"{uri} holds no objects; give a prefix or an object that exists")


def _iter_tree(bucket: str, prefix: str) -> Iterator[Entry]:
    here, children = _list_level(bucket, prefix)
    below = prefix
    while len(children) == 1 and not here:
        below = children[0]
        here, children = _list_level(bucket, below)
    if len(children) < 2:
        yield from _iter_objects(bucket, below, prefix)
        return
    with tempfile.TemporaryDirectory(prefix="tlray-list-") as folder, ThreadPoolExecutor(_LIST_THREADS) as pool:
        spools = {name: _Spool(os.path.join(folder, str(index))) for index, name in enumerate(children)}  # noqa: PTH118
        try:
            for name, spool in spools.items():
                pool.submit(spool.fill, bucket, name, prefix)
            for name in sorted([*here, *children]):
                if name in spools:
                    yield from spools[name]
                else:
                    yield here[name]
        finally:
            for spool in spools.values():
                spool.stop()
            pool.shutdown(cancel_futures=True)


def _list_level(bucket: str, prefix: str) -> tuple[dict[str, Entry], list[str]]:
    """The objects right below a prefix, by key, and the prefixes there; none of either where they are many."""
    objects: dict[str, Entry] = {}
    children: list[str] = []
    pages = _get_client().get_paginator("list_objects_v2")
    for number, page in enumerate(pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/", **_payer())):
        objects.update((item["Key"], _make_entry(bucket, prefix, item)) for item in page.get("Contents", ()))
        children += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
        if number == 10:  # a flat prefix of very many objects: one after the other
            return {}, []
    return objects, children


def _iter_objects(bucket: str, prefix: str, base: str) -> Iterator[Entry]:
    """Objects whose keys start with `prefix`, named by what follows `base`."""
    for page in _get_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **_payer()):
        for item in page.get("Contents", ()):
            yield _make_entry(bucket, base, item)


def _make_entry(bucket: str, base: str, item: dict[str, Any]) -> Entry:
    key: str = item["Key"]
    modified = int(item["LastModified"].timestamp() * 1e9)
    archived = ARCHIVED_REASON if item.get("StorageClass") in ARCHIVED else None
    return Entry(f"s3://{bucket}/{key}", key[len(base) :], item["Size"], item["ETag"].strip('"'), modified, archived)


class _Spool:
    """The listing of one prefix, kept on disk from when a thread lists it until it is its turn."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pages: SimpleQueue[int | Exception | None] = SimpleQueue()
        self._stopped = False

    def fill(self, bucket: str, prefix: str, base: str) -> None:
        """List a prefix; the queue gets the length of each page, then None or what went wrong."""
        entries = _iter_objects(bucket, prefix, base)
        try:
            with open(self._path, "ab", buffering=0) as file:  # noqa: PTH123
                while not self._stopped and (page := list(islice(entries, _PAGE_KEYS))):
                    data = pickle.dumps([tuple(entry) for entry in page])
                    file.write(data)
                    self._pages.put(len(data))
        except Exception as error:
            self._pages.put(error)
        else:
            self._pages.put(None)

    def stop(self) -> None:
        """List no further."""
        self._stopped = True

    def __iter__(self) -> Iterator[Entry]:
        position = 0
        while (length := self._pages.get()) is not None:
            if isinstance(length, Exception):
                raise length
            with open(self._path, "rb") as file:  # noqa: PTH123
                file.seek(position)
                yield from (Entry(*item) for item in pickle.loads(file.read(length)))
            position += length
        if position:
            os.unlink(self._path)  # noqa: PTH108


def read(request: Request) -> bytes:
    """Read an object, or a range of it, once; the body's full length is checked.

    Raises:
        FetchError: NOT_FOUND, DENIED, THROTTLED, TIMEOUT, CHANGED or TOO_LARGE.
    """
    bucket, key = split_s3(request.uri)
    if not _is_plain_key(key):
        return _read_odd_key(bucket, key, request)
    import obstore

    store = _get_store(bucket)
    with _explain_obstore():
        if request.length is None:
            answer = obstore.get(store, key)
        else:
            offset = request.offset or 0
            answer = obstore.get(store, key, options={"range": (offset, offset + request.length)})
        size, etag = answer.meta["size"], answer.meta["e_tag"]
        check_unchanged(request, size, None if etag is None else etag.strip('"'), None)
        if request.length is None:
            check_size(request, size)
        start, end = answer.range
        data = bytes(answer.bytes())
    _check_length(data, end - start)
    return data


def _read_odd_key(bucket: str, key: str, request: Request) -> bytes:
    """Keys that obstore would normalise or refuse go through boto3, which takes them as they are."""
    wanted: dict[str, str] = {}
    if request.length is not None:
        offset = request.offset or 0
        wanted["Range"] = f"bytes={offset}-{offset + request.length - 1}"
    with _explain_fetch():
        answer = _get_client().get_object(Bucket=bucket, Key=key, **wanted, **_payer())
        whole = int(answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"])
        check_unchanged(request, whole, answer["ETag"].strip('"'), None)
        if request.length is None:
            check_size(request, whole)
        data: bytes = answer["Body"].read()
    _check_length(data, answer["ContentLength"])
    return data


def _check_length(data: bytes, expected: int) -> None:
    if len(data) != expected:
        raise FetchError(Code.TIMEOUT, f"the connection ended after {len(data):,} of {expected:,} bytes")


def open_connections(uris: Iterator[str]) -> None:
    """Make the stores of these addresses once, before many threads would each make their own."""
    for bucket in {split_s3(uri)[0] for uri in uris}:
        _get_store(bucket)


def put(uri: str, data: bytes) -> None:
    """Write an object by one PUT.

    Raises:
        OutputError: it cannot be written.
    """
    bucket, key = split_s3(uri)
    with _explain_as(OutputError, uri, "written"):
        _get_client().put_object(Bucket=bucket, Key=key, Body=data, **_encryption(), **_payer())


def put_if(uri: str, data: bytes, etag: str | None) -> str | None:
    """Write an object only where none is, or where `etag` is the one that is there; its new etag, None if not written.

    Raises:
        OutputError: it cannot be written.
    """
    from botocore.exceptions import ClientError

    bucket, key = split_s3(uri)
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
    with _explain_as(OutputError, uri, "written"):
        try:
            answer = _get_client().put_object(
                Bucket=bucket, Key=key, Body=data, **condition, **_encryption(), **_payer()
            )
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (404, 409, 412):
                return None
            if status != 501:
                raise
            # a store without conditional writes: the caller reads back what it wrote
            answer = _get_client().put_object(Bucket=bucket, Key=key, Body=data, **_encryption(), **_payer())
    written: str = answer["ETag"].strip('"')
    return written


def delete(uri: str) -> None:
    """Remove an object, if it is there."""
    bucket, key = split_s3(uri)
    with _explain_as(OutputError, uri, "removed"):
        _get_client().delete_object(Bucket=bucket, Key=key, **_payer())


def make_arrow_filesystem() -> Any:
    """pyarrow's filesystem with boto3's region and endpoint."""
    from pyarrow import fs

    client = _get_client()
    return fs.S3FileSystem(region=client.meta.region_name, **_endpoint("endpoint_override"))


@cache
def _get_client() -> Any:
    """One boto3 client a process; clients are thread-safe."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    unsigned = {"signature_version": UNSIGNED} if get_options().no_sign_request else {}
    config = Config(max_pool_connections=_CONNECTIONS, retries={"mode": "standard", "max_attempts": 5}, **unsigned)
    return boto3.session.Session().client("s3", config=config)


@cache
def _get_store(bucket: str) -> Any:
    """One obstore store a process and bucket; it doesn't retry by itself, since `fetch` does and counts."""
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    client = _get_client()
    options = get_options()
    custom: dict[str, Any] = _endpoint("endpoint")
    if options.no_sign_request:
        custom["skip_signature"] = True
    else:
        session = boto3.session.Session()
        if session.get_credentials() is None:
            raise FetchError(Code.DENIED, _NO_CREDENTIALS)
        custom["credential_provider"] = Boto3CredentialProvider(session)
    if options.request_payer:
        custom["request_payer"] = True
    return S3Store(
        bucket,
        region=_find_region(bucket),
        client_options={
            "allow_http": client.meta.endpoint_url.startswith("http://"),
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(seconds=300),
            "read_timeout": timedelta(seconds=30),
        },
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        **custom,
    )


def _find_region(bucket: str) -> str:
    """A bucket's own region: boto3 follows S3's redirects there, obstore does not."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = _get_client()
    try:
        headers = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:
        headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
    except BotoCoreError:
        headers = {}
    region: str = headers.get("x-amz-bucket-region") or client.meta.region_name
    return region


def _endpoint(name: str) -> dict[str, Any]:
    endpoint: str = _get_client().meta.endpoint_url
    return {} if endpoint.endswith(".amazonaws.com") else {name: endpoint}


def _payer() -> dict[str, str]:
    return {"RequestPayer": "requester"} if get_options().request_payer else {}


def _encryption() -> dict[str, str]:
    key = get_options().kms_key_id
    return {} if key is None else {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}


def _is_plain_key(key: str) -> bool:
    """Whether obstore's path rules leave a key as it is."""
    return key.isprintable() and not {"", ".", ".."} & set(key.split("/"))


@contextlib.contextmanager
def _explain_as(kind: type[DataError | OutputError], uri: str, doing: str) -> Iterator[None]:
    """S3's errors in one sentence; FileNotFoundError where an object isn't there."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404 and error.operation_name == "HeadObject":
            raise FileNotFoundError(uri) from None
        raise kind(f"{redact(uri)} cannot be {doing}: {_explain(error)}") from None
    except BotoCoreError as error:
        raise kind(f"{redact(uri)} cannot be {doing}: {_explain(error)}") from None


@contextlib.contextmanager
def _explain_fetch() -> Iterator[None]:
    """boto3's errors as those of one input."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise FetchError(_CODES.get(status, Code.TIMEOUT), _explain(error)) from None
    except BotoCoreError as error:
        raise FetchError(Code.TIMEOUT, _explain(error)) from None


@contextlib.contextmanager
def _explain_obstore() -> Iterator[None]:
    """obstore's errors as those of one input."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        text = str(error)
        if "<Code>NoSuchBucket" in text:
            raise FetchError(Code.DENIED, "the bucket does not exist") from None
        if "<Code>InvalidObjectState" in text:
            raise FetchError(Code.NOT_FOUND, ARCHIVED_REASON) from None
        status = _STATUS.search(text)
        code = _CODES.get(int(status[1]), Code.TIMEOUT) if status else Code.TIMEOUT
        raise FetchError(code, _SAID.get(code) or _shorten(error)) from None


def _explain(error: Exception) -> str:
    """One sentence on what S3 said, without secrets."""
    response: dict[str, Any] = getattr(error, "response", {})
    code = response.get("Error", {}).get("Code", "")
    known = {
        "NoSuchBucket": "the bucket does not exist",
        "NoSuchKey": "the object is not there any more",
        "404": "the object is not there any more",
        "AccessDenied": "access denied; check the credentials and the bucket's policy",
        "403": "access denied; check the credentials and the bucket's policy",
        "InvalidAccessKeyId": "the access key is not known",
        "SignatureDoesNotMatch": "the secret key does not match",
    }
    if type(error).__name__ == "NoCredentialsError":
        return _NO_CREDENTIALS
    return known.get(code) or _shorten(error)


def _shorten(error: Exception) -> str:
    return redact(str(error).splitlines()[0])[:300] if str(error) else type(error).__name__
