"""What else labels a folder of images with a Keras model, each as its own documentation shows.

python tests/benchmarks/peers.py keras|ray|daft --model BUNDLE --images DIR --output DIR

keras: `tf.data` and `model.predict`. ray: Ray Data's guide to batch inference on images. daft (`pip install daft`): a
class UDF behind Daft's own download, decode and resize. Each writes Parquet with path, class index and probability. The
last line printed is the number of rows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

BATCH_SIZE = 32


@dataclass(frozen=True)
class Options:
    """Who labels what."""

    peer: tyro.conf.Positional[Literal["keras", "ray", "daft"]]
    model: str
    """A bundle: its model.keras is used."""
    images: str
    """A folder of images."""
    output: str
    """A new folder."""
    image_size: int = 299


def load_model(options: Options) -> Any:
    """The Keras model: float32 pixels in [0, 255] in, probabilities out."""
    import keras

    return keras.saving.load_model(Path(options.model) / "model.keras")


def run_keras(options: Options) -> int:
    """`tf.data` and `model.predict`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tensorflow as tf

    model = load_model(options)
    paths = sorted(str(path) for path in Path(options.images).iterdir())

    def load(path: Any) -> Any:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.image.resize(image, (options.image_size, options.image_size))

    images = tf.data.Dataset.from_tensor_slices(paths).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    answers = model.predict(images.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE), verbose=0)
    table = pa.table({"path": paths, "index": answers.argmax(1), "probability": answers.max(1)})
    Path(options.output).mkdir(parents=True)
    pq.write_table(table, Path(options.output) / "labels.parquet")
    return table.num_rows


def run_ray(options: Options) -> int:
    """Ray Data's guide to batch inference, with a Keras model in its actor."""
    import numpy as np
    import pyarrow.parquet as pq
    import ray

    class Classify:
        def __init__(self) -> None:
            self.model = load_model(options)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            answers = self.model.predict(batch["image"].astype(np.float32), verbose=0)
            return {"path": batch["path"], "index": answers.argmax(1), "probability": answers.max(1)}

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    size = (options.image_size, options.image_size)
    images = ray.data.read_images(options.images, size=size, mode="RGB", include_paths=True)
    # one actor of one CPU: two would leave none of two cores for the reading tasks
    actors = max(1, (os.cpu_count() or 1) - 1)
    labels = images.map_batches(
        Classify, batch_size=BATCH_SIZE, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=actors)
    )
    labels.write_parquet(options.output)
    return int(pq.read_table(options.output).num_rows)


def run_daft(options: Options) -> int:
    """A class UDF behind Daft's own download, decode and resize."""
    import daft
    import numpy as np
    import pyarrow.parquet as pq

    answer = daft.DataType.struct({"index": daft.DataType.int64(), "probability": daft.DataType.float32()})

    @daft.cls(max_concurrency=1)
    class Classify:
        def __init__(self) -> None:
            self.model = load_model(options)

        @daft.method.batch(return_dtype=answer, batch_size=BATCH_SIZE)
        def label(self, images: Any) -> list[dict[str, Any]]:
            answers = self.model.predict(np.stack(images.to_pylist()).astype(np.float32), verbose=0)
            return [{"index": int(row.argmax()), "probability": float(row.max())} for row in answers]

    frame = daft.from_glob_path(f"{options.images}/*")
    image = daft.col("path").download().decode_image(mode="RGB").resize(options.image_size, options.image_size)
    frame = frame.with_column("answer", Classify().label(image)).select("path", "answer")
    frame.write_parquet(options.output)
    return int(pq.read_table(options.output).num_rows)


if __name__ == "__main__":
    options = tyro.cli(Options)
    print({"keras": run_keras, "ray": run_ray, "daft": run_daft}[options.peer](options))
