from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.features.data import make_digests, make_frozen, store
from tests.training.test_task import make_config, make_task
from tlray.features.cache import PLAIN, plan_cache
from tlray.images.augment import Augmentation
from tlray.training import solved_heads
from tlray.training.linear_head import LinearHead
from tlray.training.solved_heads import add_folds, find_predictable, join_twins, make_trials, start_head

NUM_IMAGES = 50


@pytest.fixture
def cache(tmp_path):
    """A complete cache; an image's features are its row id."""
    rows = {"train": np.arange(NUM_IMAGES), PLAIN: np.arange(NUM_IMAGES)}
    needs = {0: ("pooled",), 1: ("pooled",), 2: ("activations",)}
    digests = make_digests(range(NUM_IMAGES))
    planned, _ = plan_cache(str(tmp_path), make_frozen(), rows, digests, Augmentation(0, 0, True, 0), needs)
    store(planned)
    return planned


@pytest.fixture
def task():
    """40, 8 and 2 images of 3 classes, in this order."""
    return make_task(make_config(backbone="mobilenet_v2"), val=False)


@pytest.fixture
def twins(monkeypatch):
    """Near-duplicates that are found; without them features of one direction would be."""
    found = SimpleNamespace(pairs=[])
    monkeypatch.setattr(solved_heads, "find_label_errors", lambda *_: found)
    return found


def name_rows():
    return [str(row) for row in range(NUM_IMAGES)]


def test_a_head_starts_from_the_features_in_the_cache(cache, capsys):
    labels = (np.arange(40) >= 20).astype(np.int32)
    task = SimpleNamespace(
        classes=("a", "b"), train_rows=np.arange(40), backbone="mobilenet_v2", seed=0, labels=labels,
        class_weights=np.ones(2, np.float32),
    )  # fmt: skip
    weights = start_head(task, cache, name_rows(), 30)
    kernel, bias = weights["head/probabilities/kernel"], weights["head/probabilities/bias"]
    logits = np.repeat(np.arange(40.0)[:, None], 3, axis=1) @ kernel + bias
    assert (logits.argmax(axis=1) == labels).mean() > 0.9
    printed = capsys.readouterr().out
    assert "head: solved on 40 images in" in printed
    assert "by a cross-validated log-loss of 0." in printed


@pytest.mark.usefixtures("twins")
def test_every_image_is_predicted_out_of_fold_and_a_trial_leaves_one_fold_out(task, cache):
    folded = add_folds(task, cache, name_rows(), 30, 5, 1)
    found, trial = folded.out_of_fold, folded.trials[0]
    assert found.rows.tolist() == list(range(NUM_IMAGES))
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert found.features.shape == (0, 3)
    assert (found.probabilities[:40].argmax(axis=1) == 0).mean() > 0.9
    assert sorted([*trial.train_rows, *trial.val_rows]) == list(range(NUM_IMAGES))
    assert len(trial.val_rows) == 10
    assert (trial.val_role, trial.out_of_fold, trial.trials) == (PLAIN, None, ())
    assert trial.split != task.split
    assert not set(trial.reference_rows) & set(trial.val_rows)
    # the trial's head has not seen its fold: it predicts the fold as the out-of-fold predictions do
    kernel, bias = trial.head_start["head/probabilities/kernel"], trial.head_start["head/probabilities/bias"]
    logits = np.repeat(trial.val_rows[:, None], 3, axis=1) @ kernel + bias
    assert (logits.argmax(axis=1) == found.probabilities[trial.val_rows].argmax(axis=1)).all()
    assert not np.array_equal(kernel, folded.head_start["head/probabilities/kernel"])


@pytest.mark.usefixtures("twins")
def test_further_trials_leave_out_the_other_folds(task, cache):
    folded = add_folds(task, cache, name_rows(), 30, 5, 9)
    assert len(folded.trials) == 5
    assert sorted(np.concatenate([trial.val_rows for trial in folded.trials])) == list(range(NUM_IMAGES))
    assert len({trial.split for trial in folded.trials}) == 5
    alone = add_folds(task, cache, name_rows(), 30, 5, 1)
    np.testing.assert_array_equal(alone.trials[0].val_rows, folded.trials[0].val_rows)


@pytest.mark.usefixtures("twins")
def test_without_phase_2_there_is_no_trial(cache):
    task = make_task(make_config(backbone="mobilenet_v2", finetune_epochs=0), val=False)
    folded = add_folds(task, cache, name_rows(), 30, 5, 1)
    assert folded.trials == ()
    assert len(folded.out_of_fold.rows) == NUM_IMAGES


def test_images_of_one_key_and_near_duplicates_stay_in_one_fold(task, cache, twins, monkeypatch):
    keys = [str(row // 2) for row in range(NUM_IMAGES)]
    twins.pairs = [(0, 3, 0.999), (3, 30, 0.999)]  # 0, 1, 2, 3, 30 and 31 are connected
    seen = []
    solve = solved_heads.solve_head

    def solve_and_keep(*given):
        seen.append(solve(*given).folds)
        return solve(*given)

    monkeypatch.setattr(solved_heads, "solve_head", solve_and_keep)
    add_folds(task, cache, keys, 30, 5, 1)
    (folds,) = seen
    assert len(set(folds[[0, 1, 2, 3, 30, 31]])) == 1
    assert (folds[::2] == folds[1::2]).all()
    assert len(set(folds)) == 5


def test_near_duplicates_do_not_make_a_class_one_group():
    groups, labels = np.arange(6), np.array([0, 0, 0, 1, 1, 1])
    joined = join_twins(groups, labels, [(0, 1), (1, 2), (3, 4)])
    assert len(set(joined[:3])) == 3
    assert joined[3] == joined[4] != joined[5]
    assert len(set(join_twins(groups, labels, []))) == 6
    across = join_twins(np.array([0, 1, 0, 1, 2]), np.array([0, 0, 1, 1, 1]), [(2, 3)])  # (2, 3) would join class 0
    assert len(set(across[:2])) == 2
    alone = join_twins(np.array([0, 0, 1, 2, 3]), np.array([0, 0, 1, 1, 1]), [(2, 3)])  # one group from the start
    assert alone[2] == alone[3]


def test_an_image_whose_class_is_in_no_other_fold_cannot_be_predicted(task):
    labels, folds = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 0, 2])
    known = find_predictable(labels, folds)
    assert known.tolist() == [True, True, False, False, False]
    # folds of the 50 images: the first holds nothing but the third class, which no other has
    folds = np.r_[np.arange(48) % 4 + 1, 0, 0]
    known = find_predictable(task.labels, folds)
    kernels = [(np.full((3, 3), fold, np.float32), np.zeros(3, np.float32)) for fold in range(5)]
    head = LinearHead(*kernels[0], 0.5, 0.1, None, NUM_IMAGES, folds, kernels)
    (trial,) = make_trials(replace(task, train_rows=np.arange(NUM_IMAGES)), head, known, 1)
    assert set(folds[trial.val_rows]) == {1}
    assert len(trial.train_rows) == NUM_IMAGES - 12
    assert trial.head_start["head/probabilities/kernel"][0, 0] == 1


def test_a_trial_leaves_out_a_fold_of_the_usual_size(task):
    folds = np.r_[np.zeros(30, np.int64), np.full(4, 1), np.full(9, 2), np.full(7, 3)]  # 12.5 would be usual
    kernels = [(np.full((3, 3), fold, np.float32), np.zeros(3, np.float32)) for fold in range(4)]
    head = LinearHead(*kernels[0], 0.5, 0.1, None, NUM_IMAGES, folds, kernels)
    (trial,) = make_trials(replace(task, train_rows=np.arange(NUM_IMAGES)), head, np.ones(NUM_IMAGES, bool), 1)
    assert len(trial.val_rows) == 9
