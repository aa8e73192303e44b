"""What every request to S3 needs: switches, one client a process, one store a bucket, and errors in one sentence.

Both clients find credentials, region and endpoint the way boto3 does (AWS_ENDPOINT_URL included). `configure` sets the
usual switches in the environment, where the processes of a run find them.
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
"""Storage classes whose objects can only be read after they were restored."""

ARCHIVED_REASON = "archived (Glacier); restore it first"

_CONNECTIONS = 64
_STATUS = re.compile(r"status code: (\d{3})")
_CODES = {
    401: Code.DENIED,
    403: Code.DENIED,
    404: Code.NOT_FOUND,
    416: Code.CHANGED,  # the range was there when it was planned
    429: Code.THROTTLED,
    503: Code.THROTTLED,
}
_SAID_BY_CODE = {
    Code.DENIED: "access denied; check the credentials and the bucket's policy",
    Code.NOT_FOUND: "the object is not there any more",
    Code.CHANGED: "not what was planned: it ends before the range that was",
    Code.THROTTLED: "the store asks to slow down",
}
_NO_BUCKET = "the bucket does not exist"
_NO_CREDENTIALS = "no AWS credentials were found; set a profile, environment variables or a role"
_SAID_BY_NAME = {
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchKey": _SAID_BY_CODE[Code.NOT_FOUND],
    "404": _SAID_BY_CODE[Code.NOT_FOUND],
    "AccessDenied": _SAID_BY_CODE[Code.DENIED],
    "403": _SAID_BY_CODE[Code.DENIED],
    "InvalidAccessKeyId": "the access key is not known",
    "InvalidObjectState": ARCHIVED_REASON,
    "SignatureDoesNotMatch": "the secret key does not match",
}


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
    get_client.cache_clear()
    get_store.cache_clear()
    get_options.cache_clear()


@cache
def get_options() -> S3Options:
    """The switches that were configured in this process or the one that started it."""
    return S3Options(**json.loads(os.environ.get(OPTIONS_VARIABLE, "{}")))


@cache
def get_client() -> Any:
    """One boto3 client a process; clients are thread-safe."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    unsigned = {"signature_version": UNSIGNED} if get_options().no_sign_request else {}
    config = Config(max_pool_connections=_CONNECTIONS, retries={"mode": "standard", "max_attempts": 5}, **unsigned)
    return boto3.session.Session().client("s3", config=config)


@cache
def get_store(bucket: str) -> Any:
    """One obstore store a process and bucket; it doesn't retry by itself, since `fetch` does and counts."""
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
    """A bucket's own region: boto3 follows S3's redirects there, obstore does not."""
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
    """The endpoint as the option `name`, where it isn't AWS's own."""
    endpoint: str = get_client().meta.endpoint_url
    return {} if endpoint.endswith(".amazonaws.com") else {name: endpoint}


def name_payer() -> dict[str, str]:
    """What a request says of who pays."""
    return {"RequestPayer": "requester"} if get_options().request_payer else {}


def name_key() -> dict[str, str]:
    """What a write says of its encryption."""
    key = get_options().kms_key_id
    return {} if key is None else {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}


@contextlib.contextmanager
def explain_as(kind: type[DataError | OutputError], uri: str, doing: str) -> Iterator[None]:
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
def explain_fetch() -> Iterator[None]:
    """boto3's errors as those of one input."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise FetchError(_CODES.get(status, Code.TIMEOUT), _explain(error)) from None
    except BotoCoreError as error:
        said = _explain(error)
        raise FetchError(Code.DENIED if said == _NO_CREDENTIALS else Code.TIMEOUT, said) from None


@contextlib.contextmanager
def explain_obstore() -> Iterator[None]:
    """obstore's errors as those of one input."""
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
        raise FetchError(code, _SAID_BY_CODE.get(code) or _shorten(error)) from None


def _explain(error: Exception) -> str:
    """One sentence on what S3 said, without secrets."""
    response: dict[str, Any] = getattr(error, "response", {})
    code = response.get("Error", {}).get("Code", "")
    if type(error).__name__ == "NoCredentialsError":
        return _NO_CREDENTIALS
    return _SAID_BY_NAME.get(code) or _shorten(error)


def _shorten(error: Exception) -> str:
    return redact(str(error).splitlines()[0])[:300] if str(error) else type(error).__name__
