import pytest

from tests.factories import make_epoch
from tlray.features.build import Done
from tlray.training import channel
from tlray.training.channel import (
    BuildRestarted,
    Channel,
    EpochEnded,
    ImagesTrained,
    Message,
    StageBegan,
    WorkerReporter,
)
from tlray.training.task import BuildTask


@pytest.fixture
def plain():
    """The actor's class without Ray."""
    return Channel.__ray_metadata__.modified_class()


def test_messages_are_drained_once_in_order(plain):
    messages = [Message(StageBegan("phase 1"), 1.0), Message(EpochEnded(make_epoch()), 2.0)]
    for message in messages:
        plain.send(message)
    assert plain.drain() == messages
    assert plain.drain() == []


def test_the_task_is_none_until_it_is_set(plain):
    assert plain.get_task() is None
    plain.put_task("task")
    assert plain.get_task() == "task"


def test_features_are_handed_out_once_and_a_replacement_goes_on_with_its_rank_s(plain):
    assert plain.take_index(0) is None
    plain.put_build_task(BuildTask(None, [], [0, 1, 2, 3], 2, None))
    assert [plain.take_index(rank) for rank in (2, 0, 1)] == [None, 0, 1]  # two builders are enough
    assert plain.drain() == []
    assert plain.take_index(1) == 1  # taken, not built: by a worker that has died
    assert [message.event for message in plain.drain()] == [BuildRestarted()]
    plain.put_done(1, 1, Done(8, 5.0))
    assert plain.take_index(1) == 2
    plain.put_done(1, 1, Done(8, 5.5))  # of the replaced worker, which was not dead after all
    assert plain.drain_done() == [Done(8, 5.0)]
    plain.put_done(0, 0, Done(8, 6.0))
    plain.put_done(0, 0, Done(8, 6.0))
    assert plain.take_index(0) == 3
    plain.put_done(1, 2, Done(8, 7.0))
    assert plain.take_index(1) is None
    assert plain.drain_done() == [Done(8, 6.0), Done(8, 7.0)]
    assert plain.drain_done() == []


def test_the_controller_is_none_until_it_is_set(plain):
    assert plain.get_controller() is None
    plain.put_controller(b"handle")
    assert plain.get_controller() == b"handle"


def test_a_replacement_overwrites_the_predictions_of_its_rank(plain):
    plain.put_predictions(0, {"val": "first"})
    plain.put_predictions(1, {})
    plain.put_predictions(0, {"val": "second"})
    assert plain.count_predicted() == 2
    assert plain.get_predictions() == {0: {"val": "second"}, 1: {}}


def test_a_channel_is_open_until_it_is_closed(plain):
    assert not plain.is_closed()
    plain.close()
    assert plain.is_closed()


@pytest.fixture
def sent(monkeypatch):
    events = []
    monkeypatch.setattr(channel, "send", lambda _, event: events.append(event))
    return events


def test_only_rank_0_reports(sent):
    WorkerReporter(None, 1).report(StageBegan("saving"))
    assert sent == []
    WorkerReporter(None, 0).report(StageBegan("saving"))
    assert sent == [StageBegan("saving")]


def test_counts_are_added_up_between_reports(sent, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(channel.time, "monotonic", lambda: clock[0])
    reporter = WorkerReporter(None, 0)
    reporter.count(8)
    clock[0] = 0.4
    reporter.count(8)
    assert sent == []
    clock[0] = 0.6
    reporter.count(4)
    assert sent == [ImagesTrained(20)]
    clock[0] = 1.2
    reporter.count(1)
    assert sent == [ImagesTrained(20), ImagesTrained(1)]
