"""Solve the heads of a task before phase 1, on cached features: that of all images, and those without one fold each.

With folds no image need be held out for validation: each is predicted by the head that was solved without its fold;
near-duplicates stay in one fold, like images of one group. A trial trains both phases without one fold, to see what
phase 2 gains on it; further trials leave out others, to have more images to calibrate on. The model itself is then
trained on all images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from tlray.console import say
from tlray.features.cache import PLAIN, Cache
from tlray.metrics.label_errors import MAX_IMAGES, find_label_errors
from tlray.metrics.ood import MAX_HELD, draw_reference_rows
from tlray.model.backbones import BACKBONES
from tlray.model.manifest import hash_json
from tlray.training.linear_head import Features, LinearHead, choose_sample, draw_sample, solve_head
from tlray.training.predictions import RowPredictions
from tlray.training.schedule import draw_rows
from tlray.training.task import TrainingTask

if TYPE_CHECKING:
    from tlray.model.network import Weights

Groups = npt.NDArray[np.integer]
"""`[N]`, a number by image; images of one number stay together."""

_NUM_VIEWS = 2
"""Most augmented views that a head is solved on, beside the images as they are."""

_STANDARDIZED = {0.0: "not", 0.5: "half", 1.0: "fully"}


def start_head(task: TrainingTask, cache: Cache, keys: Sequence[str], num_settings: int) -> Weights:
    """Solve the head on a complete cache, perhaps on a sample of the images; return its weights by name.

    Args:
        keys: by row id; images of one key stay in one fold.
        num_settings: number of settings to choose among.
    """
    sample = choose_sample(len(task.train_rows), BACKBONES[task.backbone].num_features, len(task.classes))
    rows = draw_sample(task.train_rows, task.labels, sample, task.seed)
    plain = _read_plain(cache, rows)
    groups = np.unique([keys[row] for row in rows], return_inverse=True)[1]
    found = _solve_on_cache(task, cache, rows, plain, groups, num_settings)
    return _name_weights(found.kernel, found.bias)


def add_folds(
    task: TrainingTask, cache: Cache, keys: Sequence[str], num_settings: int, num_folds: int, num_trials: int
) -> TrainingTask:
    """Return the task with its solved head, out-of-fold predictions, and trials of phase 2 if it has one.

    Args:
        cache: complete.
        keys: by row id; images of one key stay in one fold.
        num_settings: number of settings to choose among.
        num_trials: most trials, of one fold each.
    """
    rows, num_classes = task.train_rows, len(task.classes)
    labels, plain = task.labels[rows], _read_plain(cache, rows)
    groups: Groups = np.unique([keys[row] for row in rows], return_inverse=True)[1]
    if len(rows) <= MAX_IMAGES:
        pairs = [(first, second) for first, second, _ in find_label_errors(plain, labels, num_classes).pairs]
        groups = join_twins(groups, labels, pairs)
    head = _solve_on_cache(task, cache, rows, plain, groups, num_settings, num_folds)
    predictable = find_predictable(labels, head.folds)
    probabilities = head.predict_out_of_fold(plain)[predictable]
    features = np.empty((0, plain.shape[1]), np.float32)
    task = replace(
        task,
        head_start=_name_weights(head.kernel, head.bias),
        out_of_fold=RowPredictions(rows[predictable], probabilities, rows[:0], features),
    )
    if task.phases[-1].name == "head":
        return task
    return replace(task, trials=make_trials(task, head, predictable, num_trials))


def make_trials(
    task: TrainingTask, head: LinearHead, predictable: npt.NDArray[np.bool_], num_trials: int
) -> tuple[TrainingTask, ...]:
    """Return the tasks of trainings without one fold each, on which they are measured: those of the most usual size.

    Args:
        head: with the folds of the training rows.
        predictable: `[N]`, as returned by `find_predictable`.
        num_trials: most tasks; a fold without a predictable image has none.
    """
    sizes = np.bincount(head.folds[predictable], minlength=len(head.without))
    usual = len(head.folds) / len(head.without)
    order = np.where(sizes > 0, np.abs(sizes - usual), np.inf).argsort(kind="stable")
    chosen = [int(fold) for fold in order[:num_trials] if sizes[fold]]
    return tuple(_leave_out(task, head, predictable, fold) for fold in chosen)


def _leave_out(task: TrainingTask, head: LinearHead, predictable: npt.NDArray[np.bool_], fold: int) -> TrainingTask:
    """Return the task of a training without a fold."""
    inside = head.folds == fold
    train_rows, val_rows = task.train_rows[~inside], task.train_rows[inside & predictable]
    return replace(
        task,
        train_rows=train_rows,
        val_rows=val_rows,
        val_role=PLAIN,
        test_rows=task.test_rows[:0],
        split=hash_json([task.split, val_rows.tolist()]),
        reference_rows=draw_reference_rows(train_rows, task.labels, len(task.classes), task.seed),
        calibration_rows=val_rows,
        held_rows=draw_rows(val_rows, MAX_HELD, task.seed),
        head_start=_name_weights(*head.without[fold]),
        out_of_fold=None,
    )


def join_twins(groups: Groups, labels: npt.NDArray[np.integer], pairs: Sequence[tuple[int, int]]) -> Groups:
    """Return groups merged with near-duplicates, except where that would leave a class in one group.

    Args:
        pairs: positions of near-duplicates.
    """
    while True:
        joined = _connect(groups, pairs)
        lost = [
            members[0]
            for members in (np.flatnonzero(labels == label) for label in np.unique(labels))
            if _is_one(joined[members]) and not _is_one(groups[members])
        ]
        if not lost:
            return joined
        dropped = set(joined[lost].tolist())
        pairs = [pair for pair in pairs if joined[pair[0]] not in dropped]


def find_predictable(labels: npt.NDArray[np.integer], folds: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which images have a class that another fold has too, `[N]`; a head without their fold knows no other."""
    counts = np.zeros((labels.max() + 1, folds.max() + 1), np.int64)
    np.add.at(counts, (labels, folds), 1)
    predictable: npt.NDArray[np.bool_] = counts.sum(axis=1)[labels] > counts[labels, folds]
    return predictable


def _connect(groups: Groups, pairs: Sequence[tuple[int, int]]) -> Groups:
    nodes = len(groups) + groups.max() + 1  # images, then groups
    ends = np.array([*pairs, *zip(range(len(groups)), len(groups) + groups, strict=True)], np.int64)
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(nodes, nodes))
    components: Groups = connected_components(graph, directed=False)[1][: len(groups)]
    return components


def _is_one(groups: Groups) -> bool:
    return len(np.unique(groups)) == 1


def _read_plain(cache: Cache, rows: npt.NDArray[np.int64]) -> Features:
    """Return the cached features of training images as they are."""
    return cache.open().read(PLAIN, "pooled", 0, rows).astype(np.float32)


def _name_weights(kernel: Features, bias: Features) -> Weights:
    """Return the weights of a linear head by name."""
    return {"head/probabilities/kernel": kernel, "head/probabilities/bias": bias}


def _solve_on_cache(
    task: TrainingTask,
    cache: Cache,
    rows: npt.NDArray[np.int64],
    plain: Features,
    groups: npt.NDArray[np.integer],
    num_settings: int,
    num_folds: int = 0,
) -> LinearHead:
    """Solve the head of a task on cached features, and say what was chosen.

    Args:
        rows, plain: row ids of training images, and their features as they are.
        groups: `[N]`, images of one number stay in one fold.
        num_settings: number of settings to choose among.
        num_folds: solve a head without each fold too; 0 for the folds that settings are chosen by alone.
    """
    started = time.monotonic()
    say(f"head: solving it on {len(rows):,} images")
    opened = cache.open()
    pooled = [view for view, kinds in cache.sets["train"].needs.items() if "pooled" in kinds]
    views = [opened.read("train", "pooled", view, rows).astype(np.float32) for view in pooled[:_NUM_VIEWS]]
    found = solve_head(plain, views, task.labels[rows], groups, task.class_weights, task.seed, num_settings, num_folds)
    settings = f"features {_STANDARDIZED[found.power]} standardized, weight decay {found.decay:.2g}"
    scored = "" if found.log_loss is None else f", by a cross-validated log-loss of {found.log_loss:.3f}"
    say(f"head: solved on {found.images:,} images in {time.monotonic() - started:.1f} s; {settings}{scored}")
    return found
