"""Checkpoints come back as they were, and the latest whole one counts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.factories import make_epoch
from tlray.config import TrainConfig
from tlray.errors import DivergedError, StoppedError
from tlray.training.checkpoint import STATE, EpochPart, TrainingState, load_state, name_run, save_state


def make_state(epoch):
    return TrainingState(
        phase=1,
        history=[make_epoch(number + 1) for number in range(epoch)],
        weights={"head/dense_0/kernel": np.full((2, 3), epoch, np.float32)},
        slots=[np.array(7), np.arange(3, dtype=np.float32)],
        best=make_epoch(1),
        best_weights={"base/12/gamma": np.ones(4, np.float32)},
        before=make_epoch(1),
        before_weights={"head/probabilities/bias": np.arange(3, dtype=np.float32)},
        loss_scale=8.0,
    )


def test_a_state_comes_back(tmp_path):
    folder = save_state(str(tmp_path), make_state(3))
    assert folder.endswith("epoch-0003")
    state, expected = load_state(str(tmp_path)), make_state(3)
    assert (state.epoch, state.phase, state.history) == (3, 1, expected.history)
    assert (state.best, state.loss_scale) == (make_epoch(1), 8.0)
    assert state.before == expected.before == make_epoch(1)
    for group in ("weights", "best_weights", "before_weights"):
        ours, theirs = getattr(state, group), getattr(expected, group)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert len(state.slots) == 2
    np.testing.assert_array_equal(state.slots[1], expected.slots[1])


def test_the_last_two_are_kept_and_a_half_written_one_is_passed_over(tmp_path):
    assert load_state(str(tmp_path / "nothing")).epoch == 0
    for epoch in range(1, 5):
        save_state(str(tmp_path), make_state(epoch))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0003", "epoch-0004"]
    (tmp_path / "epoch-0005").mkdir()
    (tmp_path / "epoch-0005" / f".{STATE}.1f2e.partial").write_bytes(b"half")
    (tmp_path / "epoch-last").mkdir()
    (tmp_path / "epoch-last" / STATE).write_bytes(b"another's")
    assert load_state(str(tmp_path)).epoch == 4


def take(state, epoch, accuracy, **values):
    optimizer = SimpleNamespace(variables=[np.array(epoch), np.full(2, epoch, np.float32)])
    record = make_epoch(epoch, val_accuracy=accuracy, **values)
    state.take_epoch(record, {"head": np.full(1, epoch)}, optimizer, 4.0, "accuracy")
    return record


def test_without_a_figure_to_choose_by_the_last_epoch_is_the_best():
    state = TrainingState()
    take(state, 1, 0.9)
    optimizer = SimpleNamespace(variables=[np.array(2)])
    worse = make_epoch(2, val_accuracy=0.1)
    state.take_epoch(worse, {"head": np.full(1, 2)}, optimizer, 1.0, None)
    assert (state.best, state.best_weights) == (worse, {})


def test_the_last_phase_is_compared_with_the_one_before():
    state = TrainingState()
    best = take(state, 1, 0.5)
    take(state, 2, 0.4)
    state.end_phase(is_last=False)
    take(state, 3, 0.6)
    state.end_phase(is_last=True)
    assert (state.before, state.before_weights) == (best, {"head": np.full(1, 1)})
    assert state.best.epoch == 3


def test_a_state_of_another_plan_is_refused(tmp_path):
    state = make_state(2)
    state.plan = "cached"
    save_state(str(tmp_path), state)
    loaded = load_state(str(tmp_path), plan="cached")
    assert (loaded.plan, loaded.is_new) == ("cached", False)
    assert load_state(str(tmp_path / "nothing")).is_new
    with pytest.raises(StoppedError, match="other epochs, rates or start of the head: features were cached then"):
        load_state(str(tmp_path), plan="online")


def test_a_better_epoch_needs_no_second_copy_of_its_weights():
    state = TrainingState()
    take(state, 1, 0.5)
    better = take(state, 2, 0.6)
    assert (state.best, state.best_weights, state.epoch) == (better, {}, 2)
    assert state.weights == {"head": np.full(1, 2)}
    assert [slot.tolist() for slot in state.slots] == [2, [2.0, 2.0]]
    assert state.loss_scale == 4.0


def test_the_best_weights_are_kept_through_worse_epochs():
    state = TrainingState()
    best = take(state, 1, 0.5)
    for epoch in (2, 3):
        take(state, epoch, 0.4)
    assert (state.best, state.best_weights, state.weights) == (best, {"head": np.full(1, 1)}, {"head": np.full(1, 3)})
    best = take(state, 4, 0.7)
    assert (state.best, state.best_weights) == (best, {})


def test_a_checkpoint_within_an_epoch_comes_back_and_keeps_the_best_epoch(tmp_path):
    state = TrainingState()
    best = take(state, 1, 0.5)
    optimizer = SimpleNamespace(variables=[np.array(7), np.zeros(2, np.float32)])
    for images in (16, 200):
        state.take_part(EpochPart(images, 1.5, 9.0, 3.0, 0.5), {"head": np.full(1, images)}, optimizer, 2.0)
        folder = save_state(str(tmp_path), state)
    assert folder.endswith("epoch-0001-000000000200")
    loaded = load_state(str(tmp_path))
    assert (loaded.epoch, loaded.part, loaded.best) == (1, EpochPart(200, 1.5, 9.0, 3.0, 0.5), best)
    assert (loaded.weights["head"].tolist(), loaded.best_weights["head"].tolist()) == ([200], [1])
    take(loaded, 2, 0.4)
    assert (loaded.part, loaded.weights["head"].tolist(), loaded.best_weights["head"].tolist()) == (None, [2], [1])
    save_state(str(tmp_path), loaded)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001-000000000200", "epoch-0002"]
    assert load_state(str(tmp_path)).epoch == 2


def test_a_part_of_the_best_epoch_needs_no_second_copy(tmp_path):
    state = TrainingState()
    take(state, 1, 0.5)
    optimizer = SimpleNamespace(variables=[np.array(7)])
    state.take_part(EpochPart(8, 1.0, 1.0, 1.0, 0.0), {"head": np.full(1, 8)}, optimizer, 1.0)
    better = take(state, 2, 0.6)
    assert (state.best, state.best_weights) == (better, {})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_no_checkpoint_within_an_epoch(value):
    optimizer = SimpleNamespace(variables=[np.array(7), np.full(2, value, np.float32)])
    with pytest.raises(DivergedError, match="not finite after 1,280 images of epoch 1; lower the learning rate"):
        TrainingState().take_part(EpochPart(1280, 1.0, 1.0, 1.0, 0.0), {"head": np.zeros(1)}, optimizer, 1.0)


def test_of_equally_accurate_epochs_the_one_with_the_lower_loss_is_best():
    state = TrainingState()
    take(state, 1, 0.5, val_weighted_loss=0.9)
    best = take(state, 2, 0.5, val_weighted_loss=0.8)
    take(state, 3, 0.5, val_weighted_loss=0.8)
    assert state.best == best


def test_the_next_phase_starts_from_the_best_epoch_without_slots():
    state = TrainingState(weights={"base": np.zeros(1)})
    take(state, 1, 0.5)
    take(state, 2, 0.4)
    state.end_phase(is_last=False)
    assert state.weights == state.before_weights == {"base": np.zeros(1), "head": np.full(1, 1)}
    assert state.before.epoch == 1
    assert (state.phase, state.slots, state.best_weights, state.best.epoch) == (1, [], {}, 1)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not an archive"]
)
def test_a_damaged_state_is_one_clear_sentence(tmp_path, damage):
    path = Path(save_state(str(tmp_path), make_state(2)), STATE)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoppedError, match=r"^the checkpoint epoch-0002 in .* is damaged \(.*\); remove it"):
        load_state(str(tmp_path))


def test_a_state_without_its_slots_is_damaged(tmp_path):
    path = Path(save_state(str(tmp_path), make_state(1)), STATE)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "slots/1"}
    np.savez(path, **arrays)
    with pytest.raises(StoppedError, match="is damaged"):
        load_state(str(tmp_path))


def test_a_state_of_another_version_is_named_as_such(tmp_path):
    path = Path(save_state(str(tmp_path), make_state(1)), STATE)
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["_meta"] = np.frombuffer(b'{"phase": 1}', np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(StoppedError, match=r"the checkpoint epoch-0001 in .* is of another tlray"):
        load_state(str(tmp_path))


def test_a_state_of_another_split_is_refused(tmp_path):
    save_state(str(tmp_path), replace(make_state(2), split="a"))
    assert load_state(str(tmp_path), "a").epoch == 2
    with pytest.raises(StoppedError, match="is of other training, validation or test images: some were left out then"):
        load_state(str(tmp_path), "b")


def test_a_run_is_named_after_its_config_and_images():
    config = TrainConfig(data="photos", output="bundle", storage_path="/states")
    name = name_run(config, "a")
    assert name.startswith("/states/run-")
    assert name == name_run(config, "a") == name_run(replace(config, num_workers=2, batch_size=16), "a")
    assert name not in (name_run(config, "b"), name_run(replace(config, seed=1), "a"))


@pytest.mark.parametrize("where", ["weights", "slots"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_epoch_that_ends_in_no_number_is_no_finished_epoch(where, value):
    """As after a last step whose gradient overflowed, while its loss did not."""
    state = TrainingState()
    take(state, 1, 0.5)
    weights, slots = {"head": np.ones(2, np.float32)}, [np.array(3), np.ones(2, np.float32)]
    (weights["head"] if where == "weights" else slots[1])[1] = value
    with pytest.raises(DivergedError, match="the weights are not finite after phase head, epoch 2"):
        state.take_epoch(make_epoch(2), weights, SimpleNamespace(variables=slots), 1.0, "loss")
    assert state.epoch == 1
    np.testing.assert_array_equal(state.weights["head"], [1])
