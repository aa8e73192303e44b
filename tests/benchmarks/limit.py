"""What this machine's cores allow: inference and decoding, each alone on bytes in memory with all cores busy.

python tests/benchmarks/limit.py --model BUNDLE --images DIR [--precision auto]

limit = cores / (core-seconds of inference + core-seconds of decoding an image), inference in the better of two layouts:
one single-threaded process a core, or one process with a thread a core. Nothing can label faster on these cores with
this engine and this decoder; what a pipeline lacks of it is its own cost.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: str
    """A bundle."""
    images: str
    """A folder of images."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: int = 16
    seconds: float = 20.0
    """How long each is measured."""


def list_images(options: Options) -> list[Path]:
    """JPEG files, in order."""
    return sorted(path for path in Path(options.images).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def infer(options: Options, num_threads: int, barrier: Any, results: Any) -> None:
    """Images/s of one engine on decoded images."""
    import numpy as np

    from tlray import load_bundle
    from tlray.images.decode import decode
    from tlray.model.engine import open_engine

    bundle = load_bundle(options.model)
    engine = open_engine(bundle, options.batch_size, num_threads=num_threads, precision=options.precision)
    paths = islice(cycle(list_images(options)), options.batch_size)
    pixels = np.stack([decode(path.read_bytes(), bundle.image_size_px).pixels for path in paths])
    engine.predict(pixels)
    barrier.wait()
    began, count = time.monotonic(), 0
    while time.monotonic() - began < options.seconds:
        engine.predict(pixels)
        count += len(pixels)
    results.put((count / (time.monotonic() - began), str(engine.form)))


def decode_all(options: Options, barrier: Any, results: Any) -> None:
    """Images/s of one decoder on bytes."""
    from tlray import load_bundle
    from tlray.images.decode import decode

    side = load_bundle(options.model).image_size_px
    encoded = [path.read_bytes() for path in list_images(options)[:500]]
    barrier.wait()
    began, count = time.monotonic(), 0
    for data in cycle(encoded):
        decode(data, side)
        count += 1
        if time.monotonic() - began > options.seconds / 4:
            break
    results.put((count / (time.monotonic() - began), ""))


def run_beside(target: Any, arguments: list[tuple[Any, ...]]) -> tuple[float, str]:
    """Sum of the rates of processes that start together."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(arguments), timeout=300), context.Queue()
    processes = [context.Process(target=target, args=(*mine, barrier, results)) for mine in arguments]
    for process in processes:
        process.start()
    rates = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return sum(rate for rate, _ in rates), rates[0][1]


def measure(options: Options) -> dict[str, Any]:
    """The limit and what it is made of, in images/s."""
    cores = os.cpu_count() or 1
    many, form = run_beside(infer, [(options, 1)] * cores)
    one, _ = run_beside(infer, [(options, cores)])
    decoding, _ = run_beside(decode_all, [(options,)] * cores)
    inference = max(many, one)
    return {
        "cores": cores,
        "engine": form,
        "one_thread_a_process": round(many, 2),
        "one_process": round(one, 2),
        "decoding": round(decoding, 1),
        "limit": round(1 / (1 / inference + 1 / decoding), 2),
    }


if __name__ == "__main__":
    print(json.dumps(measure(tyro.cli(Options)), indent=2))
