"""One worker of `MultiWorkerMirroredStrategy` without Ray: `python replica.py RANK WORKERS ADDRESSES FOLDER MODE...`.

In each mode takes three steps of the product's own training step on its share of fixed batches and saves losses, the
largest change of a weight and the weights as FOLDER/MODE.npz. MODE: frozen, live (BatchNorm), clipped, cached
(activations enter), mixed (mixtures of activations, and dropout of the pooled features under a linear head), half
(float16), overflow (float16, then one more step whose gradient overflows; the change is that of the last step) or
drift (rank 1 changes a weight on its own, then checks). Nothing is saved of a float16 that the CPU refuses.
"""

import json
import os
import sys

rank, workers, addresses = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
folder, modes = sys.argv[4], sys.argv[5:]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from tlray.errors import StoppedError  # noqa: E402
from tlray.model.network import (  # noqa: E402
    Network,
    build_base,
    build_head,
    build_tail,
    cut_tail,
    find_positions,
    list_batchnorm,
    make_optimizer,
)
from tlray.model.tf_runtime import limit_threads  # noqa: E402
from tlray.training.schedule import draw_dropout, draw_mixing, pair_neighbours  # noqa: E402
from tlray.training.steps import TrainStep, average_statistics, check_replicas, make_strategy  # noqa: E402

SIZE, GLOBAL_BATCH, STEPS = 48, 8, 3
BOUNDARY = "block_12_add"

limit_threads(1)
strategy = make_strategy(60)


def draw_base() -> list[np.ndarray]:
    """Random weights whose BatchNorm knows random images: with Keras's own statistics all features are about 0."""
    base = build_base("mobilenet_v2", SIZE, weights=None, seed=5)
    for layer in list_batchnorm(base):
        layer.momentum = 0.0
    base(np.random.default_rng(1).uniform(-1, 1, (GLOBAL_BATCH, SIZE, SIZE, 3)), training=True)
    return base.get_weights()


def copy(network: Network, optimizer: keras.optimizers.Optimizer) -> list[np.ndarray]:
    """Trained weights and slots, but the number of steps."""
    return [*network.read_weights(opened_only=True).values(), *(np.array(slot) for slot in optimizer.variables[2:])]


def run(mode: str) -> None:
    """Train in one mode and save what came out."""
    live = mode == "live"
    keras.config.set_dtype_policy("mixed_float16" if mode in ("half", "overflow") else "float32")
    with strategy.scope():
        base = build_base("mobilenet_v2", SIZE, weights=None, seed=5, train_batchnorm=live)
        base.set_weights(BASE_WEIGHTS)
        head = build_head("mobilenet_v2", () if mode == "mixed" else (16,), 3, seed=5)
        if mode in ("cached", "mixed"):  # as over cached features
            tail = cut_tail(base, BOUNDARY)
            entrance, positions = build_tail(tail), tail.positions
            network = Network("mobilenet_v2", "activations", entrance, positions, head, train_batchnorm=False)
        else:
            network = Network("mobilenet_v2", "pixels", base, find_positions(base), head, train_batchnorm=live)
        network.open_base("input" if live else BOUNDARY)
        optimizer = make_optimizer("sgd", 1e-4)
        optimizer.build(network.trainable_variables)
    if mode in ("cached", "mixed"):
        network.assign_weights(tail.weights)
    clip_norm = 0.5 if mode == "clipped" else None
    trainer = TrainStep(strategy, network, optimizer, label_smoothing=0.1, clip_norm=clip_norm)
    if trainer.loss_scale > 1:
        trainer.loss_scale = 128.0  # the first one overflows on random weights, and steps would be skipped

    random = np.random.default_rng(0)
    share = slice(rank * GLOBAL_BATCH // workers, (rank + 1) * GLOBAL_BATCH // workers)
    losses = []
    before = copy(network, optimizer)
    for index in range(STEPS + (mode == "overflow")):
        if index == STEPS:
            before = copy(network, optimizer)
            trainer.loss_scale = 1e30
        images = random.integers(0, 255, (GLOBAL_BATCH, SIZE, SIZE, 3)).astype(np.uint8)
        labels = random.integers(0, 3, GLOBAL_BATCH).astype(np.int32)
        weights = np.ones(GLOBAL_BATCH, np.float32)
        weights[GLOBAL_BATCH - index :] = 0  # the padding of a last step
        transforms = np.tile(np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32), (GLOBAL_BATCH, 1))
        if mode in ("cached", "mixed"):
            images = random.random((GLOBAL_BATCH, *base.get_layer(BOUNDARY).output.shape[1:]), np.float32)
        batch = {"inputs": images, "labels": labels, "weights": weights, "counts": weights, "transforms": transforms}
        if mode == "mixed":
            batch["shares"] = draw_mixing(0, 0, index, GLOBAL_BATCH, 0.2)
            batch["masks"] = draw_dropout(0, 0, index, GLOBAL_BATCH, (network.num_features,), 0.3)
            batch["partner_weights"] = weights
        batch = {name: array[share] for name, array in batch.items()}
        if mode == "mixed":
            batch["partners"] = pair_neighbours(GLOBAL_BATCH // workers)
        losses.append(float(trainer.step({**batch, "total": weights.sum()})[0]))

    change = max(np.abs(old - new).max() for old, new in zip(before, copy(network, optimizer), strict=True))
    if live:
        average_statistics(strategy, network)
    drifted = False
    if mode == "drift" and rank == 1:
        variable = network.trainable_variables[0].value
        for replica in strategy.experimental_local_results(variable):
            replica.assign_add(tf.ones_like(replica))
    try:
        check_replicas(strategy, network)
    except StoppedError:
        drifted = True
    weights = network.read_weights(opened_only=False).values()
    np.savez(f"{folder}/{mode}.npz", *weights, losses=np.array(losses), drifted=drifted, change=change)


BASE_WEIGHTS = draw_base()
for mode in modes:
    try:
        run(mode)
    except tf.errors.AbortedError as error:  # oneDNN has no convolution of float16 for some CPUs
        if mode not in ("half", "overflow") or "primitive" not in error.message:
            raise
