import http.server
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import ClassVar

import pytest
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
    SSLError,
)
from obstore.exceptions import GenericError
from obstore.exceptions import NotFoundError as ObstoreNotFoundError

from tests.storage.conftest import forget_clients
from tlray.errors import Code, DataError, FetchError, OutageError, OutputError
from tlray.storage import s3_client
from tlray.storage.addresses import Request
from tlray.storage.fetch import Fetched, fetch
from tlray.storage.s3_client import (
    ARCHIVED_REASON,
    Credentials,
    S3Options,
    adopt,
    configure,
    explain_as,
    explain_fetch,
    explain_obstore,
    get_client,
    get_options,
    get_store,
    locate,
    make_endpoint,
    name_key,
    name_payer,
)


def make_error(status, code="", message="said S3", operation="GetObject"):
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, operation)


@pytest.mark.usefixtures("aws")
def test_options_reach_the_processes_of_a_run():
    assert get_options() == S3Options()
    options = S3Options(no_sign_request=True, request_payer=True, kms_key_id="key")
    configure(options)
    assert get_options() == options
    assert json.loads(os.environ[s3_client.OPTIONS_VARIABLE])["kms_key_id"] == "key"
    forget_clients()  # as a new process has none
    assert get_options() == options


@pytest.mark.usefixtures("aws")
def test_a_process_takes_the_options_of_the_driver():
    client = get_client()
    adopt(S3Options())
    assert get_client() is client
    adopt(S3Options(retry_for_s=1))
    assert get_options() == S3Options(retry_for_s=1)
    assert get_client() is not client


@pytest.mark.usefixtures("aws")
def test_options_become_parameters_of_requests():
    assert (name_payer(), name_key()) == ({}, {})
    configure(S3Options(request_payer=True, kms_key_id="key"))
    assert name_payer() == {"RequestPayer": "requester"}
    assert name_key() == {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key"}


@pytest.mark.usefixtures("aws")
def test_one_client_serves_a_process_until_it_is_configured_anew():
    client = get_client()
    assert get_client() is client
    configure(S3Options(no_sign_request=True))
    assert get_client() is not client
    assert get_client()._request_signer.signature_version is not client._request_signer.signature_version


def test_only_a_custom_endpoint_is_passed_on(aws):
    assert make_endpoint("endpoint") == {}
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    configure(S3Options())
    assert make_endpoint("endpoint") == {"endpoint": "http://127.0.0.1:9000"}


@pytest.mark.usefixtures("aws")
def test_a_store_needs_credentials_unless_requests_are_unsigned(monkeypatch):
    monkeypatch.setattr(s3_client, "locate", lambda bucket: ("us-east-1", {}))
    with pytest.raises(FetchError, match="no AWS credentials were found") as caught:
        get_store("any")
    assert caught.value.code is Code.DENIED
    configure(S3Options(no_sign_request=True))
    assert get_store("any") is get_store("any")


def test_a_buckets_own_region_counts(bucket):
    bucket.create_bucket(Bucket="tlray-far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert locate("tlray-far") == ("eu-west-1", {})
    assert locate("no-such-bucket") == ("us-east-1", {})
    bucket.delete_bucket(Bucket="tlray-far")


class Answer:
    """An answer of any store, before a request leaves the process."""

    status_code = 200
    headers: ClassVar[dict[str, str]] = {}
    content = text = ""
    raw = None


PRIVATE = "https://bucket.vpce-1a2b3c4d-5e6f.s3.eu-west-1.vpce.amazonaws.com"


@pytest.mark.parametrize(
    ("variables", "config", "expected"),
    [
        ({}, "", {}),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "", {"endpoint": "http://127.0.0.1:9"}),
        (
            {"AWS_USE_FIPS_ENDPOINT": "true"},
            "",
            {"endpoint": "https://photos.s3-fips.eu-west-1.amazonaws.com", "virtual_hosted_style_request": True},
        ),
        (
            {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
            "",
            {"endpoint": "https://photos.s3.dualstack.eu-west-1.amazonaws.com", "virtual_hosted_style_request": True},
        ),
        ({}, "s3 =\n  addressing_style = path\n", {}),
        (
            {},
            "s3 =\n  use_accelerate_endpoint = true\n",
            {"endpoint": "https://photos.s3-accelerate.amazonaws.com", "virtual_hosted_style_request": True},
        ),
        (
            {"AWS_ENDPOINT_URL_S3": PRIVATE},
            "",
            {"endpoint": PRIVATE},
        ),
    ],
    ids=["usual", "custom", "FIPS", "dual-stack", "path-style", "accelerated", "private"],
)
def test_bodies_go_where_boto3_goes(aws, tmp_path, variables, config, expected):
    (tmp_path / "config").write_text(f"[default]\n{config}")
    settings = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-west-1"}
    for name, value in {**settings, "AWS_CONFIG_FILE": str(tmp_path / "config"), **variables}.items():
        aws.setenv(name, value)
    configure(S3Options())
    get_client(1).meta.events.register("before-send.s3", lambda **_: Answer())
    assert locate("photos") == ("eu-west-1", expected)


def test_a_refusal_names_the_region_too(aws):
    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
        aws.setenv(name, value)
    configure(S3Options())

    class Refusal(Answer):
        status_code = 400
        headers: ClassVar[dict[str, str]] = {"x-amz-bucket-region": "us-east-1"}

    get_client(1).meta.events.register("before-send.s3", lambda **_: Refusal())
    assert locate("photos") == ("us-east-1", {})


def test_a_store_that_does_not_answer_at_first_is_asked_again(aws):
    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
        aws.setenv(name, value)
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    configure(S3Options())
    for _ in range(2):
        with pytest.raises(FetchError, match="Could not connect") as caught:
            get_store("photos")
        assert caught.value.code is Code.TIMEOUT


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (make_error(404, "NoSuchKey"), Code.NOT_FOUND, "the object no longer exists"),
        (make_error(404, "404"), Code.NOT_FOUND, "the object no longer exists"),
        (make_error(404, "NoSuchBucket"), Code.NOT_FOUND, "the bucket does not exist"),
        (
            make_error(403, "AccessDenied"),
            Code.DENIED,
            "access denied; check the credentials and the bucket's policy",
        ),
        (make_error(403, "InvalidAccessKeyId"), Code.DENIED, "the access key is unknown"),
        (make_error(403, "SignatureDoesNotMatch"), Code.DENIED, "the secret key does not match"),
        (make_error(403, "InvalidObjectState"), Code.DENIED, ARCHIVED_REASON),
        (
            make_error(401, "ExpiredToken"),
            Code.DENIED,
            "An error occurred (ExpiredToken) when calling the GetObject operation: said S3",
        ),
        (
            make_error(503, "SlowDown", "first\nsecond"),
            Code.THROTTLED,
            "An error occurred (SlowDown) when calling the GetObject operation: first",
        ),
        (
            make_error(500, "InternalError"),
            Code.TIMEOUT,
            "An error occurred (InternalError) when calling the GetObject operation: said S3",
        ),
        (
            NoCredentialsError(),
            Code.DENIED,
            "no AWS credentials were found; set a profile, environment variables or a role",
        ),
        (
            ConnectionClosedError(endpoint_url="https://host/x"),
            Code.TIMEOUT,
            'Connection was closed before we received a valid response from endpoint URL: "https://host/x".',
        ),
        (
            EndpointConnectionError(endpoint_url="https://user:secret@host/x"),
            Code.TIMEOUT,
            'Could not connect to the endpoint URL: "https://***@host/x"',
        ),
    ],
)
def test_errors_of_boto3_become_a_code_and_a_sentence(error, code, message):
    with pytest.raises(FetchError) as caught, explain_fetch():
        raise error
    assert (caught.value.code, str(caught.value)) == (code, message)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_store_throttles(status):
    with pytest.raises(FetchError) as caught, explain_fetch():
        raise make_error(status)
    assert caught.value.code is Code.THROTTLED


def test_a_long_error_is_cut():
    with pytest.raises(FetchError) as caught, explain_fetch():
        raise make_error(500, "X", "y" * 1_000)
    assert len(str(caught.value)) == 300


def make_obstore_error(status, body=""):
    return GenericError(f"Generic S3 error: Server returned status code: {status} {body}\n\nDebug source: ...")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (make_obstore_error(404), Code.NOT_FOUND, "the object no longer exists"),
        (make_obstore_error(403), Code.DENIED, "access denied; check the credentials and the bucket's policy"),
        (make_obstore_error(401), Code.DENIED, "access denied; check the credentials and the bucket's policy"),
        (
            make_obstore_error(416),
            Code.CHANGED,
            "changed since it was planned: it is too short for the range to read",
        ),
        (make_obstore_error(429), Code.THROTTLED, "the store throttles requests"),
        (make_obstore_error(503), Code.THROTTLED, "the store throttles requests"),
        (
            make_obstore_error(500),
            Code.TIMEOUT,
            "Generic S3 error: Server returned status code: 500 ",
        ),
        (make_obstore_error(404, "<Code>NoSuchBucket</Code>"), Code.DENIED, "the bucket does not exist"),
        (make_obstore_error(403, "<Code>InvalidObjectState</Code>"), Code.NOT_FOUND, ARCHIVED_REASON),
        (ObstoreNotFoundError("status code: 404 Not Found"), Code.NOT_FOUND, "the object no longer exists"),
        (OSError("connection reset"), Code.TIMEOUT, "connection reset"),
        (GenericError(""), Code.TIMEOUT, "GenericError"),
    ],
)
def test_errors_of_obstore_become_a_code_and_a_sentence(error, code, message):
    with pytest.raises(FetchError) as caught, explain_obstore():
        raise error
    assert (caught.value.code, str(caught.value)) == (code, message)


@pytest.mark.parametrize("kind", [DataError, OutputError])
@pytest.mark.parametrize(
    ("error", "reason"),
    [(make_error(404, "NoSuchBucket"), "the bucket does not exist"), (NoCredentialsError(), "no AWS credentials")],
)
def test_errors_of_a_command_name_the_address_without_its_secrets(kind, error, reason):
    with pytest.raises(kind) as caught, explain_as(kind, "s3://key:secret@bucket/x", "listed"):
        raise error
    assert str(caught.value).startswith(f"s3://***@bucket/x cannot be listed: {reason}")


def test_only_a_head_tells_a_missing_object():
    with pytest.raises(FileNotFoundError), explain_as(DataError, "s3://bucket/x", "read"):
        raise make_error(404, "404", operation="HeadObject")
    with pytest.raises(DataError), explain_as(DataError, "s3://bucket/x", "read"):
        raise make_error(404, "NoSuchKey", operation="GetObject")
    with pytest.raises(DataError), explain_as(DataError, "s3://bucket/x", "read"):
        raise make_error(403, "403", operation="HeadObject")


class ShortLived(http.server.BaseHTTPRequestHandler):
    """A store that takes tokens, the times of their issue, for a second."""

    lifetime_s = 1.0
    refused: ClassVar[list[float]] = []

    def do_GET(self):
        age_s = time.time() - float(self.headers["x-amz-security-token"])
        if age_s > self.lifetime_s:
            self.refused.append(age_s)
        body = b"" if age_s > self.lifetime_s else b"content"
        self.send_response(200 if body else 403)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 12:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


def renew():
    now = time.time()
    end = datetime.fromtimestamp(now + ShortLived.lifetime_s, UTC).isoformat()
    return {"access_key": "key", "secret_key": "secret", "token": str(now), "expiry_time": end}


def test_56_no_request_carries_a_token_that_has_ended(aws, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ShortLived)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(s3_client, "locate", lambda bucket: ("us-east-1", make_endpoint("endpoint")))
    renewing = RefreshableCredentials.create_from_metadata(renew(), refresh_using=renew, method="test")
    monkeypatch.setattr(s3_client, "find_credentials", lambda: renewing)
    configure(S3Options(retry_for_s=0, outage_patience_s=0))
    try:
        ends = time.monotonic() + 3 * ShortLived.lifetime_s
        while time.monotonic() < ends:
            assert fetch(Request("s3://bucket/key")) == Fetched(b"content", 0)
            time.sleep(0.05)
    finally:
        server.shutdown()
        server.server_close()
    assert ShortLived.refused == []


def test_credentials_without_an_end_are_asked_for_again_after_a_while():
    given = Credentials(BotocoreCredentials("key", "secret"))()
    assert (given["access_key_id"], given["secret_access_key"], given["token"]) == ("key", "secret", None)
    assert timedelta(minutes=29) < given["expires_at"] - datetime.now(UTC) <= timedelta(minutes=30)


@pytest.fixture
def clock(monkeypatch):
    times = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(s3_client.time, "monotonic", lambda: times.now)
    return times


def answer(status):
    return (SimpleNamespace(status_code=status), {})


LOST = EndpointConnectionError(endpoint_url="http://host")


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("failure", [(None, LOST), (answer(503), None), (answer(500), None), (answer(429), None)])
def test_a_request_outlasts_an_outage_for_its_patience(clock, capsys, failure):
    outages, request = s3_client._Outages(), {"context": {}}
    assert outages.choose_pause(answer(404), None, {"context": {}}) is None
    while (pause_s := outages.choose_pause(*failure, request)) is not None:
        assert 0.5 <= pause_s <= 5
        clock.now += pause_s
    assert 1300 <= clock.now < 1306
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("the object store does not answer; waiting up to 300 s for it") == 1
    assert outages.choose_pause(*failure, {"context": {}}) is None  # the next request does not wait as long again


@pytest.mark.usefixtures("aws", "clock")
@pytest.mark.parametrize("error", [NoCredentialsError(), SSLError(endpoint_url="https://host", error="")])
def test_other_failures_are_not_waited_for(error):
    outages = s3_client._Outages()
    outages.choose_pause(answer(200), None, {"context": {}})
    assert outages.choose_pause(None, error, {"context": {}}) is None


@pytest.mark.usefixtures("aws", "clock")
def test_a_store_that_never_answered_is_not_waited_for():
    assert s3_client._Outages().choose_pause(None, LOST, {"context": {}}) is None


@pytest.mark.parametrize("error", [LOST, make_error(503, "SlowDown"), make_error(500)])
def test_an_outage_is_no_fault_of_the_address(error):
    expected = pytest.raises(OutageError, match=r"s3://bucket/x cannot be listed: .*; run the same command again")
    with expected, explain_as(DataError, "s3://bucket/x", "listed"):
        raise error


def test_when_a_throttling_store_wants_to_be_asked_again_is_passed_on():
    for header, expected in (("7", 7.0), ("Sun, 29 Nov 2026", None), ("", None)):
        error = make_error(503, "SlowDown")
        error.response["ResponseMetadata"]["HTTPHeaders"] = {"retry-after": header}
        with pytest.raises(FetchError) as caught, explain_fetch():
            raise error
        assert caught.value.retry_after_s == expected
