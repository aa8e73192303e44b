"""What a Keras user writes for the same job: read, augment, compile, fit, unfreeze, compile, fit, save.

    python tests/benchmarks/plain_keras.py --data DIR/train --test-data DIR/test --weights FILE.h5 --form tf.data

Prints one JSON line: seconds by stage and the test accuracy. `train.py` beside it runs it against tlray.
"""

import time

BEGAN = time.monotonic()

import json  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Literal  # noqa: E402

import numpy as np  # noqa: E402
import tyro  # noqa: E402

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from job import Job  # noqa: E402

from tlray.model.backbones import BACKBONES  # noqa: E402

SHEAR_DEG, ZOOM = 10.0, 0.2


@dataclass(frozen=True)
class Options(Job):
    """How this side does it."""

    form: Literal["generator", "tf.data"] = "tf.data"
    seed: int = 0


def make_generators(options: Options) -> tuple[Any, Any, int]:
    """Training and test images by `ImageDataGenerator`."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    scale = {"preprocessing_function": lambda image: image / 127.5 - 1.0}
    flow = {
        "target_size": (options.image_size, options.image_size),
        "interpolation": "bilinear",
        "class_mode": "sparse",
        "batch_size": options.global_batch,
    }
    augmented = ImageDataGenerator(shear_range=SHEAR_DEG, zoom_range=ZOOM, horizontal_flip=True, **scale)
    training = augmented.flow_from_directory(options.data, seed=options.seed, **flow)
    test = ImageDataGenerator(**scale).flow_from_directory(options.test_data, shuffle=False, **flow)
    return training, test, training.num_classes


def make_datasets(options: Options) -> tuple[Any, Any, int]:
    """The same by `tf.data`, decoded and augmented in parallel, prefetched."""
    size = options.image_size
    names = sorted(path.name for path in Path(options.data).iterdir() if path.is_dir())

    def list_files(root: str) -> tuple[list[str], list[int]]:
        pairs = [(str(path), label) for label, name in enumerate(names) for path in sorted(Path(root, name).iterdir())]
        return [path for path, _ in pairs], [label for _, label in pairs]

    def read(path: Any, label: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, (size, size)), label

    def augment(image: Any, label: Any) -> Any:
        draws = tf.random.uniform([4], -1.0, 1.0)
        shear = draws[0] * (np.pi / 180 * SHEAR_DEG)
        across, down = 1 + ZOOM * draws[1], 1 + ZOOM * draws[2]
        across_flipped = tf.where(draws[3] < 0, -across, across)
        a, b, d, e = across_flipped, -tf.sin(shear) * down, 0.0, tf.cos(shear) * down
        centre = (size - 1) / 2
        matrix = tf.stack([a, b, centre - a * centre - b * centre, d, e, centre - e * centre, 0.0, 0.0])
        warped = tf.raw_ops.ImageProjectiveTransformV3(
            images=image[None],
            transforms=matrix[None],
            output_shape=(size, size),
            interpolation="BILINEAR",
            fill_mode="NEAREST",
            fill_value=0.0,
        )
        return warped[0], label

    def scale(images: Any, labels: Any) -> Any:
        return images / 127.5 - 1.0, labels

    paths, labels = list_files(options.data)
    training = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths), seed=options.seed)
    training = training.map(read, tf.data.AUTOTUNE).map(augment, tf.data.AUTOTUNE)
    test = tf.data.Dataset.from_tensor_slices(list_files(options.test_data)).map(read, tf.data.AUTOTUNE)
    batch = options.global_batch
    return (
        training.batch(batch).map(scale).prefetch(tf.data.AUTOTUNE),
        test.batch(batch).map(scale).prefetch(tf.data.AUTOTUNE),
        len(names),
    )


def main(options: Options) -> None:
    """Train, test, save."""
    keras.utils.set_random_seed(options.seed)
    make = make_generators if options.form == "generator" else make_datasets
    training, test, num_classes = make(options)
    entry = BACKBONES[options.backbone]
    base = getattr(keras.applications, entry.keras_name)(
        include_top=False, weights=options.weights, input_shape=(options.image_size, options.image_size, 3)
    )
    base.trainable = False
    inputs = keras.Input((options.image_size, options.image_size, 3))
    features = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    features = keras.layers.Dense(1024, activation="relu")(features)
    outputs = keras.layers.Dense(num_classes, activation="softmax")(features)
    model = keras.Model(inputs, outputs)
    loss = "sparse_categorical_crossentropy"
    seconds = {"start-up": time.monotonic() - BEGAN}
    model.compile(keras.optimizers.RMSprop(1e-3), loss, metrics=["accuracy"])
    history = model.fit(training, epochs=options.head_epochs, verbose=0).history["loss"]
    seconds["phase 1"] = time.monotonic() - BEGAN - sum(seconds.values())
    base.trainable = True
    opened = {id(layer) for layer in entry.list_open_layers(base, entry.default_boundary)}
    for layer in base.layers:
        layer.trainable = id(layer) in opened and not isinstance(layer, keras.layers.BatchNormalization)
    model.compile(keras.optimizers.SGD(options.lr_finetune, momentum=0.9), loss, metrics=["accuracy"])
    history += model.fit(training, epochs=options.finetune_epochs, verbose=0).history["loss"]
    seconds["phase 2"] = time.monotonic() - BEGAN - sum(seconds.values())
    accuracy = float(model.evaluate(test, verbose=0)[1])
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model.keras"))
    seconds["saving"] = time.monotonic() - BEGAN - sum(seconds.values())
    print(json.dumps({"seconds": seconds, "test": accuracy, "loss": history}))


if __name__ == "__main__":
    main(tyro.cli(Options))
