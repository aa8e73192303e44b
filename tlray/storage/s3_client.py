"""The clients of S3, their options, and their errors as messages of one sentence.

Both clients find credentials, region and endpoint the way boto3 does (AWS_ENDPOINT_URL included). `configure` stores
the options in the environment, which the processes of a run inherit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from tlray.console import say
from tlray.errors import Code, DataError, FetchError, OutageError, OutputError
from tlray.storage.addresses import redact

OPTIONS_VARIABLE = "TLRAY_S3_OPTIONS"

ARCHIVED = {"GLACIER", "DEEP_ARCHIVE"}
"""Storage classes whose objects must be restored before they can be read."""

ARCHIVED_REASON = "archived (Glacier); restore it first"

_CONNECTIONS = 64
_CREDENTIALS_LAST = timedelta(minutes=30)
_LONGEST_PAUSE_S = 5.0
_USUAL_HOST = re.compile(r"s3(\.[a-z]{2}(-[a-z]+)+-\d)?\.amazonaws\.com(\.cn)?")
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
        retry_for_s: seconds of retries before a file or object counts as out of reach.
        outage_patience_s: seconds of waiting for a store of which nothing can be read.
    """

    no_sign_request: bool = False
    request_payer: bool = False
    kms_key_id: str | None = None
    retry_for_s: float = 60.0
    outage_patience_s: float = 300.0


def configure(options: S3Options) -> None:
    """Use these options from now on, in this process and those it starts."""
    os.environ[OPTIONS_VARIABLE] = json.dumps(asdict(options))
    _make_client.cache_clear()
    _make_store.cache_clear()
    get_options.cache_clear()


def adopt(options: S3Options) -> None:
    """Use the options of the driver in a process that may have been started before them, as a notebook's are."""
    if options != get_options():
        configure(options)


@cache
def get_options() -> S3Options:
    """Return the options configured in this process or the one that started it."""
    return S3Options(**json.loads(os.environ.get(OPTIONS_VARIABLE, "{}")))


_MAKING = threading.RLock()
"""Held while a client is made, so that one thread makes it while others wait for it."""


def get_client(max_attempts: int = 5) -> Any:
    """Return the boto3 client of this process that makes a request so often; clients are thread-safe."""
    with _MAKING:
        return _make_client(max_attempts)


@cache
def _make_client(max_attempts: int) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    unsigned = {"signature_version": UNSIGNED} if get_options().no_sign_request else {}
    retries = {"mode": "standard", "total_max_attempts": max_attempts}
    config = Config(max_pool_connections=_CONNECTIONS, retries=retries, **unsigned)
    client = boto3.session.Session().client("s3", config=config)
    if max_attempts > 1:
        client.meta.events.register_last("needs-retry.s3", _Outages().choose_pause)
    return client


class _Outages:
    """Makes requests of boto3 again while the store does not answer, for up to `outage_patience_s`.

    botocore asks after each try, its own retries included, for the seconds to wait before another one. A store that
    has never answered this process is not waited for: mostly its address is wrong.
    """

    def __init__(self) -> None:
        self._has_answered = False

    def choose_pause(
        self, response: Any, caught_exception: Exception | None, request_dict: dict[str, Any], **_: Any
    ) -> float | None:
        """Return the seconds to wait before another try, None for no other try."""
        lost = caught_exception is not None and _is_lost(caught_exception)
        if not lost and (response is None or not _is_busy(response[0].status_code)):
            self._has_answered = True
            return None
        patience_s = get_options().outage_patience_s
        context = request_dict["context"]
        began: float = context.setdefault("tlray_outage_began", time.monotonic())
        waited_s = time.monotonic() - began
        if not self._has_answered or waited_s >= patience_s:
            self._has_answered = False  # whatever is asked for next does not wait as long again
            return None
        if not context.get("tlray_outage_said"):
            context["tlray_outage_said"] = True
            say(f"the object store does not answer; waiting up to {patience_s:.0f} s for it")
        return min(_LONGEST_PAUSE_S, max(0.5, waited_s))


def _is_busy(status: int) -> bool:
    """Return whether an HTTP status says that the same request may succeed later."""
    return status >= 500 or status == 429


def _is_lost(error: Exception) -> bool:
    """Return whether a store cannot be reached, or lost a connection."""
    from botocore import exceptions

    lost = isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError)
    return lost and not isinstance(error, exceptions.SSLError)


def get_store(bucket: str) -> Any:
    """Return the obstore store of a bucket in this process; it never retries, since `fetch` does and counts.

    Raises:
        FetchError: DENIED, no credentials were found.
    """
    with _MAKING:
        return _make_store(bucket)


@cache
def _make_store(bucket: str) -> Any:
    from obstore.store import S3Store

    options = get_options()
    region, custom = locate(bucket)
    if options.no_sign_request:
        custom["skip_signature"] = True
    else:
        custom["credential_provider"] = Credentials(find_credentials())
    if options.request_payer:
        custom["request_payer"] = True
    return S3Store(
        bucket,
        region=region,
        client_options={
            "allow_http": custom.get("endpoint", "").startswith("http://"),
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(seconds=300),
            "read_timeout": timedelta(seconds=30),
        },
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        **custom,
    )


def find_credentials() -> Any:
    """Return botocore's credentials, which renew themselves.

    Raises:
        FetchError: DENIED, none were found.
    """
    import boto3

    credentials = boto3.session.Session().get_credentials()
    if credentials is None:
        raise FetchError(Code.DENIED, _NO_CREDENTIALS)
    return credentials


class Credentials:
    """Credentials as obstore asks for them, with the end that botocore knows: obstore renews them before it.

    obstore's own provider says that they last for 30 minutes, where botocore's may end after 10.
    """

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        """Return the current keys, with a token if they are temporary."""
        frozen = self._credentials.get_frozen_credentials()
        known: datetime | None = getattr(self._credentials, "_expiry_time", None)  # botocore shows it nowhere else
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": known.astimezone(UTC) if known else datetime.now(UTC) + _CREDENTIALS_LAST,
        }


def locate(bucket: str) -> tuple[str, dict[str, Any]]:
    """Return a bucket's region, and where boto3 sends its requests as options of obstore; none for AWS's usual address.

    boto3 follows redirects to another region, and knows FIPS, dual-stack, accelerated and private addresses; obstore
    goes where it is told.

    Raises:
        FetchError: TIMEOUT or THROTTLED, the store does not answer.
    """
    from botocore.exceptions import ClientError

    client = get_client(1)
    sent: list[str] = []
    events = client.meta.events
    events.register_first("before-send.s3.HeadBucket", _note := lambda request, **_: sent.append(request.url))
    try:
        with explain_fetch():
            headers = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except FetchError as error:
        cause = error.__context__
        metadata = cause.response["ResponseMetadata"] if isinstance(cause, ClientError) else None
        if metadata is None or _is_busy(metadata["HTTPStatusCode"]):
            raise
        headers = metadata.get("HTTPHeaders", {})  # a refusal names the region too
    finally:
        events.unregister("before-send.s3.HeadBucket", _note)
    region: str = headers.get("x-amz-bucket-region") or client.meta.region_name
    address = urlsplit(sent[-1])
    if _USUAL_HOST.fullmatch(address.netloc.removeprefix(f"{bucket}.")):
        return region, {}
    endpoint = f"{address.scheme}://{address.netloc}"
    by_path = address.path.strip("/") == bucket
    return region, {"endpoint": endpoint} if by_path else {"endpoint": endpoint, "virtual_hosted_style_request": True}


def make_endpoint(name: str) -> dict[str, Any]:
    """Return boto3's endpoint as an option called `name`, or no option for AWS's usual address."""
    endpoint: str = get_client().meta.endpoint_url
    return {} if _USUAL_HOST.fullmatch(endpoint.removeprefix("https://")) else {name: endpoint}


def name_payer() -> dict[str, str]:
    """Return the request parameters for requester-pays buckets."""
    return {"RequestPayer": "requester"} if get_options().request_payer else {}


def name_key() -> dict[str, str]:
    """Return the request parameters for encryption with a key."""
    key = get_options().kms_key_id
    return {} if key is None else {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}


@contextlib.contextmanager
def explain_as(kind: type[DataError | OutputError], uri: str, doing: str) -> Iterator[None]:
    """Turn boto3's errors into `kind`, `OutageError`, or FileNotFoundError if a HEAD finds no object."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404 and error.operation_name == "HeadObject":
            raise FileNotFoundError(uri) from None
        failure = error
        is_outage = _is_busy(status)
    except BotoCoreError as error:
        failure, is_outage = error, _is_lost(error)
    else:
        return
    message = f"{redact(uri)} cannot be {doing}: {_explain(failure)}"
    if is_outage:
        raise OutageError(f"{message}; run the same command again when the store answers")
    raise kind(message)


@contextlib.contextmanager
def explain_fetch() -> Iterator[None]:
    """Turn boto3's errors into `FetchError`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        metadata = error.response["ResponseMetadata"]
        after = metadata.get("HTTPHeaders", {}).get("retry-after", "")
        code = _CODES.get(metadata["HTTPStatusCode"], Code.TIMEOUT)
        raise FetchError(code, _explain(error), float(after) if after.isdecimal() else None) from None
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
    response: dict[str, Any] = getattr(error, "response", None) or {}  # None for a connection that was closed
    code = response.get("Error", {}).get("Code", "")
    if type(error).__name__ == "NoCredentialsError":
        return _NO_CREDENTIALS
    return _MESSAGE_BY_NAME.get(code) or _shorten(error)


def _shorten(error: Exception) -> str:
    return redact(str(error).splitlines()[0])[:300] if str(error) else type(error).__name__
