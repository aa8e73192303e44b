"""Checkpoints come back as they were, and the latest whole one counts."""

import numpy as np

from tests.factories import make_epoch
from tlray.training.checkpoint import STATE, TrainingState, load_state, save_state


def make_state(epoch):
    return TrainingState(
        phase=1,
        history=[make_epoch(number + 1) for number in range(epoch)],
        weights={"head/dense_0/kernel": np.full((2, 3), epoch, np.float32)},
        slots=[np.array(7), np.arange(3, dtype=np.float32)],
        best=make_epoch(1),
        best_weights={"base/12/gamma": np.ones(4, np.float32)},
        loss_scale=8.0,
    )


def test_a_state_comes_back(tmp_path):
    folder = save_state(str(tmp_path), make_state(3))
    assert folder.endswith("epoch-0003")
    state, expected = load_state(str(tmp_path)), make_state(3)
    assert (state.epoch, state.phase, state.history) == (3, 1, expected.history)
    assert (state.best, state.loss_scale) == (make_epoch(1), 8.0)
    for ours, theirs in ((state.weights, expected.weights), (state.best_weights, expected.best_weights)):
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
    assert load_state(str(tmp_path)).epoch == 4
