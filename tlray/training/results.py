"""What a finished training says about its model: which epoch was kept, how good it is, which labels look wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.calibration import Calibration, apply_temperature
from tlray.measures import measure, measure_uncalibrated
from tlray.suspects import (
    MAX_IMAGES,
    add_copies,
    find_suspects,
    list_conflicts,
    list_suspects,
    write_conflicts,
)
from tlray.thresholds import choose_thresholds
from tlray.training.answers import Answers
from tlray.training.dataset import Images, Roles
from tlray.training.schedule import draw_rows, score_epoch

CONFLICTS = "training/conflicts.csv"


def collect_metrics(model: dict[str, Any], history: Sequence[dict[str, Any]], images: Images) -> dict[str, Any]:
    """`bundle.json`'s `metrics`.

    Args:
        model: what rank 0 sent: `kept`, `calibration`, `answers`.
        history: one record an epoch.
        images: with the true labels.
    """
    kept, calibration = model["kept"], model["calibration"]
    answers: dict[str, Answers] = model["answers"]
    metrics: dict[str, Any] = {"kept": {"phase": kept["phase"], "epoch": kept["epoch"]}, "phases": {}}
    for phase in dict.fromkeys(record["phase"] for record in history):
        best = max((record for record in history if record["phase"] == phase), key=score_epoch)
        names = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")
        metrics["phases"][phase] = {name: best[name] for name in names}
    metrics["uncalibrated"] = metrics["oddness"] = None
    for role, name in (("val", "validation"), ("test", "test")):
        if role in answers:
            labels = images.labels[answers[role].rows]
            calibrated = apply_temperature(answers[role].probabilities, calibration.temperature)
            metrics[name] = asdict(measure(calibrated, labels, images.classes))
    if "val" in answers:
        labels = images.labels[answers["val"].rows]
        metrics["validation"]["loss"] = kept["val_loss"]
        metrics["uncalibrated"] = measure_uncalibrated(answers["val"].probabilities, labels)
        if calibration.oddness is not None:
            metrics["oddness"] = {"percentiles": calibration.oddness.percentiles}
    return metrics


def collect_thresholds(
    answers: dict[str, Answers], calibration: Calibration, images: Images, target_precision: float
) -> dict[str, Any]:
    """`bundle.json`'s `thresholds`; empty without validation images."""
    if "val" not in answers:
        return {}
    calibrated = apply_temperature(answers["val"].probabilities, calibration.temperature)
    return choose_thresholds(calibrated, images.labels[answers["val"].rows], images.classes, target_precision)


def collect_suspects(
    cache: Any, answers: dict[str, Answers], roles: Roles, images: Images, view: int, seed: int
) -> tuple[dict[str, Any], bytes]:
    """Training and validation images whose labels their neighbours contradict, or that are there twice.

    Args:
        cache: with pooled features of the frozen base, which know no labels; None where there are none, and those of
            the finished network must do.
        answers: of the finished network.
        roles, images: the rows.
        view: of training images that the cache holds.
        seed: chooses the rows of a large set.

    Returns:
        the first of them as plain values, and all as a CSV file.
    """
    rows, features = _gather_answered(answers) if cache is None else _read_cached(cache, roles, view, seed)
    labels = images.labels[rows]
    found = find_suspects(features, labels, len(images.classes))
    everything = np.concatenate([rows, np.setdiff1d(np.concatenate([roles.rows["train"], roles.rows["val"]]), rows)])
    found = add_copies(found, [roles.digests[row] for row in everything], images.labels[everything])
    uris = [images.uris[row] for row in everything]
    conflicts = write_conflicts(list_conflicts(found, uris, images.labels[everything], images.classes))
    return list_suspects(found, uris, images.labels[everything], images.classes), conflicts


def _gather_answered(answers: dict[str, Answers]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    parts = [answers[role] for role in ("reference", "val") if role in answers]
    return np.concatenate([part.feature_rows for part in parts]), np.concatenate([part.features for part in parts])


def _read_cached(
    cache: Any, roles: Roles, view: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    opened = cache.open()
    chosen = draw_rows(np.concatenate([roles.rows["train"], roles.rows["val"]]), MAX_IMAGES, seed)
    rows, features = [], []
    for role, seen in (("train", view), ("val", 0)):
        own = np.intersect1d(chosen, roles.rows[role])
        if len(own):
            rows.append(own)
            features.append(opened.read(role, "pooled", seen, own).astype(np.float32))
    return np.concatenate(rows), np.concatenate(features)
