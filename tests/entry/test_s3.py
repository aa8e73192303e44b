import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tlray
from tests.entry.conftest import TRAIN_OPTIONS, run_tlray
from tlray import storage

ROOT = "s3://tlray-test"


@pytest.fixture(scope="module")
def trained_on_s3(bucket):
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
    names = [item["Key"].rpartition("/")[2].partition("-")[0] for item in listed]
    assert {"pooled", "activations", "prefix.json", "tail.npz"} <= set(names)


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
