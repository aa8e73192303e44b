"""Prediction on more nodes: does the rate grow with them, and how much can one driver feed?

python tests/benchmarks/nodes.py --model BUNDLE [--nodes 1 2 3] [--cpus-per-node 2] [--claim-gpus]

Nodes are raylets on this machine, beside a head that takes no work and where the driver runs, as on a cluster. Engines
are stand-ins (`standin/`) that wait instead of computing, so that a few cores can carry many.

The first table: stand-ins of --engine-rate images/s each. Of linear is the rate a node beside that of the first line;
of engines, beside what its engines answer without a pause. The engines' places are one number a node.

The second table: stand-ins that answer at once, in batches of as many rows as travel on CPUs and on GPUs. What counts
is not the rate, since readers share the cores, but the CPU time an image of what a cluster has once, from the first
label to the last. The driver's loop holds Python's lock, so that it feeds one core's worth at most; Ray's own threads
in the driver are counted in, though they may run beside it, so that the truth is somewhat more. A batch costs the
driver about the same whatever its rows.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import raylets
import tyro
from PIL import Image
from ray.cluster_utils import Cluster

STANDIN = Path(__file__).with_name("standin")
ROWS_ON_CPUS, ROWS_ON_GPUS = 32, 128
SAMPLE_INTERVAL_S = 0.25
GPU_RATE, CORE_RATE = 3000, 20


@dataclass(frozen=True)
class Options:
    """What is labelled, by how many."""

    model: str
    """A bundle; of it only the classes and the image size matter, a small one lets pixels travel cheaply."""
    nodes: tuple[int, ...] = (1, 2, 3)
    cpus_per_node: int = 2
    engine_rate: float = 20.0
    """Images/s that an engine of the first table answers."""
    images_per_engine: int = 600
    """Of the first table."""
    cost_images: int = 30_000
    """Of each line of the second table, on the most nodes; 0 leaves it out."""
    claim_gpus: bool = False
    """In the second table's last line, let each node claim a GPU, so that tlray takes its road for GPUs (readers
    decode, pixels travel); without it the batches alone are as large as there."""
    json: str | None = None
    """Write the tables here too."""


@dataclass(frozen=True)
class Sample:
    """CPU seconds by what spent them, at a moment."""

    moment: float
    cpu: dict[str, float]


@dataclass
class Run:
    """A whole command: its receipt, CPU from its first label to its last, and how many engines were on each node."""

    receipt: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.samples[-1].moment - self.samples[0].moment

    def measure(self, name: str) -> float:
        """CPU seconds; of what ended before the last label, as far as it was seen."""
        seen = [sample.cpu[name] for sample in self.samples if name in sample.cpu]
        return seen[-1] - seen[0]


def write_images(folder: Path, count: int) -> None:
    """One small picture under many names."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:06d}.jpg").write_bytes(buffer.getvalue())


def find_raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def list_children(node: Any) -> dict[psutil.Process, str]:
    """The processes of a node's tasks and actors, with what Ray says that they do."""
    found = {}
    for child in find_raylet(node).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            found[child] = "".join(child.cmdline())
    return found


def count_engines(cluster: Cluster) -> list[int]:
    """On each node that takes work."""
    return [sum("EngineActor" in doing for doing in list_children(node).values()) for node in cluster.worker_nodes]


def take_sample(cluster: Cluster, driver: int) -> Sample:
    head = cluster.head_node
    processes = {
        "driver": psutil.Process(driver),
        "gcs": psutil.Process(head.all_processes["gcs_server"][0].process.pid),
        "raylet": find_raylet(head),
    }
    for node in cluster.list_all_nodes():
        for child, doing in list_children(node).items():
            if doing.startswith("ray::Dispatcher"):
                processes["dispatcher"] = child
    spent = {name: process.cpu_times() for name, process in processes.items()}
    return Sample(time.monotonic(), {name: times.user + times.system for name, times in spent.items()})


def watch(cluster: Cluster, driver: int, ended: threading.Event, done: Run) -> None:
    """Take samples until a run has labelled all."""
    while not done.samples or not ended.wait(SAMPLE_INTERVAL_S):
        done.samples.append(take_sample(cluster, driver))


def run(options: Options, nodes: int, count: int, engine_rate: float, *, batch_rows: int = 0, gpus: int = 0) -> Run:
    """One whole command on a cluster of its own; `batch_rows` 0 leaves them to tlray."""
    done = Run()
    standin = {"PYTHONPATH": str(STANDIN), "TLRAY_STANDIN": str(engine_rate)}
    with (
        tempfile.TemporaryDirectory() as root,
        raylets.start(nodes, options.cpus_per_node, gpus, **standin) as cluster,
    ):
        images, output = Path(root, "images"), Path(root, "labels")
        write_images(images, count)
        command = [sys.executable, "-u", "-m", "tlray", "predict", "--model", options.model, "--input", str(images)]
        command += ["--output", str(output)] + (["--batch-size", str(batch_rows)] if batch_rows else [])
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        told = ""
        ended = threading.Event()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            watcher = threading.Thread(target=watch, args=(cluster, process.pid, ended, done))
            for line in process.stdout:
                told += line
                if "engines compute in" in line:  # the first labels
                    done.places = count_engines(cluster)
                    watcher.start()
                if f"predict: {count:,}/" in line:  # the last ones
                    ended.set()
        ended.set()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{told}")
        watcher.join()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{told}")
        done.receipt = json.loads((output / "_receipt.json").read_text())
    rate = done.receipt["images_per_s_steady"]
    print(f"{nodes} nodes: {count:,} images, {rate:.1f} images/s", file=sys.stderr, flush=True)
    return done


def scale(options: Options) -> list[dict[str, Any]]:
    """The first table."""
    rows: list[dict[str, Any]] = []
    for nodes in options.nodes:
        engines = nodes * options.cpus_per_node
        done = run(options, nodes, engines * options.images_per_engine, options.engine_rate)
        rate = done.receipt["images_per_s_steady"]
        rows.append(
            {
                "nodes": nodes,
                "rate": rate,
                "of_linear": rate / nodes / (rows[0]["rate"] / rows[0]["nodes"] if rows else rate / nodes),
                "of_engines": rate / (engines * options.engine_rate),
                "driver_cores": done.measure("driver") / done.seconds,
                "places": done.places,
            }
        )
    print(f"{'nodes':>6}{'images/s':>10}{'of linear':>11}{'of engines':>12}{'driver, cores':>15}  engines' places")
    for row in rows:
        print(
            f"{row['nodes']:>6}{row['rate']:>10.1f}{row['of_linear']:>11.2f}{row['of_engines']:>12.2f}"
            f"{row['driver_cores']:>15.3f}  {' '.join(map(str, row['places']))}"
        )
    return rows


def weigh(options: Options) -> list[dict[str, Any]]:
    """The second table."""
    rows = []
    for batch_rows in (ROWS_ON_CPUS, ROWS_ON_GPUS):
        gpus = int(options.claim_gpus and batch_rows == ROWS_ON_GPUS)
        done = run(options, max(options.nodes), options.cost_images, 0.0, batch_rows=batch_rows, gpus=gpus)
        cost = {name: done.measure(name) / options.cost_images for name in ("driver", "dispatcher", "gcs", "raylet")}
        row = {"batch_rows": batch_rows, "rate": done.receipt["images_per_s_steady"], "cost_s": cost}
        rows.append({**row, "feeds": 1 / cost["driver"], "planning_s": done.receipt["stages"]["planning"]})
    print("\nCPU time an image, in microseconds; what one driver feeds, images/s")
    print(f"{'rows':>6}{'images/s':>10}{'driver':>8}{'dispatcher':>12}{'gcs':>6}{'raylet':>8}{'feeds':>9}", end="")
    print(f"{f'GPUs of {GPU_RATE:,}':>15}{f'cores of {CORE_RATE}':>13}{'planning':>10}")
    for row in rows:
        micros = {name: cost * 1e6 for name, cost in row["cost_s"].items()}
        print(
            f"{row['batch_rows']:>6}{row['rate']:>10.0f}{micros['driver']:>8.0f}{micros['dispatcher']:>12.0f}"
            f"{micros['gcs']:>6.0f}{micros['raylet']:>8.0f}{row['feeds']:>9,.0f}{row['feeds'] / GPU_RATE:>15.1f}"
            f"{row['feeds'] / CORE_RATE:>13,.0f}{row['planning_s']:>8.1f} s"
        )
    return rows


def main(options: Options) -> None:
    """Run all, print both tables."""
    tables = {"scale": scale(options), "cost": weigh(options) if options.cost_images else []}
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), **tables}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
