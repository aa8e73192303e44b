import io
import json
import os
from dataclasses import asdict

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tlray
from tests.conftest import start_runner
from tests.entry.conftest import TRAIN_OPTIONS, run_tlray
from tests.faults.s3proxy import Proxy
from tests.roads import write_roads
from tlray import storage
from tlray.errors import StoppedError
from tlray.output.plan import write_plan
from tlray.sources.listing import Selection, find_candidates
from tlray.sources.reading import read_rows
from tlray.storage.lock import Lock
from tlray.storage.lock import _describe_self as describe_self

pytestmark = pytest.mark.usefixtures("bucket", "notebook_on_s3")

ROOT = "s3://tlray-test"


@pytest.fixture(scope="module")
def notebook_on_s3(bucket):
    with start_runner():
        yield


@pytest.fixture(scope="module")
def trained_on_s3(notebook_on_s3):
    address = f"{ROOT}/models/first"
    options = ["--data", f"{ROOT}/digits/train", "--test-data", f"{ROOT}/digits/test", "--output", address]
    options += ["--cache", "on", "--cache-dir", f"{ROOT}/cache"]
    run_tlray("train", *options, *TRAIN_OPTIONS)
    return address


def read_labels(client, prefix):
    listed = client.list_objects_v2(Bucket="tlray-test", Prefix=f"{prefix}/labels/")["Contents"]
    bodies = [client.get_object(Bucket="tlray-test", Key=item["Key"])["Body"].read() for item in listed]
    return pa.concat_tables([pq.read_table(io.BytesIO(body)) for body in bodies]).sort_by("row_id")


def test_training_and_labelling_through_s3_give_the_local_classes(trained_on_s3, bucket, bundle, digits, tmp_path):
    run_tlray("predict", "--model", trained_on_s3, "--input", f"{ROOT}/digits/test", "--output", f"{ROOT}/labels/a")
    run_tlray("predict", "--model", str(bundle), "--input", str(digits / "test"), "--output", str(tmp_path / "labels"))
    remote = {
        row["uri"].removeprefix(f"{ROOT}/digits/test/"): row["class_name"]
        for row in read_labels(bucket, "labels/a").to_pylist()
    }
    local = {
        row["uri"].removeprefix(f"{digits}/test/"): row["class_name"]
        for row in pq.read_table(tmp_path / "labels" / "labels").to_pylist()
    }
    assert len(local) == 15
    assert remote == local


def test_features_are_cached_on_s3(trained_on_s3, bucket):
    listed = bucket.list_objects_v2(Bucket="tlray-test", Prefix="cache/mobilenet_v2-")["Contents"]
    names = {item["Key"].rpartition("/")[2] for item in listed}
    assert {"pooled.npy", "activations.npy", "images.npy", "frozen_base.json", "tail.npz"} <= names


def test_a_bundle_on_s3_is_used_from_anywhere(trained_on_s3, bucket, digits):
    uri = f"{ROOT}/digits/test/0/" + sorted((digits / "test" / "0").iterdir())[0].name
    assert tlray.predict_image(uri, trained_on_s3) == tlray.predict_image(uri, trained_on_s3)
    assert trained_on_s3 in run_tlray("show", trained_on_s3)


def test_a_finished_job_on_s3_again_does_nothing(trained_on_s3, bucket):
    options = ["--model", trained_on_s3, "--input", f"{ROOT}/digits/test/0", "--output", f"{ROOT}/labels/b"]
    run_tlray("predict", *options)
    keys = [item["Key"] for item in bucket.list_objects_v2(Bucket="tlray-test", Prefix="labels/b/")["Contents"]]
    assert "labels/b/_receipt.json" in keys
    assert "labels/b/_progress.json" not in keys
    assert "Already labelled" in run_tlray("predict", *options)


def test_keys_are_used_raw(bucket):
    keys = [
        "odd/a b.jpg",
        "odd/p%20q.jpg",
        "odd/h#h?.jpg",
        "odd/ü.jpg",
        "odd//double.jpg",
        "odd/./dot.jpg",
        "odd/+.JPG",
    ]
    for key in keys:
        bucket.put_object(Bucket="tlray-test", Key=key, Body=key.encode())
    entries = storage.list_files(f"{ROOT}/odd")
    assert sorted(entry.uri for entry in entries) == sorted(f"{ROOT}/{key}" for key in keys)
    for entry in entries:
        assert storage.get(entry.uri) == entry.uri.removeprefix(f"{ROOT}/").encode()


def test_a_missing_bucket_or_prefix_is_one_sentence(bucket, tmp_path):
    output = ["--output", str(tmp_path / "new")]
    assert "the bucket does not exist" in run_tlray("train", "--data", "s3://no-such-bucket/x", *output, expect=2)
    assert "holds no objects" in run_tlray("train", "--data", f"{ROOT}/nowhere", *output, expect=2)


def test_a_listing_is_in_order_however_it_was_fetched(bucket):
    keys = [f"tree/{a}/{b}{c}.jpg" for a in ("x", "y", "y-", "z") for b in ("", "p/", "q/") for c in range(3)]
    keys += ["tree/top.jpg", "tree/y.jpg", "deep/only/one/a.jpg", "deep/only/one/b/c.jpg"]
    for key in keys:
        bucket.put_object(Bucket="tlray-test", Key=key, Body=b"x")
    for root in ("tree", "deep"):
        expected = sorted(key.removeprefix(f"{root}/") for key in keys if key.startswith(f"{root}/"))
        assert [entry.name for entry in storage.iter_files(f"{ROOT}/{root}")] == expected
    assert [entry.uri for entry in storage.iter_files(f"{ROOT}/tree/top.jpg")] == [f"{ROOT}/tree/top.jpg"]


def test_archives_and_tables_are_read_by_ranges(bucket, digits, tmp_path):
    paths = sorted(digits.glob("test/*/*.png"))
    files = {path.name: path.read_bytes() for path in paths}
    inputs = write_roads(files, tmp_path)
    for name in ("a.tar", "b.tar.gz", "c.zip", "d.parquet"):
        bucket.upload_file(str(tmp_path / name), "tlray-test", f"shards/{name}")
    found = find_candidates([f"{ROOT}/shards"], Selection(image_column="image"))
    plan = write_plan(f"{ROOT}/planned", found, {}, "image")
    assert (plan.num_rows, len(inputs)) == (4 * len(files), 6)
    rows = plan.read(0, plan.num_rows)
    answers = [fetched.data for fetched in read_rows(rows, 10**6, "image")]
    assert answers == [*files.values()] * 4
    bucket.upload_file(str(tmp_path / "c.zip"), "tlray-test", "shards/a.tar")
    codes = [fetched.data.code for fetched in read_rows(rows.slice(0, len(files)), 10**6, None)]
    assert set(codes) == {"CHANGED"}


def test_one_driver_holds_an_output_on_s3(bucket):
    address = f"{ROOT}/held"
    with Lock(address) as held:
        held.check()
        with pytest.raises(StoppedError, match="another tlray works on"), Lock(address, wait_s=0):
            pass
    with Lock(address, wait_s=0):
        pass
    dead = {**asdict(describe_self()), "pid": 2**22 + 1, "token": "theirs", "heartbeat": 0}
    storage.put(f"{address}/_lock.json", json.dumps(dead).encode())
    with Lock(address, wait_s=0):
        assert json.loads(storage.get(f"{address}/_lock.json"))["token"] != "theirs"
    assert not storage.exists(f"{address}/_lock.json")


def test_s3s_switches_reach_every_request(bucket, monkeypatch):
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    key = boto3.client("kms", endpoint_url=endpoint).create_key()["KeyMetadata"]["KeyId"]
    proxy = Proxy(endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    try:
        storage.configure(storage.S3Options(kms_key_id=key, request_payer=True))
        storage.put(f"{ROOT}/sealed.txt", b"x")
        assert storage.get(f"{ROOT}/sealed.txt") == b"x"
        assert storage.has_content(ROOT)
        assert [body.data for body in storage.fetch_many([storage.Request(f"{ROOT}/sealed.txt")])] == [b"x"]
        asked = {request: payer for request, payer in proxy.payers.items() if request != ("HEAD", "/tlray-test")}
        assert {method for method, _ in asked} == {"GET", "PUT"}
        assert set(asked.values()) == {"requester"}  # HEAD of a bucket asks for its region
        told = bucket.head_object(Bucket="tlray-test", Key="sealed.txt")
        assert (told["ServerSideEncryption"], told["SSEKMSKeyId"].rpartition("/")[2]) == ("aws:kms", key)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        bucket.put_object_acl(Bucket="tlray-test", Key="sealed.txt", ACL="public-read")
        storage.configure(storage.S3Options(no_sign_request=True))
        assert [entry.name for entry in storage.iter_files(f"{ROOT}/sealed.txt")] == ["sealed.txt"]
        assert storage.get(f"{ROOT}/sealed.txt") == b"x"
    finally:
        proxy.close()
        monkeypatch.undo()
        storage.configure(storage.S3Options())
