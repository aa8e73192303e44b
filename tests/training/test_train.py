"""The output of a training: one process at a time, and never over something else."""

import functools
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tlray.config import TrainConfig
from tlray.errors import OutputError, StoppedError
from tlray.storage.lock import Lock
from tlray.training import launch
from tlray.training import train as training


@pytest.fixture
def config(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for shade in range(3):
            Image.new("L", (8, 8), 40 * shade).save(tmp_path / "data" / name / f"{name}{shade}.png")
    return TrainConfig(data=str(tmp_path / "data"), output=str(tmp_path / "bundle"), weights="none")


def forbid(*_, **__):
    raise AssertionError("nothing may be started")


def test_63_a_second_training_of_an_output_waits_and_gives_up(config, monkeypatch, capsys):
    monkeypatch.setattr(training, "Lock", functools.partial(Lock, wait_s=1.2))
    monkeypatch.setattr(training.clusters, "connect", forbid)
    output = config.output
    with Lock(config.work_folder), pytest.raises(StoppedError, match=f"another tlray works on {output} "):
        training.train(config)
    assert f"another tlray works on {output} " in capsys.readouterr().out


def test_an_output_that_holds_something_else_is_left_alone(config, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Lock", forbid)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="already holds something that is not a bundle"):
        training.train(config)


def test_a_bundle_that_another_process_has_saved_meanwhile_is_returned(config, monkeypatch):
    """It came while this process waited for the lock, which leaves no folder behind."""
    saved = iter([None, SimpleNamespace(already_done=True)])
    monkeypatch.setattr(training, "_summarize_existing", lambda *_: next(saved))
    monkeypatch.setattr(training.clusters, "connect", forbid)
    assert training.train(config).already_done
    assert not Path(config.work_folder).exists()


def test_a_lock_that_is_lost_ends_the_training(monkeypatch):
    def check():
        raise StoppedError("another tlray has taken over")

    monitor = launch._TrainingMonitor(launch.Outcome(), 1, 1, lambda _: None, check, None)
    with pytest.raises(StoppedError, match="taken over"):
        monitor.run(threading.Thread(), [], None)


@pytest.mark.parametrize(("batchnorm", "warned"), [("frozen", True), ("train", False)])
def test_frozen_batchnorm_on_random_weights_is_warned_about(config, monkeypatch, capsys, batchnorm, warned):
    def stop(*_, **__):
        raise StoppedError("far enough")

    monkeypatch.setattr(training.clusters, "connect", stop)
    with pytest.raises(StoppedError, match="far enough"):
        training.train(replace(config, batchnorm=batchnorm))
    assert ("give --batchnorm train" in capsys.readouterr().out) == warned
    assert not Path(config.work_folder, "_lock.json").exists()
