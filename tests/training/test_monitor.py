"""Messages while workers train."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.factories import make_epoch
from tlray.errors import StoppedError
from tlray.metrics.intervals import LossGain
from tlray.training import monitor as monitors
from tlray.training.channel import EpochEnded, Failed, ImagesTrained, PartSaved, Resumed, StageBegan, TrialEnded
from tlray.training.monitor import Outcome, TrainingMonitor


def make_task(epochs, images, trials=()):
    phases = [SimpleNamespace(name="head", epochs=1), SimpleNamespace(name="finetune", epochs=epochs - 1)]
    return SimpleNamespace(phases=phases, train_rows=np.arange(images - 2), val_rows=np.arange(2), trials=trials)


def make_monitor(monkeypatch, task):
    lines = []
    stage = monitors.Stage("train", 100)
    monkeypatch.setattr(stage, "say", lines.append)
    watch = TrainingMonitor(Outcome(), task, lambda _: None, lambda: None, SimpleNamespace(received=False))
    return watch, stage, lines


@pytest.fixture
def monitor(monkeypatch):
    """A monitor of 4 epochs of 10 images, its stage, and the lines it prints."""
    return make_monitor(monkeypatch, make_task(4, 10))


@pytest.fixture
def with_trial(monkeypatch):
    """The same with a trial of 3 epochs of 8 images."""
    return make_monitor(monkeypatch, make_task(4, 10, [make_task(3, 10)]))


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


def test_a_restart_within_an_epoch_goes_on_after_its_last_checkpoint(monitor):
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
    monkeypatch.setattr(monitors.time, "monotonic", lambda: times.now)
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


def test_a_worker_error_is_kept_to_be_raised(monitor):
    watch, stage, _ = monitor
    error = StoppedError("no more")
    watch._take(Failed(error), 0.0, stage)
    assert watch._failure is error


def test_a_trial_is_told_apart_from_the_training_after_it(with_trial):
    watch, stage, lines = with_trial
    watch._take(Resumed([], 2, trial=1), 0.0, stage)
    watch._take(EpochEnded(make_epoch(1)), 0.0, stage)
    watch._take(PartSaved(4), 0.0, stage)
    watch._take(TrialEnded(LossGain(0.0451, -0.1, 0.2), True, 1200), 0.0, stage)
    watch._take(Resumed([], 2), 0.0, stage)
    assert stage._done == 24
    watch._take(EpochEnded(make_epoch(1)), 0.0, stage)
    watch._take(EpochEnded(make_epoch(2, val_loss=None, val_accuracy=None)), 0.0, stage)
    assert lines == [
        "trial, epoch 1/3 (head): loss 0.5000 accuracy 0.8000, val loss 0.6000 accuracy 0.7000  2.0 s",
        "checkpoint: 4 images of epoch 2 of the trial",
        "trial: phase 2 saves 0.045 of log-loss on 1,200 images held out; phase 2 is trained on all images",
        "epoch 1/4 (head): loss 0.5000 accuracy 0.8000, val loss 0.6000 accuracy 0.7000  2.0 s",
        "epoch 2/4 (head): loss 0.5000 accuracy 0.8000  2.0 s",
    ]
    assert [record.epoch for record in watch._outcome.history] == [1, 2]
    assert watch._outcome.starts == 1


def test_a_phase_that_gains_nothing_in_the_trial_is_told_to_be_left_out(with_trial):
    watch, stage, lines = with_trial
    watch._take(TrialEnded(None, True, 20), 0.0, stage)  # without phase 1 there is nothing to compare with
    watch._take(TrialEnded(LossGain(-0.02, -0.1, 0.1), False, 20), 0.0, stage)
    assert lines == ["trial: phase 2 adds 0.020 of log-loss on 20 images held out; phase 2 is left out"]
    watch._take(EpochEnded(make_epoch(1)), 0.0, stage)
    assert lines[1].startswith("epoch 1/1 (head)")
    stage.advance(1000)
    assert stage._done == 24 + 10


def test_workers_that_are_lost_after_the_trial_go_on_with_the_training(with_trial):
    watch, stage, lines = with_trial
    trial = [make_epoch(1), make_epoch(2), make_epoch(3)]
    watch._take(Resumed(trial[:2], 2, trial=1), 0.0, stage)
    watch._take(Resumed([], 2), 0.0, stage)
    watch._take(EpochEnded(make_epoch(1)), 0.0, stage)
    watch._take(Resumed(trial, 2, trial=1), 0.0, stage)
    watch._take(Resumed([make_epoch(1)], 2), 0.0, stage)
    assert stage._done == 24 + 10
    assert watch._outcome.starts == 2
    assert [record.epoch for record in watch._outcome.history] == [1]
    assert lines[0] == "an earlier run was stopped; going on after epoch 2 of the trial with 2 workers"
    assert lines[2:] == [
        "workers were lost; 2 new ones go on after epoch 3 of the trial",
        "workers were lost; 2 new ones go on after epoch 1",
    ]


def test_several_trials_are_numbered(monkeypatch):
    watch, stage, lines = make_monitor(monkeypatch, make_task(4, 10, [make_task(3, 10), make_task(3, 8)]))
    watch._take(Resumed([], 2, trial=1), 0.0, stage)
    watch._take(EpochEnded(make_epoch(1, val_loss=None, val_accuracy=None)), 0.0, stage)
    watch._take(TrialEnded(LossGain(0.045, 0.01, 0.08), True, 12), 0.0, stage)
    watch._take(Resumed([], 2, trial=2), 0.0, stage)
    assert stage._done == 3 * 8
    watch._take(PartSaved(4), 0.0, stage)
    watch._take(EpochEnded(make_epoch(1, val_loss=None, val_accuracy=None)), 0.0, stage)
    watch._take(Resumed([], 2), 0.0, stage)
    assert stage._done == 3 * 8 + 3 * 6
    assert lines == [
        "trial 1, epoch 1/3 (head): loss 0.5000 accuracy 0.8000  2.0 s",
        "trial: phase 2 saves 0.045 of log-loss on 12 images held out; phase 2 is trained on all images",
        "checkpoint: 4 images of epoch 1 of trial 2",
        "trial 2, epoch 1/3 (head): loss 0.5000 accuracy 0.8000  2.0 s",
    ]
    assert watch._outcome.starts == 1
    assert watch._outcome.history == []


def test_further_trials_are_left_out_with_phase_2(monkeypatch):
    watch, stage, _ = make_monitor(monkeypatch, make_task(4, 10, [make_task(3, 10), make_task(3, 8)]))
    watch._take(Resumed([], 2, trial=1), 0.0, stage)
    watch._take(TrialEnded(LossGain(-0.02, -0.05, 0.01), False, 12), 0.0, stage)
    watch._take(Resumed([], 2), 0.0, stage)
    assert stage._done == 3 * 8
