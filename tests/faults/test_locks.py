"""Fault 57: two drivers at one output, wherever they run."""

import contextlib
import subprocess
import sys

import pytest

from tests.entry import s3

BUCKET = "tlray-locks"


@pytest.mark.parametrize("where", ["local", "s3"])
def test_57_eight_processes_that_race_never_meet(tmp_path, monkeypatch, where):
    with contextlib.ExitStack() as stack:
        output = str(tmp_path / "out")
        if where == "s3":
            environment, client = stack.enter_context(s3.serve(atomic=True))
            client.create_bucket(Bucket=BUCKET)
            output = f"s3://{BUCKET}/out"
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
        command = [sys.executable, "-m", "tests.faults.racer", output, str(tmp_path), "25"]
        racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
        assert [racer.communicate(timeout=300)[0].splitlines()[-1] for racer in racers] == ["0"] * 8
