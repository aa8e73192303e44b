import pytest
from botocore.exceptions import ClientError

from tests.storage.conftest import BUCKET
from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage import s3
from tlray.storage.addresses import Request
from tlray.storage.fetch import fetch_many
from tlray.storage.s3_client import S3Options, configure

ROOT = f"s3://{BUCKET}"
URI = f"{ROOT}/a//file"
"""Address of a key that is read through boto3."""


def get_body(client, key):
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def list_keys(client):
    return [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def get_code(function, *arguments):
    with pytest.raises(FetchError) as caught:
        function(*arguments)
    return caught.value.code


def test_an_object_is_written_found_and_removed(bucket):
    assert s3.exists(f"{ROOT}/a/b") is False
    s3.put(f"{ROOT}/a/b", b"content")
    assert s3.exists(f"{ROOT}/a/b") is True
    assert s3.exists(f"{ROOT}/a") is False
    assert get_body(bucket, "a/b") == b"content"
    s3.delete(f"{ROOT}/a/b")
    assert s3.exists(f"{ROOT}/a/b") is False
    s3.delete(f"{ROOT}/a/b")  # nothing to remove is no error


def test_a_key_is_written_as_it_is(bucket):
    keys = ["a//b", "a/../b", "a%20b", "ä?x=1#y", "trailing/"]
    for key in keys:
        s3.put(f"{ROOT}/{key}", b"")
    assert list_keys(bucket) == sorted(keys, key=str.encode)


def test_head_gives_size_and_plain_etag(bucket):
    etag = bucket.put_object(Bucket=BUCKET, Key="a", Body=b"12345")["ETag"]
    assert s3.head(f"{ROOT}/a") == (5, etag.strip('"'))
    assert get_code(s3.head, f"{ROOT}/none") is Code.NOT_FOUND


def test_ranges_are_read_and_checked(bucket):
    etag = bucket.put_object(Bucket=BUCKET, Key="a//file", Body=b"0123456789")["ETag"].strip('"')
    assert s3.read(Request(URI)) == b"0123456789"
    assert s3.read(Request(URI, size=10, etag=etag, mtime_ns=5, max_bytes=10)) == b"0123456789"
    assert s3.read(Request(URI, 2, 3, size=10, etag=etag, max_bytes=5)) == b"234"
    assert s3.read(Request(URI, None, 3)) == b"012"
    assert s3.read(Request(URI, 8, 30)) == b"89"
    assert get_code(s3.read, Request(URI, size=9)) is Code.CHANGED
    assert get_code(s3.read, Request(URI, 2, 3, size=9)) is Code.CHANGED
    assert get_code(s3.read, Request(URI, etag="another")) is Code.CHANGED
    assert get_code(s3.read, Request(URI, 10, 1)) is Code.CHANGED
    assert get_code(s3.read, Request(URI, max_bytes=9)) is Code.TOO_LARGE
    assert get_code(s3.read, Request(f"{URI}-none")) is Code.NOT_FOUND


def test_many_objects_are_read_in_order(bucket):
    for index in range(0, 20, 2):
        bucket.put_object(Bucket=BUCKET, Key=f"a//{index}", Body=b"%d" % index)
    data = [fetched.data for fetched in fetch_many(Request(f"{ROOT}/a//{index}") for index in range(20))]
    assert data[::2] == [b"%d" % index for index in range(0, 20, 2)]
    assert {error.code for error in data[1::2]} == {Code.NOT_FOUND}


def test_a_body_that_ends_early_is_worth_a_retry():
    with pytest.raises(FetchError, match="ended after 1,000 of 1,001 bytes") as caught:
        s3._check_length(bytes(1_000), 1_001)
    assert caught.value.code is Code.TIMEOUT


@pytest.mark.parametrize(
    ("key", "plain"),
    [("a/b.png", True), ("ä b%20", True), ("a//b", False), ("/a", False), ("a/", False), ("a/./b", False),
     ("../a", False), ("a\nb", False), ("a/...", True)],
)  # fmt: skip
def test_only_plain_keys_go_through_obstore(key, plain):
    assert s3._is_plain_key(key) is plain


def test_put_if_creates_only_a_new_object(bucket):
    etag = s3.put_if(f"{ROOT}/a", b"first", None)
    assert etag == s3.head(f"{ROOT}/a")[1]
    assert s3.put_if(f"{ROOT}/a", b"second", None) is None
    assert get_body(bucket, "a") == b"first"


def test_put_if_replaces_only_the_named_version(bucket):
    first = s3.put_if(f"{ROOT}/a", b"first", None)
    second = s3.put_if(f"{ROOT}/a", b"second", first)
    assert second == s3.head(f"{ROOT}/a")[1] != first
    assert s3.put_if(f"{ROOT}/a", b"third", first) is None
    assert get_body(bucket, "a") == b"second"
    assert s3.put_if(f"{ROOT}/none", b"third", first) is None
    assert list_keys(bucket) == ["a"]


def test_a_store_without_conditions_is_written_only_if_that_is_asked_for(bucket, monkeypatch):
    real = bucket.put_object

    def refuse_conditions(**options):
        if {"IfNoneMatch", "IfMatch"} & set(options):
            response = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise ClientError(response, "PutObject")
        return real(**options)

    monkeypatch.setattr(bucket, "put_object", refuse_conditions)
    with pytest.raises(OutputError, match=r"without conditional writes, .* --unsafe-lock"):
        s3.put_if(f"{ROOT}/a", b"first", None)
    assert s3.put_if(f"{ROOT}/a", b"first", None, unsafe=True) == s3.head(f"{ROOT}/a")[1]
    assert s3.put_if(f"{ROOT}/a", b"second", "stale", unsafe=True) == s3.head(f"{ROOT}/a")[1]
    assert get_body(bucket, "a") == b"second"


@pytest.mark.usefixtures("bucket")
def test_errors_name_the_address_in_one_sentence():
    uri = "s3://no-such-bucket/a"
    with pytest.raises(OutputError) as caught:
        s3.put(uri, b"")
    assert str(caught.value) == f"{uri} cannot be written: the bucket does not exist"
    with pytest.raises(OutputError) as caught:
        s3.delete(uri)
    assert str(caught.value) == f"{uri} cannot be removed: the bucket does not exist"


def test_an_object_that_may_not_be_asked_for_is_a_data_error(bucket, monkeypatch):
    def refuse(**options):
        response = {"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        raise ClientError(response, "HeadObject")

    monkeypatch.setattr(bucket, "head_object", refuse)
    with pytest.raises(DataError, match=f"{ROOT}/a cannot be read: access denied"):
        s3.exists(f"{ROOT}/a")


def test_writing_is_tried_without_a_trace(bucket):
    s3.try_writing(f"{ROOT}/out")
    assert list_keys(bucket) == []
    assert get_code(s3.try_writing, "s3://no-such-bucket/out") is Code.NOT_FOUND


def test_a_trial_object_that_stays_is_named(bucket, monkeypatch):
    def refuse(**options):
        response = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        raise ClientError(response, "DeleteObject")

    monkeypatch.setattr(bucket, "delete_object", refuse)
    with pytest.raises(FetchError, match=r"out/\.tlray-doctor-\w{8} was written but cannot be removed: access denied"):
        s3.try_writing(f"{ROOT}/out")


def test_writes_are_encrypted_with_the_configured_key(bucket):
    configure(S3Options(kms_key_id="arn:aws:kms:us-east-1:111122223333:key/mine"))
    s3.put(f"{ROOT}/put", b"")
    s3.put_if(f"{ROOT}/put_if", b"", None)
    for key in ("put", "put_if"):
        found = bucket.head_object(Bucket=BUCKET, Key=key)
        assert found["ServerSideEncryption"] == "aws:kms"
        assert found["SSEKMSKeyId"].endswith("key/mine")
