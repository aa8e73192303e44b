"""One worker of `MultiWorkerMirroredStrategy` without Ray: `python replica.py RANK WORKERS ADDRESSES FOLDER MODE...`.

In each mode takes three steps of the product's own training step on its share of fixed batches and saves losses and
weights as FOLDER/MODE.npz. MODE: frozen, live (BatchNorm), clipped, cached (activations enter), half (float16) or drift
(rank 1 changes a weight on its own, then checks).
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
from tlray.model.engine import limit_threads  # noqa: E402
from tlray.model.network import Network, build_base, build_head, build_tail, cut_tail, find_positions, make_optimizer  # noqa: E402
from tlray.training.steps import TrainStep, average_statistics, check_replicas, make_strategy  # noqa: E402

SIZE, GLOBAL_BATCH, STEPS = 48, 8, 3
BOUNDARY = "block_12_add"

limit_threads(1)
strategy = make_strategy(60)


def run(mode: str) -> None:
    """Train in one mode and save what came out."""
    live = mode == "live"
    keras.config.set_dtype_policy("mixed_float16" if mode == "half" else "float32")
    with strategy.scope():
        base = build_base("mobilenet_v2", SIZE, weights=None, seed=5, train_batchnorm=live)
        head = build_head("mobilenet_v2", (16,), 3, seed=5)
        if mode == "cached":  # as over cached features
            tail = cut_tail(base, BOUNDARY)
            entrance, positions = build_tail(tail), tail.positions
            network = Network("mobilenet_v2", "activations", entrance, positions, head, train_batchnorm=False)
        else:
            network = Network("mobilenet_v2", "pixels", base, find_positions(base), head, train_batchnorm=live)
        network.open_base("input")
        optimizer = make_optimizer("sgd", 1e-2)
        optimizer.build(network.trainable_variables)
    if mode == "cached":
        network.assign_weights(tail.weights)
    clip_norm = 0.5 if mode == "clipped" else None
    trainer = TrainStep(strategy, network, optimizer, label_smoothing=0.1, clip_norm=clip_norm)

    random = np.random.default_rng(0)
    share = slice(rank * GLOBAL_BATCH // workers, (rank + 1) * GLOBAL_BATCH // workers)
    losses = []
    for index in range(STEPS):
        images = random.integers(0, 255, (GLOBAL_BATCH, SIZE, SIZE, 3)).astype(np.uint8)
        labels = random.integers(0, 3, GLOBAL_BATCH).astype(np.int32)
        weights = np.ones(GLOBAL_BATCH, np.float32)
        weights[GLOBAL_BATCH - index :] = 0  # the padding of a last step
        transforms = np.tile(np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32), (GLOBAL_BATCH, 1))
        if mode == "cached":
            images = random.random((GLOBAL_BATCH, *base.get_layer(BOUNDARY).output.shape[1:]), np.float32)
        batch = {"inputs": images, "labels": labels, "weights": weights, "counts": weights, "transforms": transforms}
        batch = {name: array[share] for name, array in batch.items()}
        losses.append(float(trainer.step({**batch, "total": weights.sum()})[0]))

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
    np.savez(f"{folder}/{mode}.npz", *weights, losses=np.array(losses), drifted=drifted)


for mode in modes:
    run(mode)
