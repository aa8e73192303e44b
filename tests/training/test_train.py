"""The output of a training: one process at a time, and never over something else."""

from __future__ import annotations

import functools
import hashlib
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from tlray.cluster.resources import Cluster
from tlray.config import TrainConfig
from tlray.errors import OutputError, StoppedError
from tlray.features.build import Done
from tlray.storage.lock import Lock
from tlray.training import launch
from tlray.training import train as training
from tlray.training.monitor import Outcome, TrainingMonitor


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

    task = SimpleNamespace(phases=[], train_rows=[], val_rows=[], trials=())
    monitor = TrainingMonitor(Outcome(), task, lambda _: None, check, None)
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


class Workers:
    """A launch whose workers build what they are asked for; the first one loses its channel after `survives` shards."""

    made: ClassVar[list] = []
    survives = None

    def __init__(self, config, cluster, checkpoints, num_lost=0):
        self.may_start_early, self.resources, self.num_lost = True, SimpleNamespace(gpus=0.0), num_lost
        self.built = []
        self.made.append(self)

    def start(self):
        pass

    def build(self, task):
        for index in task.indices:
            if self.num_lost == 0 and len(self.built) == self.survives:
                raise launch.ChannelLostError("the channel has died")
            self.built.append(index)
            yield Done(8, 5.0)

    def take(self, task):
        pass

    def run(self, task, check_lock, outcome):
        self.take(task)
        outcome.model = "model"

    def close(self):
        return True


@pytest.fixture
def run_workers(config, tmp_path, monkeypatch):
    """Runs `_run_workers` without Ray on 40 images whose features are missing in shards of 8."""
    import ray

    from tlray.features import decide
    from tlray.training import task

    config = replace(config, backbone="mobilenet_v2", image_size=48, num_workers=2, cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(Workers, "made", [])
    monkeypatch.setattr(Workers, "survives", None)
    monkeypatch.setattr(launch, "Launch", Workers)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(task, "make_training_task", lambda *_, **__: Task())
    engines = []

    def build_with_engines(config, cluster, cache, missing, places):
        engines.append(missing.images)
        yield Done(missing.images, 5.0)

    monkeypatch.setattr(decide, "build_with_engines", build_with_engines)

    def run(gpus=0, tune="off", num_folds=0, **options):
        cluster = Cluster(4, gpus, local=True)
        rows = {"train": np.arange(40), "val": np.arange(0), "test": np.arange(0)}
        digests = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(40)]
        images = SimpleNamespace(uris=[""] * 40, places=None, classes=("a", "b"))
        roles = SimpleNamespace(rows=rows, digests=digests, folds=num_folds)
        trained = training._run_workers(
            replace(config, tune=tune, **options),
            cluster,
            images,
            roles,
            None,
            "checkpoints",
            SimpleNamespace(check=None),
        )
        assert trained.outcome.model == "model"
        return [made.built for made in Workers.made], engines

    return run


def test_the_waiting_workers_compute_the_features_of_a_few_images(run_workers, monkeypatch):
    built, engines = run_workers()
    assert (len(built), len(built[0]) > 1, engines) == (1, True, [])
    monkeypatch.setattr(training, "_BUILT_BY_WORKERS", 10)
    assert run_workers()[1] == [40 * 6]  # in 5 views, and as they are


@dataclass(frozen=True)
class Task:
    split: str = ""
    plan: str = ""
    head_start: dict[str, float] | None = None
    trials: tuple = ()


@pytest.mark.parametrize("resumed", [False, True])
def test_the_head_is_solved_unless_a_run_is_resumed(run_workers, monkeypatch, resumed):
    from tlray.training import solved_heads

    given = []
    monkeypatch.setattr(solved_heads, "start_head", lambda *_: {"head": 1.0})
    monkeypatch.setattr(training, "list_keys", lambda *_: None)
    monkeypatch.setattr(training, "load_state", lambda *_: SimpleNamespace(is_new=not resumed))
    monkeypatch.setattr(Workers, "take", lambda self, task: given.append(task))
    run_workers(tune="auto")
    assert [task.head_start for task in given] == [None if resumed else {"head": 1.0}]


def test_with_folds_all_heads_are_solved_and_an_unfit_trial_ends_it_before_workers_train(run_workers, monkeypatch):
    from tlray.training import solved_heads

    given, looked_at = [], []
    folded = Task(head_start={"head": 2.0}, trials=(Task("trial split", "plan"),))
    monkeypatch.setattr(solved_heads, "add_folds", lambda *arguments: given.append(arguments[3:]) or folded)
    monkeypatch.setattr(training, "list_keys", lambda *_: None)

    def load(uri, split, plan, *, is_trial=False):
        looked_at.append((uri, split, is_trial))
        if is_trial and len(looked_at) > 2:
            raise StoppedError("of other folds")
        return SimpleNamespace(is_new=False)  # a resumed run needs its folds again

    monkeypatch.setattr(training, "load_state", load)
    taken = []
    monkeypatch.setattr(Workers, "take", lambda self, task: taken.append(task))
    run_workers(tune="auto", num_folds=5)
    assert (given, taken) == ([(30, 5, 1)], [folded])
    assert looked_at == [("checkpoints", "", False), ("checkpoints/trial", "trial split", True)]
    with pytest.raises(StoppedError, match="of other folds"):
        run_workers(tune="auto", num_folds=5)
    assert taken == [folded]


@pytest.mark.parametrize("asked", [None, 5])
def test_without_cached_features_folds_give_way_to_images_held_out(run_workers, monkeypatch, capsys, asked):
    from tlray.features import decide

    monkeypatch.setattr(decide, "choose_cache", lambda *_: None)
    monkeypatch.setattr(training, "load_state", lambda *_: SimpleNamespace(is_new=True))
    divided = []
    monkeypatch.setattr(training, "hold_out", lambda config, images, roles: divided.append(roles.folds) or roles)
    if asked is None:
        run_workers(tune="auto", num_folds=5)
        assert "without cached features there are no folds" in capsys.readouterr().out
    else:
        with pytest.raises(StoppedError, match="--folds needs cached features"):
            run_workers(tune="auto", num_folds=5, folds=asked)
    assert divided == ([5] if asked is None else [])


def test_engines_on_gpus_compute_what_workers_without_one_train_on(run_workers):
    """One GPU and two workers: features of GPUs and of CPUs are kept apart."""
    built, engines = run_workers(gpus=1)
    assert (built, engines) == ([[]], [40 * 6])


def test_features_that_a_lost_channel_leaves_are_computed_by_the_next_workers(run_workers, monkeypatch):
    monkeypatch.setattr(Workers, "survives", 2)
    (first, second), engines = run_workers()
    assert (len(first), engines) == (2, [])
    assert len(second) > len(first)  # nothing is stored here, so that all of it is still missing
