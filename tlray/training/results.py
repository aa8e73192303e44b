"""Collect a finished training's metrics, thresholds, label errors and advice, and log them to MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tlray.config import Recipe, SelectName, TrainConfig, describe
from tlray.features.cache import PLAIN, Cache
from tlray.metrics.calibration import apply_temperature
from tlray.metrics.classification import Measurement, measure, measure_uncalibrated
from tlray.metrics.label_errors import (
    MAX_IMAGES,
    LabelErrorSummary,
    add_copies,
    find_label_errors,
    list_label_errors,
    summarize_label_errors,
    write_label_errors,
)
from tlray.metrics.thresholds import Thresholds, describe_thresholds
from tlray.model.manifest import EpochRecord, KeptEpoch, Metrics, OodPercentiles, PhaseBest, RoleCounts, find_kept
from tlray.notebook import Card, Shown, name_classes
from tlray.storage.records import Json
from tlray.training.dataset import Images, Roles
from tlray.training.predictions import RowPredictions
from tlray.training.schedule import draw_rows, score_epoch

if TYPE_CHECKING:
    from tlray.training.channel import TrainedModel

_FEW_IMAGES = 30
_GAP = 0.12
_IMBALANCE = 3.0
_STILL_FALLING = 0.03

LABEL_ERRORS = "training/label_errors.csv"


def collect_metrics(
    model: TrainedModel,
    history: Sequence[EpochRecord],
    images: Images,
    select: SelectName,
    *,
    out_of_fold: bool,
) -> Metrics:
    """Return `bundle.json`'s `metrics`; `select` tells the best epoch."""
    phases = {}
    for phase in dict.fromkeys(record.phase for record in history):
        records = [record for record in history if record.phase == phase]
        if phase == model.kept.phase:
            best = model.kept
        elif out_of_fold or (phase == "finetune" and model.finetune_gain is not None):
            best = records[-1]  # which was compared with the other phase
        else:
            best = max(records, key=lambda record: score_epoch(record, select))
        phases[str(phase)] = PhaseBest(
            best.epoch, best.loss, best.accuracy, best.val_loss, best.val_accuracy, best.val_weighted_loss
        )

    def measure_role(role: str) -> Measurement | None:
        predicted = model.predictions.get(role)
        if predicted is None:
            return None
        calibrated = apply_temperature(predicted.probabilities, model.calibration.temperature)
        return measure(calibrated, images.labels[predicted.rows], images.classes)

    kept = KeptEpoch(model.kept.phase, model.kept.epoch)
    validation, validated = measure_role("val"), model.predictions.get("val")
    if validation is None or validated is None:
        return Metrics(kept=kept, phases=phases, test=measure_role("test"))
    ood_score = model.calibration.ood_score
    return Metrics(
        kept=kept,
        phases=phases,
        validation=replace(validation, loss=model.kept.val_loss),
        test=measure_role("test"),
        uncalibrated=measure_uncalibrated(validated.probabilities, images.labels[validated.rows]),
        calibration_gain=model.calibration.gain,
        finetune_gain=model.finetune_gain,
        out_of_fold=out_of_fold,
        ood_score=None if ood_score is None else OodPercentiles(ood_score.percentiles),
    )


def collect_thresholds(config: TrainConfig, model: TrainedModel, images: Images) -> Thresholds | None:
    """Return `bundle.json`'s `thresholds`; None without validation images."""
    validated = model.predictions.get("val")
    if validated is None:
        return None
    calibrated = apply_temperature(validated.probabilities, model.calibration.temperature)
    labels = images.labels[validated.rows]
    return describe_thresholds(calibrated, labels, images.classes, config.target_precision, config.confidence)


def collect_label_errors(
    cache: Cache | None, predictions: Mapping[str, RowPredictions], roles: Roles, images: Images, seed: int
) -> tuple[LabelErrorSummary, bytes]:
    """Find label errors and duplicates among the training and validation images.

    Args:
        cache: with pooled features of the frozen base, which were trained without these labels; None if there are
            none, and the finished network's features are used.
        predictions: of the finished network, by role.
        seed: chooses the rows of a large set.

    Returns:
        the summary, and the CSV file of all label errors.
    """
    rows, features = _gather_features(predictions) if cache is None else _read_cached(cache, roles, seed)
    labels = images.labels[rows]
    found = find_label_errors(features, labels, len(images.classes))
    everything = np.concatenate([rows, np.setdiff1d(np.concatenate([roles.rows["train"], roles.rows["val"]]), rows)])
    found = add_copies(found, [roles.digests[row] for row in everything], images.labels[everything])
    uris = [images.uris[row] for row in everything]
    listed = write_label_errors(list_label_errors(found, uris, images.labels[everything], images.classes))
    return summarize_label_errors(found, uris, images.labels[everything], images.classes), listed


def _gather_features(
    predictions: Mapping[str, RowPredictions],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    parts = [predictions[role] for role in ("reference", "val") if role in predictions]
    return np.concatenate([part.feature_rows for part in parts]), np.concatenate([part.features for part in parts])


def _read_cached(cache: Cache, roles: Roles, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    opened = cache.open()
    chosen = draw_rows(np.concatenate([roles.rows["train"], roles.rows["val"]]), MAX_IMAGES, seed)
    rows, features = [], []
    for role, cached in (("train", PLAIN), ("val", "val")):
        own = np.intersect1d(chosen, roles.rows[role])
        if len(own):
            rows.append(own)
            features.append(opened.read(cached, "pooled", 0, own).astype(np.float32))
    return np.concatenate(rows), np.concatenate(features)


def advise(
    config: TrainConfig,
    recipe: Recipe,
    history: Sequence[EpochRecord],
    metrics: Metrics,
    thresholds: Thresholds | None,
    train_labels: npt.NDArray[np.int32],
    left_out: int,
) -> list[str]:
    """Return sentences of advice, the most important first; `left_out` is the number of unusable images."""
    sentences = []
    counts = np.bincount(train_labels)
    kept = find_kept(history, metrics.kept)
    validated = kept.val_accuracy if metrics.validation is None else metrics.validation.accuracy
    if validated is None:
        sentences.append("keep some images for validation (--val-fraction 0.15): the best epoch is then kept")
    elif kept.accuracy - validated > _GAP:
        measured = "out-of-fold" if metrics.out_of_fold else "validation"
        gap = f"training accuracy {kept.accuracy:.2f} is far above {measured} accuracy, {validated:.2f}"
        drop = "" if recipe.dropout else "--dropout 0.3 or "
        sentences.append(f"{gap}: more images, more --zoom and --shear, {drop}--label-smoothing 0.1")
    tried = metrics.out_of_fold and kept.phase == "finetune" and config.trials == 1
    if tried and thresholds is not None and not thresholds.kept:
        sentences.append("no threshold promises its precision: --trials 5 tests them on all images, not on one fold")
    if "finetune" in metrics.phases and kept.phase == "head":
        sentences.append(
            f"phase 2 did not beat phase 1: try a lower --lr-finetune than {recipe.lr_finetune:g}"
            + (", or --schedule cosine" if recipe.schedule == "constant" else "")
        )
    losses = [record.loss if record.val_loss is None else record.val_loss for record in history]
    falls = not metrics.out_of_fold and len(losses) > 1 and kept is history[-1]  # losses of mixtures are noisy
    if falls and losses[-1] < (1 - _STILL_FALLING) * losses[-2]:
        option = "--finetune-epochs" if kept.phase == "finetune" else "--head-epochs"
        sentences.append(f"the loss was still falling in the last epoch: more {option}, features are reused")
    if counts.max() > _IMBALANCE * counts.min() and config.class_weights == "none":
        sentences.append(
            f"the largest class has {counts.max() / counts.min():.0f} times the images of the smallest: "
            "--class-weights balanced"
        )
    if counts.min() < _FEW_IMAGES:
        sentences.append(
            f"the smallest class has {counts.min():,} images to train on: a few dozen more would help most"
        )
    if left_out:
        sentences.append(f"{left_out:,} images were left out: repair or remove them")
    return sentences


@dataclass(frozen=True, repr=False)
class TrainSummary(Shown):
    """The result of a training.

    Attributes:
        left_out: address and reason of every unusable image.
        seconds: wall time by stage.
        label_errors: None if `already_done`.
        already_done: whether the bundle existed before and nothing was trained.
        options: those whose defaults depend on others or on the images, as used; empty if `already_done`.
    """

    output: str
    model_id: str
    classes: tuple[str, ...]
    images: RoleCounts
    left_out: list[tuple[str, str]]
    history: list[EpochRecord]
    metrics: Metrics
    seconds: dict[str, float] = field(default_factory=dict)
    label_errors: LabelErrorSummary | None = None
    advice: list[str] = field(default_factory=list)
    already_done: bool = False
    options: dict[str, Json] = field(default_factory=dict)

    def describe(self) -> Card:
        """Return what a notebook shows: how good the model is, and where it lies."""
        figures = [
            (f"{self.metrics.name(role)} accuracy", f"{measured.accuracy:.3f} of {measured.images:,} images")
            for role, measured in self.metrics.list_measured()
        ]
        figures += [("classes", name_classes(self.classes)), ("images", str(self.images))]
        if self.left_out:
            figures.append(("left out", f"{len(self.left_out):,} images that cannot be used"))
        figures += [("bundle", self.output), ("report", f"{self.output}/report.html")]
        if self.seconds:
            figures.append(("seconds", f"{sum(self.seconds.values()):,.0f}"))
        return Card("Already trained" if self.already_done else "Trained", figures)


def log_run(config: TrainConfig, summary: TrainSummary) -> None:
    """Log a training to `--mlflow-uri`, as one run of the experiment "tlray"."""
    import mlflow

    mlflow.set_tracking_uri(config.mlflow_uri)
    mlflow.set_experiment("tlray")
    with mlflow.start_run(run_name=summary.model_id[:12]):
        mlflow.log_params({**describe(config), **summary.options})
        for record in summary.history:
            numbers = {name: value for name, value in asdict(record).items() if isinstance(value, int | float)}
            mlflow.log_metrics(numbers, step=numbers.pop("epoch"))
        for role, measured in summary.metrics.list_measured():
            mlflow.log_metric(f"{role}_accuracy", measured.accuracy)
        mlflow.log_metrics({f"seconds {stage}": spent for stage, spent in summary.seconds.items()})
        mlflow.set_tags({"model_id": summary.model_id, "bundle": summary.output})
