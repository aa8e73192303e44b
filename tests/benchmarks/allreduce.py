"""What summing gradients over the workers takes of a training step, by phase, with each worker on a node of its own.

python tests/benchmarks/allreduce.py [--workers 2 3] [--batch-size 8] [--steps 15] [--gbit-per-s 10]

Workers are started by Ray Train with tlray's own backend, each on one thread, and take tlray's own steps of an
InceptionV3 at 299 px with random weights and inputs: its head over pooled features, its top two blocks over
activations. The same processes then only sum tensors of the same shapes as the phase trains, through the same strategy.
Medians over --steps.

All nodes are on this machine, so the network is the loopback, and with more workers than cores a step waits for cores
too; the share is of this machine. For a real network the bytes say more: a ring sends 2 (n - 1) / n of them through
each worker's link. The last columns are that at --gbit-per-s, and its share of a step whose other parts take as long
as here.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import raylets
import tyro
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tlray.model.tf_imports import import_keras
from tlray.training.ray_train import MultiWorkerConfig

COLLECTIVE_TIMEOUT_S = 120.0
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Options:
    """How many workers, and how long each is measured."""

    workers: tuple[int, ...] = (2, 3)
    batch_size: int = 8
    """Of each worker; computing grows with it, summing doesn't."""
    steps: int = 15
    gbit_per_s: float = 10.0
    """Of a link that the ring is computed for."""
    json: str | None = None
    """Write the table here too."""


def measure(config: dict[str, Any]) -> None:
    """On every worker: both phases; rank 0 writes `phase` -> seconds a step, seconds a sum, bytes."""
    import_keras()
    from tlray.model.network import Network, build_base, build_head, build_tail, cut_tail
    from tlray.model.tf_runtime import limit_threads
    from tlray.training import steps

    limit_threads(1)
    strategy = steps.make_strategy(COLLECTIVE_TIMEOUT_S)
    tail = cut_tail(build_base("inception_v3", 299, weights=None, seed=0), "mixed8")
    found = {}
    for phase, entrance, shape in (("head", "pooled", (2048,)), ("top two blocks", "activations", (8, 8, 1280))):
        with strategy.scope():
            head = build_head("inception_v3", (1024,), 2, seed=0)
            base, positions = (None, {}) if entrance == "pooled" else (build_tail(tail), tail.positions)
            network = Network("inception_v3", entrance, base, positions, head, train_batchnorm=False)
        network.assign_weights(tail.weights)
        network.open_base(None if entrance == "pooled" else "mixed8")
        found[phase] = measure_phase(strategy, network, shape, config)
    if ray.train.get_context().get_world_rank() == 0:
        Path(config["found"]).write_text(json.dumps(found))


def measure_phase(strategy: Any, network: Any, shape: tuple[int, ...], config: dict[str, Any]) -> dict[str, float]:
    """One phase."""
    import tensorflow as tf

    from tlray.model.network import make_optimizer
    from tlray.training import steps

    variables = network.trainable_variables
    with strategy.scope():
        optimizer = make_optimizer("sgd", steps.RateTable(np.zeros(1, np.float32)))
        optimizer.build(variables)
    trainer = steps.TrainStep(strategy, network, optimizer, label_smoothing=0.0, clip_norm=None)
    size = config["batch_size"]
    ones = np.ones(size, np.float32)
    batch = {
        "inputs": np.random.default_rng(0).random((size, *shape), np.float32),
        "labels": np.arange(size, dtype=np.int32) % 2,
        "weights": ones,
        "counts": ones,
        "total": np.float32(size * strategy.num_replicas_in_sync),
    }
    gradients = [tf.ones(variable.shape) for variable in variables]

    def sum_replica(values: list[Any]) -> Any:
        placed = [tf.identity(value) for value in values]  # see steps.sum_over_workers
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed)  # as Keras does

    @tf.function
    def sum_all(values: list[Any]) -> Any:
        return strategy.run(sum_replica, args=(values,))

    return {
        "step_s": time_median(lambda: trainer.step(batch), config["steps"]),
        "sum_s": time_median(lambda: sum_all(gradients)[-1].numpy(), config["steps"]),
        "bytes": sum(int(np.prod(variable.shape)) * 4 for variable in variables),
    }


def time_median(call: Any, times: int) -> float:
    """Seconds that a call takes, past its first ones."""
    for _ in range(WARM_UP_STEPS):
        call()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def run(options: Options, num_workers: int) -> dict[str, dict[str, float]]:
    """One group of workers on a cluster of its own: what rank 0 found."""
    with raylets.start(num_workers, cpus=1) as cluster, tempfile.TemporaryDirectory() as root:
        found = Path(root, "found.json")
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        trainer = DataParallelTrainer(
            measure,
            train_loop_config={**asdict(options), "found": str(found)},
            backend_config=MultiWorkerConfig(),
            scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=root),
        )
        try:
            trainer.fit()
        finally:
            ray.shutdown()
        measured: dict[str, dict[str, float]] = json.loads(found.read_text())
        return measured


def main(options: Options) -> None:
    """Run all, print the table."""
    rows = []
    for num_workers in options.workers:
        for phase, found in run(options, num_workers).items():
            ring_bytes = 2 * (num_workers - 1) / num_workers * found["bytes"]
            ring_s = ring_bytes * 8 / (options.gbit_per_s * 1e9)
            rest_s = max(0.0, found["step_s"] - found["sum_s"])
            rows.append({"workers": num_workers, "phase": phase, **found, "ring_s": ring_s, "rest_s": rest_s})
    print(f"{'workers':>8}  {'phase':<16}{'summed MB':>10}{'step ms':>9}{'sum ms':>8}{'share':>7}", end="")
    print(f"{f'ring at {options.gbit_per_s:g} Gbit/s, ms':>26}{'share':>7}")
    for row in rows:
        print(
            f"{row['workers']:>8}  {row['phase']:<16}{row['bytes'] / 1e6:>10.1f}{row['step_s'] * 1e3:>9.1f}"
            f"{row['sum_s'] * 1e3:>8.1f}{row['sum_s'] / row['step_s']:>7.2f}{row['ring_s'] * 1e3:>26.1f}"
            f"{row['ring_s'] / (row['rest_s'] + row['ring_s']):>7.2f}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps({"options": asdict(options), "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
