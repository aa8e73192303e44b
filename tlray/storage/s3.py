"""Read and write S3 objects: obstore reads the bodies, boto3 does everything else, with the same credentials."""

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
    """Return whether an object exists.

    Raises:
        DataError: the request fails.
    """
    bucket, key = split_s3(uri)
    try:
        with explain_as(DataError, uri, "read"):
            get_client().head_object(Bucket=bucket, Key=key, **name_payer())
    except FileNotFoundError:
        return False
    return True


def head(uri: str) -> tuple[int, str]:
    """Return the size in bytes and the etag of an object.

    Raises:
        FetchError: the request fails.
    """
    bucket, key = split_s3(uri)
    with explain_fetch():
        response = get_client().head_object(Bucket=bucket, Key=key, **name_payer())
    return response["ContentLength"], response["ETag"].strip('"')


def read(request: Request) -> bytes:
    """Read an object or a range of it, without retries, and check the length of the body.

    Raises:
        FetchError: NOT_FOUND, DENIED, THROTTLED, TIMEOUT, CHANGED or TOO_LARGE.
    """
    bucket, key = split_s3(request.uri)
    if not _is_plain_key(key):
        return read_again(request)
    import obstore

    store = get_store(bucket)
    with explain_obstore():
        if request.length is None:
            result = obstore.get(store, key)
        else:
            offset = request.offset or 0
            result = obstore.get(store, key, options={"range": (offset, offset + request.length)})
        size, etag = result.meta["size"], result.meta["e_tag"]
        check_unchanged(request, size, None if etag is None else etag.strip('"'), None)
        if request.length is None:
            check_size(request, size)
        start, end = result.range
        data = bytes(result.bytes())
    _check_length(data, end - start)
    return data


def read_again(request: Request) -> bytes:
    """Do as `read` by boto3, which uses any key as it is, and passes on after which time a store wants to be asked."""
    bucket, key = split_s3(request.uri)
    options: dict[str, str] = {}
    if request.length is not None:
        offset = request.offset or 0
        options["Range"] = f"bytes={offset}-{offset + request.length - 1}"
    with explain_fetch():
        response = get_client(1).get_object(Bucket=bucket, Key=key, **options, **name_payer())
        size = int(response.get("ContentRange", "").rpartition("/")[2] or response["ContentLength"])
        check_unchanged(request, size, response["ETag"].strip('"'), None)
        if request.length is None:
            check_size(request, size)
        data: bytes = response["Body"].read()
    _check_length(data, response["ContentLength"])
    return data


def _check_length(data: bytes, expected: int) -> None:
    if len(data) != expected:
        raise FetchError(Code.TIMEOUT, f"the connection ended after {len(data):,} of {expected:,} bytes")


def put(uri: str, data: bytes) -> str:
    """Write an object in one PUT; return its etag.

    Raises:
        OutputError: it cannot be written.
    """
    bucket, key = split_s3(uri)
    with explain_as(OutputError, uri, "written"):
        response = get_client().put_object(Bucket=bucket, Key=key, Body=data, **name_key(), **name_payer())
    etag: str = response["ETag"].strip('"')
    return etag


def put_if(uri: str, data: bytes, etag: str | None, *, unsafe: bool = False) -> str | None:
    """Write an object if none exists (`etag` None) or its etag is `etag`; return the new etag, None if not written.

    Where a store refuses conditions, `unsafe` writes without them.

    Raises:
        OutputError: it cannot be written.
    """
    from botocore.exceptions import ClientError

    bucket, key = split_s3(uri)
    options = {"Bucket": bucket, "Key": key, "Body": data, **name_key(), **name_payer()}
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
    with explain_as(OutputError, uri, "written"):
        try:
            response = get_client().put_object(**options, **condition)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (404, 409, 412):
                return None
            if status != 501:
                raise
            if not unsafe:
                raise OutputError(
                    f"{uri} lies in a store without conditional writes, where two drivers could write one output; give "
                    "another store, or --unsafe-lock if nobody else writes there"
                ) from None
            response = get_client().put_object(**options)
    written: str = response["ETag"].strip('"')
    return written


def delete(uri: str, etag: str | None = None) -> None:
    """Remove an object if it exists, and has this etag where one is given.

    Raises:
        OutputError: it cannot be removed.
    """
    bucket, key = split_s3(uri)
    with explain_as(OutputError, uri, "removed"):
        condition = {} if etag is None else {"IfMatch": f'"{etag}"'}
        get_client().delete_object(Bucket=bucket, Key=key, **condition, **name_payer())


def try_writing(uri: str) -> None:
    """Write a small object below a prefix, and remove it.

    Raises:
        FetchError: it cannot be written or removed.
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
    """Return pyarrow's filesystem of S3, with boto3's region and endpoint."""
    from pyarrow import fs

    client = get_client()
    return fs.S3FileSystem(region=client.meta.region_name, **make_endpoint("endpoint_override"))


def _is_plain_key(key: str) -> bool:
    """Return whether obstore uses a key unchanged."""
    return key.isprintable() and not {"", ".", ".."} & set(key.split("/"))
