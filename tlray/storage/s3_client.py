"""The clients of S3, their options, and their errors as messages of one sentence.

Both clients find credentials, region and endpoint the way boto3 does (AWS_ENDPOINT_URL included). `configure` stores
the options in the environment, which the processes of a run inherit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage.addresses import redact

OPTIONS_VARIABLE = "TLRAY_S3_OPTIONS"

ARCHIVED = {"GLACIER", "DEEP_ARCHIVE"}
"""Storage classes whose objects must be restored before they can be read."""

ARCHIVED_REASON = "archived (Glacier); restore it first"

_CONNECTIONS = 64
_STATUS = re.compile(r"status code: (\d{3})")
_CODES = {
    401: Code.DENIED,
    403: Code.DENIED,
    404: Code.NOT_FOUND,
    416: Code.CHANGED,  # the range existed when it was planned
    429: Code.THROTTLED,
    503: Code.THROTTLED,
}
_MESSAGE_BY_CODE = {
    Code.DENIED: "access denied; check the credentials and the bucket's policy",
    Code.NOT_FOUND: "the object no longer exists",
    Code.CHANGED: "changed since it was planned: it is too short for the range to read",
    Code.THROTTLED: "the store throttles requests",
}
_NO_BUCKET = "the bucket does not exist"
_NO_CREDENTIALS = "no AWS credentials were found; set a profile, environment variables or a role"
_MESSAGE_BY_NAME = {
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchKey": _MESSAGE_BY_CODE[Code.NOT_FOUND],
    "404": _MESSAGE_BY_CODE[Code.NOT_FOUND],
    "AccessDenied": _MESSAGE_BY_CODE[Code.DENIED],
    "403": _MESSAGE_BY_CODE[Code.DENIED],
    "InvalidAccessKeyId": "the access key is unknown",
    "InvalidObjectState": ARCHIVED_REASON,
    "SignatureDoesNotMatch": "the secret key does not match",
}


@dataclass(frozen=True)
class S3Options:
    """Options of every request to S3.

    Attributes:
        no_sign_request: send requests without credentials, as public buckets allow.
        request_payer: pay for requests to a requester-pays bucket.
        kms_key_id: key that encrypts written objects (SSE-KMS); None for the bucket's default.
    """

    no_sign_request: bool = False
    request_payer: bool = False
    kms_key_id: str | None = None


def configure(options: S3Options) -> None:
    """Use these options from now on, in this process and those it starts."""
    os.environ[OPTIONS_VARIABLE] = json.dumps(asdict(options))
    get_client.cache_clear()
    get_store.cache_clear()
    get_options.cache_clear()


@cache
def get_options() -> S3Options:
    """Return the options configured in this process or the one that started it."""
    return S3Options(**json.loads(os.environ.get(OPTIONS_VARIABLE, "{}")))


@cache
def get_client() -> Any:
    """Return the boto3 client of this process; clients are thread-safe."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    unsigned = {"signature_version": UNSIGNED} if get_options().no_sign_request else {}
    config = Config(max_pool_connections=_CONNECTIONS, retries={"mode": "standard", "max_attempts": 5}, **unsigned)
    return boto3.session.Session().client("s3", config=config)


@cache
def get_store(bucket: str) -> Any:
    """Return the obstore store of a bucket in this process; it never retries, since `fetch` does and counts.

    Raises:
        FetchError: DENIED, no credentials were found.
    """
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    client = get_client()
    options = get_options()
    custom: dict[str, Any] = make_endpoint("endpoint")
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
    """Return the region of a bucket: unlike boto3, obstore does not follow redirects to it."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = get_client()
    try:
        headers = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:
        headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
    except BotoCoreError:
        headers = {}
    region: str = headers.get("x-amz-bucket-region") or client.meta.region_name
    return region


def make_endpoint(name: str) -> dict[str, Any]:
    """Return the endpoint as an option called `name`, or no option for AWS's own endpoint."""
    endpoint: str = get_client().meta.endpoint_url
    return {} if endpoint.endswith(".amazonaws.com") else {name: endpoint}


def name_payer() -> dict[str, str]:
    """Return the request parameters for requester-pays buckets."""
    return {"RequestPayer": "requester"} if get_options().request_payer else {}


def name_key() -> dict[str, str]:
    """Return the request parameters for encryption with a key."""
    key = get_options().kms_key_id
    return {} if key is None else {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}


@contextlib.contextmanager
def explain_as(kind: type[DataError | OutputError], uri: str, doing: str) -> Iterator[None]:
    """Turn boto3's errors into `kind`, or FileNotFoundError if a HEAD finds no object."""
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
def explain_fetch() -> Iterator[None]:
    """Turn boto3's errors into `FetchError`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise FetchError(_CODES.get(status, Code.TIMEOUT), _explain(error)) from None
    except BotoCoreError as error:
        message = _explain(error)
        raise FetchError(Code.DENIED if message == _NO_CREDENTIALS else Code.TIMEOUT, message) from None


@contextlib.contextmanager
def explain_obstore() -> Iterator[None]:
    """Turn obstore's errors into `FetchError`."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        text = str(error)
        if "<Code>NoSuchBucket" in text:
            raise FetchError(Code.DENIED, _NO_BUCKET) from None
        if "<Code>InvalidObjectState" in text:
            raise FetchError(Code.NOT_FOUND, ARCHIVED_REASON) from None
        status = _STATUS.search(text)
        code = _CODES.get(int(status[1]), Code.TIMEOUT) if status else Code.TIMEOUT
        raise FetchError(code, _MESSAGE_BY_CODE.get(code) or _shorten(error)) from None


def _explain(error: Exception) -> str:
    """Return an error of boto3 as one sentence without secrets."""
    response: dict[str, Any] = getattr(error, "response", {})
    code = response.get("Error", {}).get("Code", "")
    if type(error).__name__ == "NoCredentialsError":
        return _NO_CREDENTIALS
    return _MESSAGE_BY_NAME.get(code) or _shorten(error)


def _shorten(error: Exception) -> str:
    return redact(str(error).splitlines()[0])[:300] if str(error) else type(error).__name__
