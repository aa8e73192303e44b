"""Make a bundle of a Keras classifier that was trained elsewhere.

tlray import model.keras --classes classes.txt --scale 0.00784313725 --offset -1 --output bundle/
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.config import ImportConfig
from tlray.console import Stage, say, silence_stderr
from tlray.errors import OK, DataError, OutputError, WeightsError
from tlray.images.batch import decode_images
from tlray.importer.files import load_model, read_classes, read_model
from tlray.importer.network import GoldenCandidate, ImportedNetwork, draw_images, find_image_size, wrap
from tlray.metrics.calibration import Calibration, apply_temperature, fit_temperature
from tlray.metrics.classification import measure, measure_uncalibrated
from tlray.metrics.ood import MAX_HELD, draw_reference_rows, fit_ood_score
from tlray.metrics.thresholds import Thresholds, describe_thresholds
from tlray.model import bundle
from tlray.model.manifest import Architecture, Manifest, Metrics, OodPercentiles, Preprocessing
from tlray.model.safety import find_threats
from tlray.model.tf_imports import import_keras
from tlray.sources.labelled import LabelledImages, scan

_BATCH_SIZE = 32
_GOLDEN_IMAGES = 64
"""Validation images among which the golden ones are chosen."""

_CHANCE_MARGIN = 1.3
"""An accuracy below this multiple of a guess's is warned about: most often the pixels enter in another range."""


@dataclass(frozen=True)
class ImportSummary:
    """The result of an import; `failed` is the number of unusable validation images."""

    output: str
    manifest: Manifest
    failed: int


def import_model(config: ImportConfig) -> ImportSummary:
    """Make a bundle of `config.model`, with golden images, calibrated if there are validation images.

    Raises:
        UsageError: the model, the class names, the images or the output cannot be used.
    """
    config.check()
    storage.configure(config.s3_options)
    output = storage.resolve(config.output)
    if storage.has_content(output):
        raise OutputError(f"--output {output} already holds something; give a new folder or prefix")
    storage.check_writable(output)
    classes = read_classes(config.classes)
    data = read_model(config.model)
    labelled = None
    if config.val_data is not None:
        labelled = scan(
            storage.resolve(config.val_data), classes, option="--val-data", label_column=config.label_column
        )
    _start_keras()
    from tlray.model import serving

    model = load_model(config.model, data)
    size = find_image_size(config, model)
    network = wrap(model, size, config, classes)
    predictions = None if labelled is None else _predict(network, labelled, size, config)
    calibration = _calibrate(predictions, len(classes), scalable=network.logits is not None)
    final = network.scale(calibration.temperature)
    frozen = serving.freeze_classifier(final, network.pooled, size, calibration.ood_score)
    golden = serving.make_golden(frozen, _choose_golden(labelled, size, config), classes)
    with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
        final.save(Path(folder, "model.keras"))
        serving.save_for_serving(frozen, Path(folder, "saved_model"))
        if fault := serving.save_for_openvino(Path(folder), calibration.ood_score):
            say(f"OpenVINO cannot convert {config.model} ({fault}): CPUs will run it on TensorFlow, at half the speed")
        if threats := [*find_threats(Path(folder))]:
            raise WeightsError(f"{config.model} cannot be made a bundle: {'; '.join(threats)}; use plain Keras layers")
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
    metrics, thresholds = _measure(predictions, calibration, classes, config)
    _warn_of_chance(metrics, predictions)
    manifest = bundle.save_bundle(
        output,
        {**files, **golden},
        make_reports=lambda _: {},
        architecture=Architecture(
            backbone=model.name,
            head_units=(),
            num_classes=len(classes),
            num_features=0 if network.pooled is None else int(network.pooled.shape[-1]),
            weights_sha256=hashlib.sha256(data).hexdigest(),
        ),
        classes=classes,
        preprocessing=Preprocessing(size, float(config.scale), float(config.offset)),
        calibration=calibration.describe(),
        thresholds=thresholds,
        training=None,
        metrics=metrics,
        history=[],
    )
    return ImportSummary(output, manifest, 0 if predictions is None else predictions.failed)


def _start_keras() -> None:
    """Import Keras and initialize TensorFlow's devices, which logs before TensorFlow reads its log level."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silence_stderr():
        import_keras()
        import keras

        keras.ops.zeros(1)


@dataclass(frozen=True)
class _ValidationPredictions:
    """Predictions of the usable validation images.

    Attributes:
        labels: `[N]`.
        probabilities: `[N, C]`, not calibrated.
        features: `[N, D]`.
        failed: number of unusable images.
    """

    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    failed: int


def _predict(
    network: ImportedNetwork, labelled: LabelledImages, size: int, config: ImportConfig
) -> _ValidationPredictions:
    places, labels = labelled.places, labelled.table["label"].to_numpy()
    kept, predictions = [], []
    fetched = places.fetch_all(config.limits.max_bytes)
    with Stage("validate", len(places)) as stage:
        for start in range(0, len(places), _BATCH_SIZE):
            count = min(_BATCH_SIZE, len(places) - start)
            images = decode_images(islice(fetched, count), count, size, config.limits)
            good = np.flatnonzero(np.array(images.status, object) == OK)
            if len(good):
                kept.append(good + start)
                predictions.append(network.run(images.pixels[good]))
            stage.advance(count)
    if not kept:
        raise DataError(f"--val-data {config.val_data}: none of {len(places):,} images can be decoded")
    rows = np.concatenate(kept)
    probabilities, features = (np.concatenate(parts) for parts in zip(*predictions, strict=True))
    return _ValidationPredictions(labels[rows].astype(np.int64), probabilities, features, len(places) - len(rows))


def _calibrate(predictions: _ValidationPredictions | None, num_classes: int, *, scalable: bool) -> Calibration:
    """Fit temperature and out-of-distribution score; half of the images stand in for the unknown training images."""
    if predictions is None:
        return Calibration(1.0, 0, None)
    order = np.random.default_rng(0).permutation(len(predictions.labels))
    # by class: each second image of it is held out
    order = order[np.argsort(predictions.labels[order], kind="stable")]
    turns = np.arange(len(order)) - np.searchsorted(predictions.labels[order], predictions.labels[order])
    references, held = order[turns % 2 == 0], order[turns % 2 == 1]
    references, held = draw_reference_rows(references, predictions.labels, num_classes, 0), held
    held = np.random.default_rng(0).permutation(held)[:MAX_HELD]
    ood_score = None
    if predictions.features.shape[1]:
        features = predictions.features
        ood_score = fit_ood_score(features[references], predictions.labels[references], num_classes, features[held])
    if not scalable:
        return Calibration(1.0, 0, ood_score)
    fit = fit_temperature(predictions.probabilities, predictions.labels)
    return Calibration(fit.temperature, fit.images, ood_score, fit.gain)


def _measure(
    predictions: _ValidationPredictions | None,
    calibration: Calibration,
    classes: Sequence[str],
    config: ImportConfig,
) -> tuple[Metrics, Thresholds | None]:
    """Return `bundle.json`'s `metrics` and `thresholds`."""
    if predictions is None:
        return Metrics(), None
    calibrated = apply_temperature(predictions.probabilities, calibration.temperature)
    ood_score = calibration.ood_score
    metrics = Metrics(
        validation=measure(calibrated, predictions.labels, classes),
        uncalibrated=measure_uncalibrated(predictions.probabilities, predictions.labels),
        calibration_gain=calibration.gain,
        ood_score=None if ood_score is None else OodPercentiles(ood_score.percentiles),
    )
    return metrics, describe_thresholds(
        calibrated, predictions.labels, classes, config.target_precision, config.confidence
    )


def _warn_of_chance(metrics: Metrics, predictions: _ValidationPredictions | None) -> None:
    if predictions is None or metrics.validation is None:
        return
    guess = np.bincount(predictions.labels).max() / len(predictions.labels)
    if metrics.validation.accuracy < min(guess * _CHANCE_MARGIN, 0.9):
        say(
            f"WARNING: {metrics.validation.accuracy:.0%} of the validation images are right, the most frequent class "
            f"alone gives {guess:.0%}; look at --scale, --offset, --preprocessing and the order of --classes"
        )


def _choose_golden(labelled: LabelledImages | None, size: int, config: ImportConfig) -> list[GoldenCandidate]:
    if labelled is None:
        return draw_images(size)
    from tlray.model.serving import read_images

    places = labelled.places
    rows = np.random.default_rng(0).permutation(len(places))[:_GOLDEN_IMAGES]
    fetched = places.fetch(rows, config.limits.max_bytes)
    return read_images(places.list_names(rows), fetched, size, config.limits) or draw_images(size)
