"""S3's objects: boto3 heads, writes and says what is wrong; obstore carries the bodies with the same credentials."""

from __future__ import annotations

import secrets
from typing import Any

from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage.addresses import Request, join, split_s3
from tlray.storage.local import check_size, check_unchanged
from tlray.storage.s3_client import (
    explain_as,
    explain_fetch,
    explain_obstore,
    get_client,
    get_store,
    make_endpoint,
    name_key,
    name_payer,
)


def exists(uri: str) -> bool:
    """Whether an object is there.

    Raises:
        DataError: it cannot be asked.
    """
    bucket, key = split_s3(uri)
    try:
        with explain_as(DataError, uri, "read"):
            get_client().head_object(Bucket=bucket, Key=key, **name_payer())
    except FileNotFoundError:
        return False
    return True


def head(uri: str) -> tuple[int, str]:
    """Size in bytes and etag of an object.

    Raises:
        FetchError: it cannot be had.
    """
    bucket, key = split_s3(uri)
    with explain_fetch():
        answer = get_client().head_object(Bucket=bucket, Key=key, **name_payer())
    return answer["ContentLength"], answer["ETag"].strip('"')


def read(request: Request) -> bytes:
    """Read an object, or a range of it, once; the body's full length is checked.

    Raises:
        FetchError: NOT_FOUND, DENIED, THROTTLED, TIMEOUT, CHANGED or TOO_LARGE.
    """
    bucket, key = split_s3(request.uri)
    if not _is_plain_key(key):
        return _read_odd_key(bucket, key, request)
    import obstore

    store = get_store(bucket)
    with explain_obstore():
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
    with explain_fetch():
        answer = get_client().get_object(Bucket=bucket, Key=key, **wanted, **name_payer())
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


def open_connection(uri: str) -> None:
    """Make the store of an address once, before many threads would each make their own."""
    get_store(split_s3(uri)[0])


def put(uri: str, data: bytes) -> None:
    """Write an object by one PUT.

    Raises:
        OutputError: it cannot be written.
    """
    bucket, key = split_s3(uri)
    with explain_as(OutputError, uri, "written"):
        get_client().put_object(Bucket=bucket, Key=key, Body=data, **name_key(), **name_payer())


def put_if(uri: str, data: bytes, etag: str | None) -> str | None:
    """Write an object only where none is, or where `etag` is the one that is there; its new etag, None if not written.

    Raises:
        OutputError: it cannot be written.
    """
    from botocore.exceptions import ClientError

    bucket, key = split_s3(uri)
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
    with explain_as(OutputError, uri, "written"):
        try:
            answer = get_client().put_object(
                Bucket=bucket, Key=key, Body=data, **condition, **name_key(), **name_payer()
            )
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (404, 409, 412):
                return None
            if status != 501:
                raise
            # a store without conditional writes: the caller reads back what it wrote
            answer = get_client().put_object(Bucket=bucket, Key=key, Body=data, **name_key(), **name_payer())
    written: str = answer["ETag"].strip('"')
    return written


def delete(uri: str) -> None:
    """Remove an object, if it is there."""
    bucket, key = split_s3(uri)
    with explain_as(OutputError, uri, "removed"):
        get_client().delete_object(Bucket=bucket, Key=key, **name_payer())


def try_writing(uri: str) -> None:
    """Write a small object below a prefix, and remove it.

    Raises:
        FetchError: it cannot be written, or not be removed.
    """
    bucket, key = split_s3(join(uri, f".tlray-doctor-{secrets.token_hex(4)}"))
    with explain_fetch():
        get_client().put_object(Bucket=bucket, Key=key, Body=b"tlray doctor\n", **name_key(), **name_payer())
    try:
        with explain_fetch():
            get_client().delete_object(Bucket=bucket, Key=key, **name_payer())
    except FetchError as error:
        raise FetchError(error.code, f"{key} was written but cannot be removed: {error}") from None


def make_arrow_filesystem() -> Any:
    """pyarrow's filesystem with boto3's region and endpoint."""
    from pyarrow import fs

    client = get_client()
    return fs.S3FileSystem(region=client.meta.region_name, **make_endpoint("endpoint_override"))


def _is_plain_key(key: str) -> bool:
    """Whether obstore's path rules leave a key as it is."""
    return key.isprintable() and not {"", ".", ".."} & set(key.split("/"))
