import json
import subprocess
import sys
import time

import pytest

from tlray.errors import StoppedError
from tlray.storage import lock
from tlray.storage.lock import NAME, Lock


def write_record(folder, **changes):
    record = {**lock._describe_self(), "token": "theirs", "heartbeat": time.time(), **changes}
    (folder / NAME).write_text(json.dumps(record))


def test_a_lock_is_there_while_it_is_held(tmp_path):
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
def test_a_number_that_another_process_has_now_is_no_owner(tmp_path, changes):
    write_record(tmp_path, **changes)
    with Lock(str(tmp_path), wait_s=0):
        pass


def test_another_machines_lock_is_dead_when_its_heart_stands_still(tmp_path, monkeypatch):
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
        time.sleep(0.5)
        assert json.loads((tmp_path / NAME).read_text())["heartbeat"] > before
        write_record(tmp_path)
        time.sleep(0.5)
        with pytest.raises(StoppedError, match="taken over"):
            held.check()
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
    answers = [process.stdout.readline() for process in started]
    for process in started:
        process.communicate()
    assert sorted(answers) == ["mine\n", *["theirs\n"] * 3]
