"""One worker of `MultiWorkerMirroredStrategy` without Ray: `python replica.py RANK WORKERS ADDRESSES OUTPUT MODE`.

Takes three steps of the product's own training step on its share of fixed batches and saves losses and weights.
MODE: frozen, live (BatchNorm), or drift (rank 1 changes a weight on its own, then checks).
"""

import json
import os
import sys

rank, workers, addresses, output, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(","), *sys.argv[4:]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from tlray.engine import limit_threads  # noqa: E402
from tlray.errors import StoppedError  # noqa: E402
from tlray.model import build_model, make_optimizer, open_phase  # noqa: E402
from tlray.training.loop import _make_train_step, average_statistics, check_replicas  # noqa: E402

SIZE, GLOBAL_BATCH, STEPS = 48, 8, 3

limit_threads(1)
keras.utils.set_random_seed(5)
live = mode == "live"
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    model = build_model("mobilenet_v2", SIZE, (16,), 3, train_batchnorm=live)
    open_phase(model, "finetune", "mobilenet_v2", "input", train_batchnorm=live)
    optimizer = make_optimizer("sgd", 1e-2)
    optimizer.build(model.trainable_variables)
step = _make_train_step(strategy, model, optimizer)

random = np.random.default_rng(0)
share = slice(rank * GLOBAL_BATCH // workers, (rank + 1) * GLOBAL_BATCH // workers)
losses = []
for index in range(STEPS):
    images = random.integers(0, 255, (GLOBAL_BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    labels = random.integers(0, 3, GLOBAL_BATCH).astype(np.int32)
    weights = np.ones(GLOBAL_BATCH, np.float32)
    weights[GLOBAL_BATCH - index :] = 0  # the padding of a last step
    transforms = np.tile(np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32), (GLOBAL_BATCH, 1))
    arrays = [array[share] for array in (images, labels, weights, transforms)]
    losses.append(float(step(*arrays, weights.sum()).numpy()[0]))

if live:
    average_statistics(strategy, model)
drifted = False
if mode == "drift" and rank == 1:
    variable = model.trainable_variables[0].value
    for replica in strategy.experimental_local_results(variable):
        replica.assign_add(tf.ones_like(replica))
try:
    check_replicas(strategy, model)
except StoppedError:
    drifted = True
np.savez(output, *model.get_weights(), losses=np.array(losses), drifted=drifted)
