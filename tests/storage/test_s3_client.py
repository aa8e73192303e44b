import json
import os

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from obstore.exceptions import GenericError
from obstore.exceptions import NotFoundError as ObstoreNotFoundError

from tests.storage.conftest import forget_clients
from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage import s3_client
from tlray.storage.s3_client import (
    ARCHIVED_REASON,
    S3Options,
    configure,
    explain_as,
    explain_fetch,
    explain_obstore,
    get_client,
    get_options,
    get_store,
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
    monkeypatch.setattr(s3_client, "_find_region", lambda bucket: "us-east-1")
    with pytest.raises(FetchError, match="no AWS credentials were found") as caught:
        get_store("any")
    assert caught.value.code is Code.DENIED
    configure(S3Options(no_sign_request=True))
    assert get_store("any") is get_store("any")


def test_a_buckets_own_region_counts(bucket):
    bucket.create_bucket(Bucket="tlray-far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert s3_client._find_region("tlray-far") == "eu-west-1"
    assert s3_client._find_region("no-such-bucket") == "us-east-1"
    bucket.delete_bucket(Bucket="tlray-far")


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
