"""The records of a bundle: `bundle.json`, `training/history.json` and `golden/golden.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from tlray.metrics.calibration import CalibrationRecord
from tlray.metrics.classification import Measurement, UncalibratedMeasurement
from tlray.metrics.intervals import LossGain
from tlray.metrics.thresholds import Thresholds
from tlray.storage.records import Json

FORMAT: Literal[2] = 2

DECODER = "tlray.images.decode/2"
"""The decoder of `images/decode.py`; the number changes with the pixels that it makes of a file."""

PhaseName = Literal["head", "finetune"]


@dataclass(frozen=True)
class Architecture:
    """The network.

    Attributes:
        backbone: a name in `BACKBONES`; of an imported model, its own name.
        head_units: width of each dense layer between pooling and softmax.
        num_features: length of the pooled features; 0 if the model gives none.
        weights_sha256: sha256 of all weights.
    """

    backbone: str
    head_units: tuple[int, ...]
    num_classes: int
    num_features: int
    weights_sha256: str


@dataclass(frozen=True)
class Preprocessing:
    """The way from an encoded image to the network's input.

    Attributes:
        image_size: side of the square, in pixels.
        scale, offset: a pixel in [0, 255] enters as `pixel * scale + offset`.
    """

    image_size: int
    scale: float
    offset: float
    decoder: str = DECODER
    mode: str = "RGB"
    exif: str = "upright"
    alpha: str = "over white"
    resize: str = "bilinear, squashed"


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: from 1, over both phases.
        loss, accuracy: over the training images, each counted once.
        val_loss, val_accuracy, val_macro_f1: over the validation images; None without any.
        val_weighted_loss: the same loss with each image counted by the weight of its class.
        images, steps: numbers of training images and steps.
        seconds: validation included; `train_seconds` is without it, `wait_seconds` the part of these without input.
        learning_rate: rate of the last step.
    """

    phase: PhaseName
    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    images: int
    steps: int
    seconds: float
    train_seconds: float
    wait_seconds: float
    learning_rate: float
    val_macro_f1: float | None = None
    val_weighted_loss: float | None = None


@dataclass(frozen=True)
class KeptEpoch:
    """The epoch that became the model."""

    phase: PhaseName
    epoch: int


@dataclass(frozen=True)
class PhaseBest:
    """The best epoch of a phase, or the last of phase 2 where that is compared; attributes as in `EpochRecord`."""

    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    val_weighted_loss: float | None = None


@dataclass(frozen=True)
class OodPercentiles:
    """Percentiles of the out-of-distribution score of the validation images, by name ("50", "99")."""

    percentiles: dict[str, float]


@dataclass(frozen=True)
class Metrics:
    """The model's metrics; None without such images, or for an imported model.

    Attributes:
        phases: figures by phase.
        validation, test: measured after calibration.
        uncalibrated: the validation images before calibration.
        calibration_gain: of the temperature; None if it was not fitted.
        finetune_gain: of phase 2 over phase 1's best epoch; None if they were not compared image by image.
        out_of_fold: `validation` and `uncalibrated` are of training images, each by a network trained without its fold.
    """

    kept: KeptEpoch | None = None
    phases: dict[str, PhaseBest] = field(default_factory=dict)
    validation: Measurement | None = None
    test: Measurement | None = None
    uncalibrated: UncalibratedMeasurement | None = None
    ood_score: OodPercentiles | None = None
    calibration_gain: LossGain | None = None
    finetune_gain: LossGain | None = None
    out_of_fold: bool = False

    def list_measured(self) -> list[tuple[str, Measurement]]:
        """List the roles that were measured, validation first."""
        roles = (("validation", self.validation), ("test", self.test))
        return [(role, measured) for role, measured in roles if measured is not None]

    def name(self, role: str) -> str:
        """Return a role's name for people: that of folds is "held-out" where a trial measured the one it left out."""
        if role != "validation" or not self.out_of_fold:
            return role
        return "held-out" if self.kept is not None and self.kept.phase == "finetune" else "out-of-fold"


@dataclass(frozen=True)
class RoleCounts:
    """Images by role."""

    train: int
    validation: int
    test: int

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {role}" for role, count in asdict(self).items() if count)


@dataclass(frozen=True)
class TrainingRecord:
    """The training that made the model.

    Attributes:
        config: options that decide the result, as given.
        resolved: values of those options whose defaults depend on others.
        images_fingerprint: sha256 over the listing of all images.
        counts: images used.
        left_out: number of images that could not be used.
    """

    config: dict[str, Json]
    resolved: dict[str, Json]
    images_fingerprint: str
    counts: RoleCounts
    left_out: int

    @property
    def data(self) -> str:
        """The training images' addresses, for people."""
        data = self.config["data"]
        return data if isinstance(data, str) else ", ".join(map(str, data))

    @property
    def options(self) -> dict[str, Json]:
        """The config with its defaults resolved."""
        return {**self.config, **self.resolved}


@dataclass(frozen=True)
class Manifest:
    """`bundle.json`, and what `class_tables` holds of `metrics` and `thresholds`.

    Attributes:
        model_id: sha256 over architecture (which has the weights' hash), preprocessing, class list and calibration.
        classes: names by index.
        thresholds: None without validation images.
        training: None for an imported model.
        versions: versions of tlray and its main dependencies that made the bundle.
        files: sha256 by name of every file that inference needs, and of the tables by class.
    """

    format: Literal[2]
    model_id: str
    architecture: Architecture
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    calibration: CalibrationRecord
    thresholds: Thresholds | None
    training: TrainingRecord | None
    metrics: Metrics
    versions: dict[str, str]
    files: dict[str, str]


@dataclass(frozen=True)
class GoldenImage:
    """A golden image: its file in the bundle, its predicted class and its probabilities, `[C]`."""

    file: str
    class_name: str
    probabilities: list[float]


@dataclass(frozen=True)
class GoldenRecord:
    """`golden/golden.json`."""

    images: list[GoldenImage]


def hash_json(value: Json) -> str:
    """Return the sha256 of a JSON value in one canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_preprocessing(preprocessing: Preprocessing) -> str:
    """Return the sha256 of a preprocessing."""
    return hash_json(asdict(preprocessing))


def compute_model_id(manifest: Manifest) -> str:
    """Return the id of a manifest's model; the id that it holds is not used."""
    plain = asdict(manifest)
    return hash_json({key: plain[key] for key in ("architecture", "preprocessing", "classes", "calibration")})


def sign(manifest: Manifest) -> Manifest:
    """Return a manifest with its model id filled in."""
    return replace(manifest, model_id=compute_model_id(manifest))


def find_kept(history: Sequence[EpochRecord], kept: KeptEpoch | None) -> EpochRecord:
    """Return the record of the kept epoch, else of the last one."""
    return next((record for record in history if kept is not None and record.epoch == kept.epoch), history[-1])
