"""What a finished training says about its model: which epoch was kept, how good it is, which labels look wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.config import TrainConfig
from tlray.metrics.calibration import MIN_IMAGES, Calibration, apply_temperature, fit_temperature
from tlray.metrics.classification import measure, measure_uncalibrated
from tlray.metrics.label_errors import (
    MAX_IMAGES,
    add_copies,
    find_label_errors,
    list_label_errors,
    summarize_label_errors,
    write_label_errors,
)
from tlray.metrics.ood import fit_ood_score
from tlray.metrics.thresholds import choose_thresholds
from tlray.training.dataset import Images, Roles
from tlray.training.schedule import draw_rows, score_epoch

_FEW_IMAGES = 30
_GAP = 0.12
_IMBALANCE = 3.0
_STILL_FALLING = 0.03

LABEL_ERRORS = "training/label_errors.csv"


def collect_metrics(model: dict[str, Any], history: Sequence[dict[str, Any]], images: Images) -> dict[str, Any]:
    """`bundle.json`'s `metrics`.

    Args:
        model: what rank 0 sent: `kept`, `calibration`, `predictions`.
        history: one record an epoch.
        images: with the true labels.
    """
    kept, calibration = model["kept"], model["calibration"]
    predictions: dict[str, RowPredictions] = model["predictions"]
    metrics: dict[str, Any] = {"kept": {"phase": kept["phase"], "epoch": kept["epoch"]}, "phases": {}}
    for phase in dict.fromkeys(record["phase"] for record in history):
        best = max((record for record in history if record["phase"] == phase), key=score_epoch)
        names = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")
        metrics["phases"][phase] = {name: best[name] for name in names}
    metrics["uncalibrated"] = metrics["ood_score"] = None
    for role, name in (("val", "validation"), ("test", "test")):
        if role in predictions:
            labels = images.labels[predictions[role].rows]
            calibrated = apply_temperature(predictions[role].probabilities, calibration.temperature)
            metrics[name] = asdict(measure(calibrated, labels, images.classes))
    if "val" in predictions:
        labels = images.labels[predictions["val"].rows]
        metrics["validation"]["loss"] = kept["val_loss"]
        metrics["uncalibrated"] = measure_uncalibrated(predictions["val"].probabilities, labels)
        if calibration.ood_score is not None:
            metrics["ood_score"] = {"percentiles": calibration.ood_score.percentiles}
    return metrics


def collect_thresholds(
    predictions: dict[str, RowPredictions], calibration: Calibration, images: Images, target_precision: float
) -> dict[str, Any]:
    """`bundle.json`'s `thresholds`; empty without validation images."""
    if "val" not in predictions:
        return {}
    calibrated = apply_temperature(predictions["val"].probabilities, calibration.temperature)
    return choose_thresholds(calibrated, images.labels[predictions["val"].rows], images.classes, target_precision)


def collect_label_errors(
    cache: Any, predictions: dict[str, RowPredictions], roles: Roles, images: Images, view: int, seed: int
) -> tuple[dict[str, Any], bytes]:
    """Training and validation images whose labels their neighbours contradict, or that are there twice.

    Args:
        cache: with pooled features of the frozen base, which know no labels; None where there are none, and those of
            the finished network must do.
        predictions: of the finished network.
        roles, images: the rows.
        view: of training images that the cache holds.
        seed: chooses the rows of a large set.

    Returns:
        the first of them as plain values, and all as a CSV file.
    """
    rows, features = _gather_answered(predictions) if cache is None else _read_cached(cache, roles, view, seed)
    labels = images.labels[rows]
    found = find_label_errors(features, labels, len(images.classes))
    everything = np.concatenate([rows, np.setdiff1d(np.concatenate([roles.rows["train"], roles.rows["val"]]), rows)])
    found = add_copies(found, [roles.digests[row] for row in everything], images.labels[everything])
    uris = [images.uris[row] for row in everything]
    listed = write_label_errors(list_label_errors(found, uris, images.labels[everything], images.classes))
    return summarize_label_errors(found, uris, images.labels[everything], images.classes), listed


def _gather_answered(predictions: dict[str, RowPredictions]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    parts = [predictions[role] for role in ("reference", "val") if role in predictions]
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


@dataclass(frozen=True)
class RowPredictions:
    """RowPredictions to some rows of one role.

    Attributes:
        rows: int64 `[N]`, row ids.
        probabilities: float32 `[N, C]`, not calibrated.
        feature_rows: int64 `[M]`, those of the rows that were chosen for it.
        features: float32 `[M, D]`, their pooled features.
    """

    rows: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    feature_rows: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]


def join_predictions(parts: Iterable[RowPredictions]) -> RowPredictions:
    """The predictions of several batches or workers as one, ordered by row."""
    given = list(parts)
    rows, probabilities, feature_rows, features = (
        np.concatenate([getattr(part, field.name) for part in given]) for field in fields(RowPredictions)
    )
    order, feature_order = np.argsort(rows), np.argsort(feature_rows)
    return RowPredictions(rows[order], probabilities[order], feature_rows[feature_order], features[feature_order])


def fit_calibration(
    references: RowPredictions, validation: RowPredictions | None, labels: npt.NDArray[np.int32]
) -> Calibration:
    """Temperature and ood_score from what was held out; without that, no temperature.

    Args:
        references: of training images.
        validation: of the rows that chose the epoch; None without any.
        labels: by row id.
    """
    if validation is None:
        return Calibration(1.0, 0, fit_ood_score(references.features, references.features[:0]))
    num_images = len(validation.rows)
    return Calibration(
        temperature=fit_temperature(validation.probabilities, labels[validation.rows]),
        images=num_images if num_images >= MIN_IMAGES else 0,
        ood_score=fit_ood_score(references.features, validation.features),
    )


def advise(
    config: TrainConfig,
    history: Sequence[dict[str, Any]],
    metrics: dict[str, Any],
    train_labels: npt.NDArray[np.int32],
    left_out: int,
) -> list[str]:
    """A few sentences, the most telling first.

    Args:
        config: what was asked for.
        history: one record an epoch.
        metrics: with `phases` and `kept`.
        train_labels: int32 `[N]`.
        left_out: images that could not be used.
    """
    sentences = []
    counts = np.bincount(train_labels)
    kept = next(record for record in history if record["epoch"] == metrics["kept"]["epoch"])
    phases = metrics["phases"]
    if kept["val_accuracy"] is None:
        sentences.append("keep some images for validation (--val-fraction 0.15): the best epoch is then kept")
    elif kept["accuracy"] - kept["val_accuracy"] > _GAP:
        gap = f"training accuracy {kept['accuracy']:.2f} is far above validation's {kept['val_accuracy']:.2f}"
        sentences.append(f"{gap}: more images, more --zoom and --shear, --dropout 0.3 or --label-smoothing 0.1")
    if "finetune" in phases and metrics["kept"]["phase"] == "head":
        sentences.append(
            f"phase 2 did not beat phase 1: try a lower --lr-finetune than {config.resolved_lr_finetune:g}, "
            "or --schedule cosine"
        )
    losses = [record["val_loss"] if record["val_loss"] is not None else record["loss"] for record in history]
    if len(losses) > 1 and kept is history[-1] and losses[-1] < (1 - _STILL_FALLING) * losses[-2]:
        option = "--finetune-epochs" if kept["phase"] == "finetune" else "--head-epochs"
        sentences.append(f"the loss was still falling in the last epoch: more {option}, features are reused")
    if counts.max() > _IMBALANCE * counts.min() and config.class_weights == "none":
        sentences.append(
            f"the largest class has {counts.max() / counts.min():.0f} times the images of the smallest: "
            "--class-weights balanced"
        )
    if counts.min() < _FEW_IMAGES:
        sentences.append(
            f"the smallest class has {counts.min():,} images to train on: a few dozen more would tell most"
        )
    if left_out:
        sentences.append(f"{left_out:,} images were left out: mend or remove them")
    return sentences


@dataclass(frozen=True)
class TrainSummary:
    """What a training run did.

    Attributes:
        output: where the bundle lies.
        model_id: its identity.
        classes: class names by index.
        images: how many of each role: "train", "validation", "test".
        left_out: address and reason of every image that could not be used.
        history: one record an epoch.
        metrics: what the bundle records: which epoch was kept, accuracy by phase, on validation and test data.
        seconds: wall time by stage.
        label_errors: as `summarize_label_errors`; None where the
            bundle was there before.
        advice: what to try next.
        already_done: whether the bundle was there before and nothing was trained.
    """

    output: str
    model_id: str
    classes: tuple[str, ...]
    images: dict[str, int]
    left_out: list[tuple[str, str]]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    seconds: dict[str, float]
    label_errors: dict[str, Any] | None
    advice: list[str]
    already_done: bool
