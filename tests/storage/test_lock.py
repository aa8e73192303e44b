import errno
import json
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from botocore.exceptions import ClientError

from tests.storage.conftest import BUCKET
from tlray.errors import OutputError, StoppedError
from tlray.storage import lock, lock_stores
from tlray.storage.lock import NAME, Lock


def write_record(folder, **changes):
    record = {**asdict(lock._describe_self()), "token": "theirs", "heartbeat": time.time(), **changes}
    (folder / NAME).write_text(json.dumps(record))


def test_the_lock_file_exists_while_the_lock_is_held(tmp_path):
    with Lock(str(tmp_path / "out")) as held:
        record = json.loads((tmp_path / "out" / NAME).read_text())
        assert record["pid"]
        held.check()
    assert not (tmp_path / "out" / NAME).exists()


def test_a_second_driver_waits_says_so_and_gives_up(tmp_path, capsys):
    with Lock(str(tmp_path)):
        began = time.monotonic()
        with pytest.raises(StoppedError, match="another tlray works on"), Lock(str(tmp_path), wait_s=1.5):
            pass
        assert 1.5 <= time.monotonic() - began < 5
    assert "waiting up to" in capsys.readouterr().out


def test_a_killed_drivers_lock_is_taken_over_at_once(tmp_path):
    code = "import sys, os; from tlray.storage.lock import Lock; Lock(sys.argv[1]).__enter__(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / NAME).exists()
    began = time.monotonic()
    with Lock(str(tmp_path), wait_s=0):
        assert time.monotonic() - began < 2
        assert json.loads((tmp_path / NAME).read_text())["token"] != "theirs"


@pytest.mark.parametrize("changes", [{"started": 1.0}, {"boot_id": "another"}, {"pid": 2**22 + 1}])
def test_the_record_of_an_ended_process_is_taken_over(tmp_path, changes):
    write_record(tmp_path, **changes)
    with Lock(str(tmp_path), wait_s=0):
        pass


def check_until_it_fails(held):
    """Check a lock again and again: a heartbeat may take long on a busy machine."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        held.check()
        time.sleep(0.05)


def test_a_lock_of_another_machine_is_dead_when_its_heartbeat_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    write_record(tmp_path, host="elsewhere", heartbeat=time.time() - 30)
    with pytest.raises(StoppedError, match="elsewhere"), Lock(str(tmp_path), wait_s=0.5):
        pass
    write_record(tmp_path, host="elsewhere", heartbeat=time.time() - 61)
    with Lock(str(tmp_path), wait_s=5):
        pass


def test_a_lock_that_was_taken_away_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.1)
    with Lock(str(tmp_path)) as held:
        before = json.loads((tmp_path / NAME).read_text())["heartbeat"]
        deadline = time.monotonic() + 60
        while json.loads((tmp_path / NAME).read_text())["heartbeat"] == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        write_record(tmp_path)
        with pytest.raises(StoppedError, match="taken over"):
            check_until_it_fails(held)
    assert json.loads((tmp_path / NAME).read_text())["token"] == "theirs"


def test_only_one_of_many_gets_a_dead_drivers_lock(tmp_path):
    write_record(tmp_path, pid=2**22 + 1)
    code = (
        "import sys; from tlray.storage.lock import Lock; from tlray.errors import StoppedError\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n    with Lock(sys.argv[1], wait_s=0): print('mine', flush=True); sys.stdin.readline()\n"
        "except StoppedError: print('theirs', flush=True)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes) for _ in range(4)]
    assert [process.stdout.readline() for process in started] == ["ready\n"] * 4
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.stdout.readline() for process in started]
    for process in started:
        process.communicate()
    assert sorted(results) == ["mine\n", *["theirs\n"] * 3]


@pytest.mark.parametrize("change", [{"pid_namespace": "pid:[1]"}, {"host": "elsewhere"}])
def test_a_container_of_the_same_machine_is_judged_by_its_heartbeat(tmp_path, change):
    write_record(tmp_path, pid=2**22 + 1, **change)
    with pytest.raises(StoppedError), Lock(str(tmp_path), wait_s=0.3):
        pass


def test_a_file_that_is_still_held_has_an_owner_whatever_its_record_says(tmp_path):
    with Lock(str(tmp_path)):
        record = {**json.loads((tmp_path / NAME).read_text()), "pid": 2**22 + 1}
        (tmp_path / NAME).write_text(json.dumps(record))
        with pytest.raises(StoppedError), Lock(str(tmp_path), wait_s=0.3):
            pass


def test_a_folder_without_locks_of_the_system_has_the_record_alone(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_stores.fcntl, "flock", flock)
    with Lock(str(tmp_path)) as held, pytest.raises(StoppedError), Lock(str(tmp_path), wait_s=0.3):
        held.check()
    write_record(tmp_path, pid=2**22 + 1)
    with Lock(str(tmp_path), wait_s=0):
        pass
    assert not (tmp_path / NAME).exists()


def test_the_file_is_open_for_writing_as_nfs_asks(tmp_path, monkeypatch):
    modes = []
    monkeypatch.setattr(lock_stores.fcntl, "flock", lambda file, _: modes.append(file.mode))
    write_record(tmp_path, pid=2**22 + 1)
    with Lock(str(tmp_path), wait_s=0):
        pass
    assert set(modes) == {"rb+"}


def test_a_store_that_ignores_conditions_is_refused(bucket, monkeypatch):
    real = bucket._make_api_call

    def ignore(operation, options):
        return real(operation, {name: value for name, value in options.items() if not name.startswith("If")})

    monkeypatch.setattr(bucket, "_make_api_call", ignore)
    with pytest.raises(OutputError, match=r"ignores conditions, .* --unsafe-lock"), Lock(f"s3://{BUCKET}/a//out"):
        pass
    assert "Contents" not in bucket.list_objects_v2(Bucket=BUCKET)
    with Lock(f"s3://{BUCKET}/a//out", unsafe=True):
        pass


def test_a_store_that_refuses_conditions_is_refused(bucket, monkeypatch):
    real = bucket._make_api_call

    def refuse(operation, options):
        if any(name.startswith("If") for name in options):
            raise ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 501}}, operation)
        return real(operation, options)

    monkeypatch.setattr(bucket, "_make_api_call", refuse)
    with pytest.raises(OutputError, match="without conditional writes"), Lock(f"s3://{BUCKET}/a//out"):
        pass


def test_a_lock_on_s3_that_was_taken_away_is_noticed_and_left_alone(bucket, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    record = {**asdict(lock._describe_self()), "token": "theirs", "heartbeat": time.time()}
    with Lock(f"s3://{BUCKET}/a//out") as held:
        bucket.put_object(Bucket=BUCKET, Key=f"a//out/{NAME}", Body=json.dumps(record).encode())
        with pytest.raises(StoppedError, match="taken over"):
            check_until_it_fails(held)
    kept = json.loads(bucket.get_object(Bucket=BUCKET, Key=f"a//out/{NAME}")["Body"].read())
    assert kept["token"] == "theirs"


def test_a_lock_on_s3_is_held_and_released(bucket):
    output = f"s3://{BUCKET}/a//out"
    with Lock(output):
        record = json.loads(bucket.get_object(Bucket=BUCKET, Key=f"a//out/{NAME}")["Body"].read())
        assert record["pid"] == lock._describe_self().pid
        with pytest.raises(StoppedError, match=f"another tlray works on {output}"), Lock(output, wait_s=0):
            pass
    assert "Contents" not in bucket.list_objects_v2(Bucket=BUCKET)


def test_a_dead_drivers_lock_on_s3_is_taken_over(bucket):
    dead = {**asdict(lock._describe_self()), "token": "theirs", "heartbeat": time.time(), "started": 1.0}
    bucket.put_object(Bucket=BUCKET, Key=f"a//out/{NAME}", Body=json.dumps(dead).encode())
    with Lock(f"s3://{BUCKET}/a//out", wait_s=0):
        record = json.loads(bucket.get_object(Bucket=BUCKET, Key=f"a//out/{NAME}")["Body"].read())
        assert record["token"] != "theirs"


def test_a_damaged_record_on_this_machine_counts_as_another_machines(tmp_path):
    (tmp_path / NAME).write_text("{")
    with pytest.raises(StoppedError), Lock(str(tmp_path), wait_s=0):
        pass
    assert (tmp_path / NAME).read_text() == "{"
