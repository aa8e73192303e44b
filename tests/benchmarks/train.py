"""tlray's training beside plain Keras following the same procedure, on the same images, one after the other.

    python tests/benchmarks/train.py --data DIR/train --test-data DIR/test --weights FILE.h5

Same split, head, optimizers, rates, epochs, augmentation and global batch; both keep the epoch that validation likes
best. Prints a table and, with --json FILE, writes it. Absolute times mean something only beside each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro


@dataclass(frozen=True)
class Options:
    """What both sides are told."""

    data: str
    """Class folders to train on."""
    test_data: str
    """Class folders to test on."""
    weights: str
    """Weights of the base without its top."""
    backbone: Literal["inception_v3", "mobilenet_v2"] = "inception_v3"
    image_size: int = 299
    head_epochs: int = 5
    finetune_epochs: int = 5
    lr_finetune: float = 1e-3
    """Rate of phase 2, SGD with momentum 0.9."""
    global_batch: int = 32
    num_workers: int = 2
    seed: int = 0
    only: Literal["both", "tlray", "keras"] = "both"
    json: str | None = None
    """Write the table here too."""


def run_tlray(options: Options) -> dict[str, float]:
    """The `tlray train` command."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder, "bundle")
        command = [sys.executable, "-m", "tlray", "train", "--data", options.data, "--test-data", options.test_data]
        command += ["--output", str(bundle), "--weights", options.weights, "--backbone", options.backbone]
        command += ["--image-size", str(options.image_size), "--num-workers", str(options.num_workers)]
        command += ["--batch-size", str(options.global_batch // options.num_workers), "--seed", str(options.seed)]
        command += ["--head-epochs", str(options.head_epochs), "--finetune-epochs", str(options.finetune_epochs)]
        command += ["--lr-finetune", str(options.lr_finetune)]
        began = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - began
        metrics = json.loads((bundle / "bundle.json").read_text())["metrics"]
    validation, test = metrics["validation"]["accuracy"], metrics["test"]["accuracy"]
    return {"seconds": seconds, "validation": validation, "test": test}


def run_keras(options: Options) -> dict[str, float]:
    """What a Keras user writes: ImageDataGenerator, compile, fit, unfreeze, compile, fit."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    began = time.monotonic()
    import keras
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    from tlray.backbones import BACKBONES
    from tlray.training.schedule import choose_validation

    keras.utils.set_random_seed(options.seed)
    size = (options.image_size, options.image_size)
    flow = {
        "target_size": size,
        "interpolation": "bilinear",
        "class_mode": "sparse",
        "batch_size": options.global_batch,
    }
    with tempfile.TemporaryDirectory() as folder:
        _link_split(Path(options.data), Path(folder), choose_validation)
        scale = {"preprocessing_function": lambda image: image / 127.5 - 1.0}
        augmented = ImageDataGenerator(shear_range=10, zoom_range=0.2, horizontal_flip=True, **scale)
        plain = ImageDataGenerator(**scale)
        training = augmented.flow_from_directory(f"{folder}/train", seed=options.seed, **flow)
        validation = plain.flow_from_directory(f"{folder}/val", shuffle=False, **flow)
        test = plain.flow_from_directory(options.test_data, shuffle=False, **flow)
        entry = BACKBONES[options.backbone]
        base = getattr(keras.applications, entry.keras_name)(
            include_top=False, weights=options.weights, input_shape=(*size, 3)
        )
        base.trainable = False
        inputs = keras.Input((*size, 3))
        features = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
        features = keras.layers.Dense(1024, activation="relu")(features)
        outputs = keras.layers.Dense(training.num_classes, activation="softmax")(features)
        model = keras.Model(inputs, outputs)
        keep = keras.callbacks.ModelCheckpoint(
            f"{folder}/best.weights.h5", monitor="val_accuracy", save_best_only=True, save_weights_only=True
        )
        fit = {"validation_data": validation, "callbacks": [keep], "verbose": 2}
        loss = "sparse_categorical_crossentropy"
        model.compile(keras.optimizers.RMSprop(1e-3), loss, metrics=["accuracy"])
        model.fit(training, epochs=options.head_epochs, **fit)
        base.trainable = True
        opened = {id(layer) for layer in entry.list_open_layers(base, entry.default_boundary)}
        for layer in base.layers:
            layer.trainable = id(layer) in opened and not isinstance(layer, keras.layers.BatchNormalization)
        model.compile(keras.optimizers.SGD(options.lr_finetune, momentum=0.9), loss, metrics=["accuracy"])
        model.fit(training, epochs=options.finetune_epochs, **fit)
        model.load_weights(f"{folder}/best.weights.h5")
        best = model.evaluate(validation, verbose=0)[1]
        tested = model.evaluate(test, verbose=0)[1]
    return {"seconds": time.monotonic() - began, "validation": float(best), "test": float(tested)}


def _link_split(data: Path, folder: Path, choose_validation: object) -> None:
    """tlray's own split by content hash, as two trees of links."""
    paths = sorted(path for path in data.glob("*/*") if path.is_file())
    names = sorted({path.parent.name for path in paths})
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    labels = np.array([names.index(path.parent.name) for path in paths], np.int32)
    chosen = choose_validation(digests, labels, 0.15)  # type: ignore[operator]
    for path, kept in zip(paths, chosen, strict=True):
        target = folder / ("val" if kept else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())


def main(options: Options) -> None:
    """Run both, print the table."""
    sides = {"tlray": run_tlray, "keras": run_keras}
    table = {name: run(options) for name, run in sides.items() if options.only in ("both", name)}
    print(f"\n{'':<8}{'seconds':>10}{'validation':>12}{'test':>8}")
    for name, row in table.items():
        print(f"{name:<8}{row['seconds']:>10.1f}{row['validation']:>12.4f}{row['test']:>8.4f}")
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "results": table}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
