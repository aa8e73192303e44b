"""A phase-2 training step of each backbone over cached activations: the product's own, and one compiled by XLA.

    python tests/benchmarks/steps.py --batch-size 32 --threads 2

Prints images/s of both and their ratio. XLA was left out of training because of this table: it loses several times over
on one network what it gains on another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
import tyro

from tlray.model.backbones import BACKBONES
from tlray.model.network import Network, build_base, build_head, build_tail, cut_tail, make_optimizer
from tlray.model.tf_runtime import limit_threads
from tlray.training.steps import TrainStep

NUM_CLASSES = 6


@dataclass(frozen=True)
class Options:
    """Sizes."""

    batch_size: int = 32
    threads: int = 2
    seconds: float = 10.0
    """How long each is measured."""


def main(options: Options) -> None:
    """Measure every backbone, print a table."""
    limit_threads(options.threads)
    print(f"{'backbone':<14}{'after':<14}{'tlray':>10}{'XLA':>10}{'ratio':>8}   images/s")
    for name in BACKBONES:
        plain, compiled = measure(name, options)
        print(
            f"{name:<14}{BACKBONES[name].default_boundary:<14}{plain:>10.1f}{compiled:>10.1f}{plain / compiled:>8.2f}"
        )


def measure(backbone: str, options: Options) -> tuple[float, float]:
    """Images/s of the product's step and of the same step with its gradient compiled."""
    entry = BACKBONES[backbone]
    tail = cut_tail(build_base(backbone, entry.image_size_px, weights=None, seed=0), entry.default_boundary)
    head = build_head(backbone, (1024,), NUM_CLASSES, seed=0)
    network = Network(backbone, "activations", build_tail(tail), tail.positions, head, train_batchnorm=False)
    network.assign_weights(tail.weights)
    network.open_base(entry.default_boundary)
    variables = network.trainable_variables
    optimizer = make_optimizer("sgd", 1e-4)
    optimizer.build(variables)
    trainer = TrainStep(tf.distribute.get_strategy(), network, optimizer, label_smoothing=0.0, clip_norm=None)

    @tf.function(jit_compile=True)
    def differentiate(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            probabilities = network.call(inputs, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, probabilities))
        return tape.gradient(loss, variables)

    @tf.function
    def step_compiled(inputs: Any, labels: Any) -> None:
        optimizer.apply(differentiate(inputs, labels), variables)

    size = options.batch_size
    inputs = np.random.default_rng(0).random((size, *network.base.input.shape[1:]), np.float32)
    labels = np.arange(size, dtype=np.int32) % NUM_CLASSES
    ones = np.ones(size, np.float32)
    batch = {"inputs": inputs, "labels": labels, "weights": ones, "counts": ones, "total": np.float32(size)}
    plain = time_steps(lambda: trainer.step(batch), options.seconds)
    return size / plain, size / time_steps(lambda: step_compiled(inputs, labels), options.seconds)


def time_steps(step: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest step past the first two, which trace and compile."""
    for _ in range(2):
        step()
    took = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        step()
        took.append(time.perf_counter() - began)
    return min(took)


if __name__ == "__main__":
    main(tyro.cli(Options))
