"""Messages while workers train, and while lost workers find no room to start again."""

from types import SimpleNamespace

import pytest
import ray.exceptions

from tests.factories import make_epoch
from tlray.cluster import capacity
from tlray.cluster.capacity import NodeResources
from tlray.cluster.resources import Cluster, WorkerResources
from tlray.errors import StoppedError
from tlray.features.build import Done
from tlray.training import launch
from tlray.training.channel import (
    BuildRestarted,
    EpochEnded,
    Failed,
    ImagesTrained,
    Message,
    PartSaved,
    Resumed,
    StageBegan,
)
from tlray.training.launch import ChannelLostError, Launch, Outcome
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


@pytest.fixture
def monitor(monkeypatch):
    """A monitor of 4 epochs of 10 images, its stage, and the lines it prints."""
    lines = []
    stage = launch.Stage("train", 40)
    monkeypatch.setattr(stage, "say", lines.append)
    return (
        launch._TrainingMonitor(Outcome(), 4, 10, lambda _: None, lambda: None, SimpleNamespace(received=False)),
        stage,
        lines,
    )


def test_epochs_are_printed_and_collected(monitor):
    watch, stage, lines = monitor
    watch._take(Resumed([], 2), 0.0, stage)
    watch._take(StageBegan("phase 1"), 5.0, stage)
    watch._take(StageBegan("phase 1"), 9.0, stage)
    watch._take(EpochEnded(make_epoch(1)), 0.0, stage)
    watch._take(EpochEnded(make_epoch(2, val_loss=None, val_accuracy=None)), 0.0, stage)
    assert lines == [
        "epoch 1/4 (head): loss 0.5000 accuracy 0.8000, val loss 0.6000 accuracy 0.7000  2.0 s",
        "epoch 2/4 (head): loss 0.5000 accuracy 0.8000  2.0 s",
    ]
    assert watch._outcome.history == [make_epoch(1), make_epoch(2, val_loss=None, val_accuracy=None)]
    assert watch._outcome.stages == {"phase 1": 5.0}


def test_a_restart_goes_back_to_the_last_checkpoint(monitor):
    watch, stage, lines = monitor
    watch._take(Resumed([make_epoch(1)], 2), 0.0, stage)
    watch._take(ImagesTrained(8), 0.0, stage)
    assert stage._done == 18
    watch._take(Resumed([make_epoch(1)], 1), 0.0, stage)
    assert stage._done == 10
    assert lines == [
        "an earlier run was stopped; going on after epoch 1 with 2 workers",
        "workers were lost; 1 new ones go on after epoch 1",
    ]


def test_a_restart_within_an_epoch_goes_on_behind_its_last_checkpoint(monitor):
    watch, stage, lines = monitor
    watch._take(Resumed([make_epoch(1)], 2, 4), 0.0, stage)
    watch._take(PartSaved(8), 0.0, stage)
    watch._take(Resumed([make_epoch(1)], 2, 8), 0.0, stage)
    assert stage._done == 18
    assert lines == [
        "an earlier run was stopped; going on after 4 images of epoch 2 with 2 workers",
        "checkpoint: 8 images of epoch 2",
        "workers were lost; 2 new ones go on after 8 images of epoch 2",
    ]


@pytest.mark.parametrize("saved", [PartSaved(8), EpochEnded(make_epoch(1)), None])
def test_after_sigterm_a_checkpoint_is_waited_for(monitor, monkeypatch, saved):
    watch, stage, _ = monitor
    times = SimpleNamespace(now=5.0)
    monkeypatch.setattr(launch.time, "monotonic", lambda: times.now)
    watch._take(Resumed([], 2), 0.0, stage)
    watch._take(PartSaved(4), 0.0, stage)
    watch._check_term()
    watch._term.received = True
    watch._note_term()  # the checkpoint before does not count
    if saved is None:
        watch._check_term()
        times.now += 26.0
    else:
        watch._take(saved, 0.0, stage)
    watch._note_term()
    with pytest.raises(StoppedError, match="stopped by SIGTERM; the same command continues"):
        watch._check_term()


@pytest.mark.parametrize("events", [[], [Resumed([make_epoch(1)], 2), StageBegan("saving")]])
def test_sigterm_before_the_first_step_or_after_the_last_ends_at_once(monitor, events):
    watch, stage, _ = monitor
    for event in events:
        watch._take(event, 0.0, stage)
    watch._term.received = True
    watch._note_term()
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        watch._check_term()


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


def test_a_worker_error_is_kept_to_be_raised(monitor):
    watch, stage, _ = monitor
    error = StoppedError("no more")
    watch._take(Failed(error), 0.0, stage)
    assert watch._failure is error


@pytest.mark.parametrize("terminated", [False, True])
def test_a_channel_that_is_gone_may_be_replaced_but_after_sigterm(monkeypatch, terminated):
    """What a worker raises comes by Ray Train; an error of Ray's here is one of the channel."""
    training = Launch.__new__(Launch)
    training._term = SimpleNamespace(received=terminated)

    def run(*_):
        raise ray.exceptions.OutOfMemoryError("the channel's process was killed")

    monkeypatch.setattr(training, "_run", run, raising=False)
    told = launch.TERMINATED if terminated else "training stopped: the channel's process was killed"
    with pytest.raises(StoppedError, match=told) as raised:
        training.run(None, lambda: None, Outcome())
    assert isinstance(raised.value, launch.ChannelLostError) == (not terminated)
