"""Messages while workers build features, and while lost workers find no room to start again."""

from types import SimpleNamespace

import pytest
import ray.exceptions

from tlray.cluster import capacity
from tlray.cluster.capacity import NodeResources
from tlray.cluster.resources import Cluster, WorkerResources
from tlray.errors import StoppedError
from tlray.features.build import Done
from tlray.training import launch
from tlray.training.channel import (
    BuildRestarted,
    Failed,
    Message,
)
from tlray.training.launch import ChannelLostError, Launch
from tlray.training.monitor import TERMINATED, Outcome
from tlray.training.task import BuildTask


@pytest.fixture
def lost(monkeypatch):
    """A training of 2 workers with 7 cores each, of which some live, on a cluster of some rooms."""
    state = {"workers": 0, "rooms": [NodeResources(8, 0, 8, 0)], "said": []}
    training = Launch.__new__(Launch)
    training._cluster = Cluster(16, 0, local=False, node_cpus=(8.0, 8.0))
    training._config = SimpleNamespace(num_workers=2, wait_for_resources=None)
    training.resources = WorkerResources(0, 7.0, 1, 0.25)
    monkeypatch.setattr(launch, "count_training_workers", lambda: state["workers"])
    monkeypatch.setattr(launch, "say", state["said"].append)
    monkeypatch.setattr(capacity, "list_node_resources", lambda: state["rooms"])
    monkeypatch.setattr(capacity, "is_growing", lambda: False)
    return training, state


def test_workers_that_are_only_quiet_are_left_alone(lost):
    training, state = lost
    state["workers"] = 2
    training._check_room(1000.0)
    assert state["said"] == []


def test_lost_ones_that_find_room_are_left_alone(lost):
    training, state = lost
    state["rooms"] = [NodeResources(8, 0, 8, 0), NodeResources(8, 0, 8, 0)]
    training._check_room(1000.0)
    assert state["said"] == []


def test_what_there_is_is_said_until_the_wait_is_over(lost):
    training, state = lost
    training._check_room(31.0)
    assert state["said"] == [
        "workers were lost; waiting for room for new ones, 14.5 CPUs: the cluster has 8 CPUs (8 free); 29 s left"
    ]
    with pytest.raises(StoppedError, match=r"--num-workers 2 needs 14\.5 CPUs; the cluster has 8 .* last checkpoint"):
        training._check_room(61.0)


class Channel:
    """A channel's methods as Ray offers them; `answers` are what each returns, call by call."""

    def __init__(self, **answers):
        self._answers = answers

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *_: self._answers[name].pop(0) if name in self._answers else None)


@pytest.fixture
def building(monkeypatch):
    """Returns what `Launch.build` yields of 3 indices, from a channel's answers; `ends` is when Ray Train does."""

    def build(ends=99, failures=(), **answers):
        looks = iter(range(100))
        training = Launch.__new__(Launch)
        training._channel, training._failures, training._controller = Channel(**answers), list(failures), "known"
        training._thread = SimpleNamespace(is_alive=lambda: next(looks) < ends, join=lambda _: None)
        return list(training.build(BuildTask(None, [], [0, 1, 2], 2, None)))

    def get(answer):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(launch.ray, "get", get)
    return build


def test_what_workers_build_is_told_until_all_is_done(building):
    done = [[], [Done(8, 5.0)], [Done(8, 5.0), Done(4, 6.0)]]
    assert building(drain=[[], [], []], drain_done=done) == [Done(8, 5.0), Done(8, 5.0), Done(4, 6.0)]
    done = [[Done(8, 5.0)] * 3]  # the workers ended right behind the last one
    assert len(building(ends=0, drain=[[]], drain_done=done)) == 3


def test_lost_workers_are_told_once_a_restart(building, capsys):
    restarted = [Message(BuildRestarted(), 1000.0), Message(BuildRestarted(), 1000.5)]
    building(drain=[restarted, [Message(BuildRestarted(), 1060.0)]], drain_done=[[], [Done(8, 5.0)] * 3])
    told = "workers were lost; new ones go on computing the frozen base"
    assert capsys.readouterr().out.count(told) == 2


def test_a_build_ends_with_its_workers_error(building):
    failed = Message(Failed(StoppedError("digit.png cannot be read any more")), 0.0)
    with pytest.raises(StoppedError, match=r"digit\.png cannot be read"):
        building(drain=[[failed]], drain_done=[[]])
    with pytest.raises(StoppedError, match="out of memory"):
        building(ends=1, failures=[RuntimeError("out of memory")], drain=[[], []], drain_done=[[], []])
    with pytest.raises(ChannelLostError, match="computing the frozen base"):
        building(drain=[ray.exceptions.RayActorError()])


def test_a_machine_about_to_be_taken_away_asks_for_one_checkpoint(lost, monkeypatch):
    training, state = lost
    asked = []
    times = SimpleNamespace(now=100.0)
    training._draining, training._looked_at = frozenset(), 0.0
    monkeypatch.setattr(launch.time, "monotonic", lambda: times.now)
    monkeypatch.setattr(training, "_ask_to_save", lambda: asked.append(None))

    def fail():
        raise ConnectionError

    for draining in ((), ("a",), ("a",), None, ("a", "b"), ()):
        answer = fail if draining is None else lambda draining=draining: frozenset(draining)
        monkeypatch.setattr(launch, "list_draining_nodes", answer)
        training._save_before_preemption()
        times.now += 1.5
    assert len(asked) == 2
    assert state["said"] == ["a machine is about to be taken away: saving a checkpoint"] * 2


@pytest.mark.parametrize("terminated", [False, True])
def test_a_channel_that_is_gone_may_be_replaced_but_after_sigterm(monkeypatch, terminated):
    """What a worker raises comes by Ray Train; an error of Ray's here is one of the channel."""
    training = Launch.__new__(Launch)
    training._term = SimpleNamespace(received=terminated)

    def run(*_):
        raise ray.exceptions.OutOfMemoryError("the channel's process was killed")

    monkeypatch.setattr(training, "_run", run, raising=False)
    told = TERMINATED if terminated else "training stopped: the channel's process was killed"
    with pytest.raises(StoppedError, match=told) as raised:
        training.run(None, lambda: None, Outcome())
    assert isinstance(raised.value, ChannelLostError) == (not terminated)
