"""Make a bundle of a Keras classifier that was trained elsewhere.

tlray import model.keras --classes classes.txt --scale 0.00784313725 --offset -1 --output bundle/
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from tlray import storage
from tlray.config import ImportConfig
from tlray.console import Stage, say, silence_stderr
from tlray.errors import OK, ConfigError, DataError, FetchError, OutputError, WeightsError
from tlray.images.batch import decode_images
from tlray.metrics.calibration import MIN_IMAGES, Calibration, apply_temperature, fit_temperature
from tlray.metrics.classification import measure, measure_uncalibrated
from tlray.metrics.ood import MAX_HELD, MAX_REFERENCES, fit_ood_score
from tlray.metrics.thresholds import Thresholds, choose_thresholds
from tlray.model import bundle
from tlray.model.manifest import Architecture, Manifest, Metrics, OodPercentiles, Preprocessing
from tlray.model.safety import find_threats
from tlray.model.tf_imports import import_keras
from tlray.sources.labelled import scan

if TYPE_CHECKING:
    import keras

_BATCH_SIZE = 32
_SYNTHETIC_IMAGES = 16
_SUM_TOLERANCE = 1e-3

_GoldenCandidate: TypeAlias = tuple[str, bytes, npt.NDArray[np.uint8]]
"""Name, encoded file, and pixels `[S, S, 3]` of an image."""


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
    data = _read("the model", config.model)
    labelled = None
    if config.val_data is not None:
        labelled = scan(storage.resolve(config.val_data), classes, option="--val-data").table
    _start_keras()
    from tlray.model import serving

    model = _load(config.model, data)
    size = _find_image_size(config, model)
    network = _wrap(model, size, config, classes)
    predictions = None if labelled is None else _predict(network, labelled, size, config)
    calibration = _calibrate(predictions, scalable=network.logits is not None)
    final = network.scale(calibration.temperature)
    frozen = serving.freeze_classifier(final, network.pooled, size, calibration.ood_score)
    golden = serving.make_golden(frozen, _choose_golden(labelled, size, config), classes)
    with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
        final.save(Path(folder, "model.keras"))
        serving.save_for_serving(frozen, Path(folder, "saved_model"))
        if threats := [*find_threats(Path(folder))]:
            raise WeightsError(f"{config.model} cannot be made a bundle: {'; '.join(threats)}; use plain Keras layers")
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
    metrics, thresholds = _measure(predictions, calibration, classes, config.target_precision)
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


def read_classes(uri: str) -> list[str]:
    """Read class names, in the order of a network's outputs.

    A file holds one name a line, a JSON list, or a JSON object of names and indices in either direction, as Keras's
    `class_indices`.

    Raises:
        ConfigError: the file has fewer than two names, a name twice, or indices with a gap.
    """
    text = _read("--classes", uri).decode("utf-8-sig", errors="replace")
    try:
        names = json.loads(text)
    except ValueError:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(names, dict):
        by_index = {_get_index(name, value): value if isinstance(value, str) else name for name, value in names.items()}
        names = [by_index.get(index) for index in range(len(names))]
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            [
                "--classes takes a file with one name a line, a JSON list, or a JSON object of names and indices "
                f"from 0 on, of two or more; got {uri}"
            ]
        )
    names = [unicodedata.normalize("NFC", name) for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError([f"--classes takes each name once; got {', '.join(twice[:5])} several times in {uri}"])
    return names


def _get_index(name: str, value: object) -> int | None:
    """Return the index of an entry `name: index` or `"index": name`."""
    if isinstance(value, int):
        return value
    return int(name) if isinstance(value, str) and name.isdecimal() else None


def _read(what: str, uri: str) -> bytes:
    try:
        return storage.get(storage.resolve(uri))
    except FetchError as error:
        raise ConfigError([f"{what} {storage.redact(uri)} cannot be read: {error}"]) from None


def _load(uri: str, data: bytes) -> keras.Model:
    """Load the model; code inside it is an error."""
    import keras

    with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
        path = Path(folder, "model.keras")
        path.write_bytes(data)
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # Keras passes on whatever its layers raise
            reason = " ".join(str(error).split()).partition(". ")[0][:300]
            raise WeightsError(
                f"{uri} cannot be loaded safely ({reason}); save it with Keras 3, without lambdas and custom layers"
            ) from None
    shape = model.inputs[0].shape
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(shape) != 4 or shape[-1] != 3:
        raise WeightsError(f"{uri} must take one batch of images [N, S, S, 3] and give one output; it takes {shape}")
    if len(model.outputs[0].shape) != 2:
        raise WeightsError(f"{uri} must give probabilities or logits [N, C]; it gives {model.outputs[0].shape}")
    return model


def _find_image_size(config: ImportConfig, model: keras.Model) -> int:
    height, width = model.inputs[0].shape[1:3]
    size = config.image_size or height or width
    if size is None:
        raise ConfigError(["--image-size is needed, since the model takes images of any size"])
    if {height, width} - {None, size}:
        raise ConfigError([f"--image-size takes what the model does, a square of {height} x {width}; got {size}"])
    return int(size)


@dataclass(frozen=True)
class _Network:
    """A model with its preprocessing, as symbolic tensors.

    Attributes:
        inputs: float32 pixels in [0, 255], `[N, S, S, 3]`.
        probabilities: `[N, C]`, not calibrated.
        logits: `[N, C]`, the softmax's inputs; None if unknown.
        pooled: `[N, D]`, the last dense layer's inputs; None without such a layer.
    """

    inputs: keras.KerasTensor
    probabilities: keras.KerasTensor
    logits: keras.KerasTensor | None
    pooled: keras.KerasTensor | None

    def scale(self, temperature: float) -> keras.Model:
        """Return the model with its logits divided by a temperature."""
        import keras

        outputs = self.probabilities
        if self.logits is not None:
            outputs = keras.layers.Rescaling(1 / temperature, name="temperature")(self.logits)
            outputs = keras.layers.Softmax(name="probabilities")(outputs)
        return keras.Model(self.inputs, outputs, name="tlray")

    def run(self, pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return probabilities `[N, C]` and features `[N, D]`, with D = 0 if the model has none."""
        import keras

        outputs = [self.probabilities, *([] if self.pooled is None else [self.pooled])]
        predictions = keras.Model(self.inputs, outputs).predict_on_batch(pixels.astype(np.float32))
        probabilities, *features = predictions if isinstance(predictions, list) else [predictions]
        return probabilities, features[0] if features else np.zeros((len(pixels), 0), np.float32)


def _wrap(model: keras.Model, size: int, config: ImportConfig, classes: Sequence[str]) -> _Network:
    import keras

    num_outputs = model.outputs[0].shape[-1]
    if num_outputs != len(classes):
        raise ConfigError(
            [f"--classes takes as many names as the model has outputs, {num_outputs}; got {len(classes)}"]
        )
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    pooled = dense[-1].input if dense and len(dense[-1].input.shape) == 2 else None
    last, end = model.layers[-1], model.outputs[0]
    if getattr(last, "activation", None) is keras.activations.sigmoid:
        raise WeightsError("the model must end in a softmax or give logits; its last layer has a sigmoid")
    softmax = getattr(last, "activation", None) is keras.activations.softmax or isinstance(last, keras.layers.Softmax)
    if softmax and isinstance(last, keras.layers.Dense):
        last.activation = keras.activations.linear
    elif softmax:
        end = last.input
    inner = keras.Model(model.inputs, [end, *([] if pooled is None else [pooled])])
    inputs = keras.Input((size, size, 3), dtype="float32", name="image")
    outputs = inner(keras.layers.Rescaling(config.scale, config.offset, name="rescale")(inputs), training=False)
    predictions, *features = (
        keras.layers.Activation("linear", dtype="float32")(tensor)  # under a mixed policy they would be half precision
        for tensor in (outputs if isinstance(outputs, list | tuple) else [outputs])
    )
    plain = _Network(inputs, predictions, None, features[0] if features else None)
    sums = plain.run(np.stack([pixels for _, _, pixels in _draw_images(size)]))[0]
    if not softmax and (sums >= 0).all() and np.abs(sums.sum(axis=1) - 1).max() <= _SUM_TOLERANCE:
        say("the model's softmax is not its last layer: its probabilities stay as they are")
        return plain
    if not softmax:
        say("the model gives logits: a softmax is added")
    return replace(plain, probabilities=keras.layers.Softmax()(predictions), logits=predictions)


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


def _predict(network: _Network, labelled: pa.Table, size: int, config: ImportConfig) -> _ValidationPredictions:
    uris, labels = labelled["uri"].to_pylist(), labelled["label"].to_numpy()
    kept, predictions = [], []
    fetched = storage.get_many(uris)
    with Stage("validate", len(uris)) as stage:
        for start in range(0, len(uris), _BATCH_SIZE):
            count = min(_BATCH_SIZE, len(uris) - start)
            images = decode_images(islice(fetched, count), count, size, config.limits)
            good = np.flatnonzero(np.array(images.status, object) == OK)
            if len(good):
                kept.append(good + start)
                predictions.append(network.run(images.pixels[good]))
            stage.advance(count)
    if not kept:
        raise DataError(f"--val-data {config.val_data}: none of {len(uris):,} images can be decoded")
    rows = np.concatenate(kept)
    probabilities, features = (np.concatenate(parts) for parts in zip(*predictions, strict=True))
    return _ValidationPredictions(labels[rows].astype(np.int64), probabilities, features, len(uris) - len(rows))


def _calibrate(predictions: _ValidationPredictions | None, *, scalable: bool) -> Calibration:
    """Fit temperature and out-of-distribution score; half of the images stand in for the unknown training images."""
    if predictions is None:
        return Calibration(1.0, 0, None)
    order = np.random.default_rng(0).permutation(len(predictions.labels))
    references, held = np.array_split(order, 2)
    references, held = references[:MAX_REFERENCES], held[:MAX_HELD]
    has_features = predictions.features.shape[1] > 0
    scalable = scalable and len(order) >= MIN_IMAGES
    return Calibration(
        temperature=fit_temperature(predictions.probabilities, predictions.labels) if scalable else 1.0,
        images=len(order) if scalable else 0,
        ood_score=fit_ood_score(predictions.features[references], predictions.features[held]) if has_features else None,
    )


def _measure(
    predictions: _ValidationPredictions | None,
    calibration: Calibration,
    classes: Sequence[str],
    target_precision: float,
) -> tuple[Metrics, Thresholds | None]:
    """Return `bundle.json`'s `metrics` and `thresholds`."""
    if predictions is None:
        return Metrics(), None
    calibrated = apply_temperature(predictions.probabilities, calibration.temperature)
    ood_score = calibration.ood_score
    metrics = Metrics(
        validation=measure(calibrated, predictions.labels, classes),
        uncalibrated=measure_uncalibrated(predictions.probabilities, predictions.labels),
        ood_score=None if ood_score is None else OodPercentiles(ood_score.percentiles),
    )
    return metrics, choose_thresholds(calibrated, predictions.labels, classes, target_precision)


def _choose_golden(labelled: pa.Table | None, size: int, config: ImportConfig) -> list[_GoldenCandidate]:
    if labelled is None:
        return _draw_images(size)
    from tlray.model.serving import read_images

    rows = np.random.default_rng(0).permutation(labelled.num_rows)[: 4 * _SYNTHETIC_IMAGES]
    uris = [labelled["uri"][int(row)].as_py() for row in rows]
    return read_images(uris, size, config.limits) or _draw_images(size)


def _draw_images(size: int) -> list[_GoldenCandidate]:
    """Draw patches of colour."""
    rng = np.random.default_rng(0)
    drawn = []
    for index in range(_SYNTHETIC_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (2 + index % 5, 2 + index % 7, 3), dtype=np.uint8))
        image = coarse.resize((size, size), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "PNG")
        drawn.append((f"{index}.png", file.getvalue(), np.asarray(image)))
    return drawn
