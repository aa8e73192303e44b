"""What the distributed loop costs: a phase-2 epoch over cached features beside a bare loop over the same arrays.

    python tests/benchmarks/loop.py --images 512 --batch-size 64

Trains an InceptionV3 at 299 px on noise with 2 workers of 1 thread, takes the best epoch of phase 2
after its first, then runs the same network in one process of 2 threads over arrays in memory. Prints both rates and
their ratio.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

BARE = """
import json, os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, tensorflow as tf
from tlray.model.network import Network, build_base, build_head, build_tail, cut_tail
batch, images = int(sys.argv[1]), int(sys.argv[2])
tf.config.threading.set_intra_op_parallelism_threads(2)
tail = cut_tail(build_base("inception_v3", 299, weights=None, seed=0), "mixed8")
head = build_head("inception_v3", (1024,), 2, seed=0)
network = Network("inception_v3", "activations", build_tail(tail), tail.positions, head, train_batchnorm=False)
network.assign_weights(tail.weights)
network.open_base("mixed8")
variables = network.trainable_variables
optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
optimizer.build(variables)

@tf.function
def step(inputs, labels):
    with tf.GradientTape() as tape:
        probabilities = network.call(inputs, training=True)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, probabilities))
    optimizer.apply(tape.gradient(loss, variables), variables)
    return loss

features = np.random.default_rng(0).random((images, 8, 8, 1280), np.float32)
labels = np.arange(images, dtype=np.int32) % 2
rates = []
for _ in range(4):
    began = time.monotonic()
    for start in range(0, images, batch):
        step(features[start : start + batch], labels[start : start + batch])
    rates.append(images / (time.monotonic() - began))
print(json.dumps(max(rates[1:])))
"""


@dataclass(frozen=True)
class Options:
    """Sizes."""

    images: int = 512
    """A multiple of both global batches, so that no step is padded."""
    batch_size: int = 64
    """Of each of the 2 workers; the bare loop takes the same."""


def main(options: Options) -> None:
    """Run both, print the ratio."""
    with tempfile.TemporaryDirectory() as root:
        write_images(Path(root, "data"), options.images)
        bundle = Path(root, "bundle")
        command = [sys.executable, "-m", "tlray", "train", "--data", f"{root}/data", "--output", str(bundle)]
        command += ["--weights", "none", "--val-fraction", "0", "--cache", "on", "--cache-dir", f"{root}/cache"]
        command += ["--views", "1", "--head-epochs", "0", "--finetune-epochs", "4", "--lr-finetune", "1e-4"]
        command += ["--num-workers", "2", "--batch-size", str(options.batch_size), "--precision", "float32"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        history = json.loads((bundle / "training" / "history.json").read_text())
        ours = max(record["images"] / record["train_seconds"] for record in history[1:])
        bare = [sys.executable, "-c", BARE, str(options.batch_size), str(options.images)]
        done = subprocess.run(bare, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ})
        theirs = float(done.stdout.strip().splitlines()[-1])
    print(f"tlray, 2 workers of 1 thread  {ours:8.1f} images/s")
    print(f"bare loop, 2 threads          {theirs:8.1f} images/s")
    print(f"ratio                         {ours / theirs:8.2f}")


def write_images(folder: Path, count: int) -> None:
    """Noise in two classes."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for index in range(count):
        path = folder / str(index % 2) / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(path)


if __name__ == "__main__":
    main(tyro.cli(Options))
