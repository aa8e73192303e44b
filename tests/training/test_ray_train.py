"""What a worker does between its start and its task."""

from types import SimpleNamespace

import pytest

from tlray.errors import StoppedError
from tlray.features.build import Done
from tlray.training import ray_train
from tlray.training.channel import Channel
from tlray.training.task import BuildTask

BAD = 13


@pytest.fixture
def channel(monkeypatch):
    """A channel's object, whose methods are called without Ray."""
    plain = Channel.__ray_metadata__.modified_class()

    class Handle:
        def __getattr__(self, name):
            return SimpleNamespace(remote=getattr(plain, name))

    monkeypatch.setattr(ray_train.ray, "get", lambda answer: answer)
    plain.handle = Handle()
    return plain


@pytest.fixture
def built(monkeypatch):
    """Collects what builders were asked for."""
    events = []

    class Builder:
        def __init__(self, cache, works, uris, *, on_gpu):
            events.append((cache, uris, on_gpu))

        def build(self, index):
            events.append(index)
            if index == BAD:
                raise MemoryError("no room for 8 images")
            return Done(8, 5.0)

        def close(self):
            events.append("closed")

    monkeypatch.setattr(ray_train, "ShardBuilder", Builder)
    return events


@pytest.mark.parametrize(("sees_gpu", "first_sees"), [(True, True), (False, False), (True, False), (False, True)])
def test_workers_with_and_without_a_gpu_do_not_train_together(monkeypatch, sees_gpu, first_sees):
    monkeypatch.setattr(ray_train.ray.train.collective, "broadcast_from_rank_zero", lambda _: first_sees)
    if sees_gpu == first_sees:
        ray_train._check_same_devices(sees_gpu=sees_gpu)
        return
    with pytest.raises(StoppedError, match=r"on the first worker's machine; .*--gpus-per-worker 0"):
        ray_train._check_same_devices(sees_gpu=sees_gpu)


def test_features_are_computed_until_the_task_is_known(channel, built, monkeypatch):
    def sleep(_):  # the driver puts the task once all features are there
        channel.put_task("task")

    monkeypatch.setattr(ray_train.time, "sleep", sleep)
    channel.put_build_task(BuildTask("cache", [], [0, 1], 2, "uris"))
    assert ray_train._await_task(channel.handle, 0) == "task"
    assert built == [("cache", "uris", False), 0, 1, "closed"]
    assert channel.drain_done() == [Done(8, 5.0)] * 2


def test_an_error_of_the_computation_ends_the_training_at_once(channel, built):
    """Ray Train would start all workers again, which would fail alike."""
    channel.put_build_task(BuildTask("cache", [], [BAD], 1, "uris"))
    with pytest.raises(StoppedError, match="computing the frozen base stopped: no room for 8 images"):
        ray_train._await_task(channel.handle, 0)
    assert built[-1] == "closed"


def test_without_features_to_compute_nothing_is_built(channel, built):
    channel.put_task("task")
    assert ray_train._await_task(channel.handle, 0) == "task"
    assert built == []


def test_a_driver_that_has_given_up_ends_the_wait(channel, built):
    channel.put_build_task(BuildTask("cache", [], [0], 1, "uris"))
    channel.close()
    assert ray_train._await_task(channel.handle, 0) is None
    assert built == []
