"""The contract of `tlray.storage` with object stores: moto's server, and s3rver, which ignores conditions of writes."""

import contextlib
import functools

import pytest

from tests.conftest import set_environment
from tests.entry import s3
from tests.entry.conftest import run_tlray
from tests.faults.labels import encode, make_options, make_picture, read_receipt
from tests.storage.conftest import forget_clients
from tlray import storage
from tlray.config import TrainConfig
from tlray.errors import Code, FetchError, OutputError, StoppedError
from tlray.storage.addresses import LargerError
from tlray.storage.lock import NAME, Lock
from tlray.training import train as training

BUCKET = "tlray-stores"
ROOT = f"s3://{BUCKET}"


@pytest.fixture(scope="module", params=["moto", "s3rver"])
def server(request, tmp_path_factory):
    """Name, environment and client of a store with an empty bucket."""
    with contextlib.ExitStack() as stack:
        if request.param == "moto":
            environment, client = stack.enter_context(s3.serve())
        elif s3.S3RVER.is_file():
            environment, client = stack.enter_context(s3.serve_s3rver(tmp_path_factory.mktemp("s3rver")))
        else:
            pytest.skip("s3rver is not installed: make s3rver, which needs npm")
        client.create_bucket(Bucket=BUCKET)
        stack.enter_context(set_environment(**environment))
        forget_clients()
        yield request.param, environment, client
    forget_clients()


@pytest.fixture
def client(server):
    """A client of the bucket, which is emptied behind the test."""
    _, _, client = server
    yield client
    storage.delete_folder(ROOT)


def get_code(function, *arguments):
    with pytest.raises(FetchError) as caught:
        function(*arguments)
    return caught.value.code


def test_what_is_written_is_found_read_listed_and_removed(client):
    names = ["a/1.jpg", "a/2 x.jpg", "a/b/ä+%20.jpg", "ab.jpg"]
    for number, name in enumerate(names):
        written = storage.put(f"{ROOT}/{name}", bytes([number]) * number)
        assert written.etag == client.head_object(Bucket=BUCKET, Key=name)["ETag"].strip('"')
    assert [(entry.name, entry.size) for entry in storage.iter_files(ROOT)] == list(zip(names, range(4), strict=True))
    assert [entry.name for entry in storage.iter_files(f"{ROOT}/a")] == ["1.jpg", "2 x.jpg", "b/ä+%20.jpg"]
    assert [*storage.get_many(f"{ROOT}/{name}" for name in names)] == [bytes([n]) * n for n in range(4)]
    assert storage.exists(f"{ROOT}/a/1.jpg")
    assert not storage.exists(f"{ROOT}/a/1")
    assert storage.has_content(f"{ROOT}/a")
    assert not storage.has_content(f"{ROOT}/b")
    assert storage.find_any(f"{ROOT}/a").size
    storage.delete(f"{ROOT}/a/1.jpg")
    storage.delete(f"{ROOT}/a/1.jpg")
    assert get_code(storage.get, f"{ROOT}/a/1.jpg") is Code.NOT_FOUND
    storage.delete_folder(f"{ROOT}/a")
    assert [entry.name for entry in storage.iter_files(ROOT)] == ["ab.jpg"]


def test_many_objects_are_listed_page_by_page(client):
    for number in range(1100):
        client.put_object(Bucket=BUCKET, Key=f"many/{number:04d}", Body=b"x")
    assert [entry.name for entry in storage.iter_files(f"{ROOT}/many")] == [f"{number:04d}" for number in range(1100)]


def test_ranges_and_versions_are_checked(client):
    etag = client.put_object(Bucket=BUCKET, Key="file", Body=b"0123456789")["ETag"].strip('"')
    uri = f"{ROOT}/file"
    assert [*storage.get_ranges([(uri, 2, 3), (uri, 8, 30)])] == [b"234", b"89"]
    for request in (storage.Request(uri, 2, 3, 10, etag), storage.Request(uri, size=10, etag=etag, max_bytes=10)):
        assert isinstance(storage.fetch(request).data, bytes)
    codes = {
        Code.CHANGED: storage.Request(uri, size=11),
        Code.NOT_FOUND: storage.Request(f"{ROOT}/none"),
        Code.TOO_LARGE: storage.Request(uri, max_bytes=9),
    }
    assert {code: storage.fetch(request).data.code for code, request in codes.items()} == {code: code for code in codes}
    assert storage.fetch(storage.Request(uri, 2, 3, 10, "other")).data.code is Code.CHANGED
    with pytest.raises(LargerError):
        storage.fetch(storage.Request(uri, room=9))


def test_an_object_is_a_file_that_can_be_sought(client):
    client.put_object(Bucket=BUCKET, Key="file", Body=bytes(range(256)))
    with storage.open_file(f"{ROOT}/file") as file:
        assert file.seek(-6, 2) == 250
        assert file.read() == bytes(range(250, 256))
        file.seek(10)
        assert file.read(2) == b"\x0a\x0b"


def test_a_lock_keeps_others_out_or_is_refused(server):
    name, _, client = server
    uri = f"{ROOT}/locked"
    if name == "moto":
        with Lock(uri) as held:
            held.check()
            assert client.head_object(Bucket=BUCKET, Key=f"locked/{NAME}")["ContentLength"]
    else:
        with pytest.raises(OutputError, match=r"ignores conditions.*--unsafe-lock"), Lock(uri):
            pass
        with Lock(uri, unsafe=True) as held:
            held.check()
    assert not storage.has_content(uri)


def test_63_a_training_is_locked_as_a_prediction_is(server, small, monkeypatch):
    name, _, _ = server
    config = TrainConfig(data=str(small), output=f"{ROOT}/bundle", weights="none")
    monkeypatch.setattr(training, "Lock", functools.partial(Lock, wait_s=1.2))
    with Lock(config.work_folder, unsafe=True), pytest.raises(StoppedError, match="another tlray works on s3://"):
        training.train(config)
    if name == "s3rver":
        with pytest.raises(OutputError, match="--unsafe-lock"):
            training.train(config)
    assert not storage.has_content(config.work_folder)


@pytest.mark.chaos
def test_a_run_reads_from_it_and_writes_to_it(server, undisturbed, tmp_path):
    name, environment, client = server
    for index in range(40):
        client.put_object(Bucket=BUCKET, Key=f"in/{index:02d}.png", Body=encode(make_picture(index)))
    options = make_options(undisturbed, f"{ROOT}/out", f"{ROOT}/in", rows_per_part=16, batch_size=8)
    if name == "s3rver":
        refused = run_tlray(*options, env=environment, expect=2, alone=True)
        assert "--unsafe-lock" in refused
        options.append("--unsafe-lock")
    run_tlray(*options, env=environment, alone=True)
    assert "Whole" in run_tlray("verify", f"{ROOT}/out", env=environment, alone=True)
    (tmp_path / "_receipt.json").write_bytes(storage.get(f"{ROOT}/out/_receipt.json"))
    assert read_receipt(tmp_path)["labelled"] == 40
    assert len([*storage.iter_files(f"{ROOT}/out/labels")]) == 3
