"""`tlray plan --probe N`: label a few planned rows, a stage at a time, to tell what the plan takes on this machine.

Processes measure beside each other, one single-threaded engine a core, since a core alone is faster than among others.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.cluster.resources import choose_batch_size
from tlray.errors import OK, FetchError, OutputError, StoppedError
from tlray.images.batch import decode_images
from tlray.images.limits import Limits
from tlray.model.bundle import Bundle
from tlray.model.precision import PrecisionName
from tlray.output.plan import FOLDER, Plan
from tlray.sources.reading import read_rows

RECORD = "_probe.json"

_MAX_PROCESSES = 16
_MAX_SLICES = 16
_ROW_BYTES = 200
_WAIT_S = 300.0


@dataclass(frozen=True)
class Probe:
    """What a few rows took, and what follows for the plan.

    Attributes:
        images: rows that were measured.
        failed: how many of these could not be labelled.
        engine: how it computes.
        cores, gpus: of this machine, as far as labelling takes them.
        fetch_s: seconds that a fetch takes where a reading process has as many in flight as it may, an image.
        fetch_cpu_s, decode_cpu_s: core-seconds an image.
        infer_s: seconds of an engine an image: of a core, or of a GPU.
        write_s: seconds that writing an image's label takes, in parts.
        images_per_s: what this machine should label, past start-up.
        limited_by: the stage that takes the most of what there is least of.
        cpus_per_gpu: cores that keep one GPU busy; None without a GPU.
        hours: for all rows of the plan, on this one machine.
        cost: of these hours; None without a price.
    """

    images: int
    failed: int
    engine: str
    cores: int
    gpus: int
    fetch_s: float
    fetch_cpu_s: float
    decode_cpu_s: float
    infer_s: float
    write_s: float
    images_per_s: float
    limited_by: str
    cpus_per_gpu: float | None
    hours: float
    cost: float | None


@dataclass(frozen=True)
class Measured:
    """What one process took for its rows, in seconds in all."""

    images: int
    failed: int
    engine: str
    gpus: int
    fetch_s: float
    fetch_cpu_s: float
    decode_cpu_s: float
    infer_s: float


def run_probe(
    plan: Plan,
    output: str,
    bundle: Bundle,
    num_images: int,
    limits: Limits,
    batch_size: int | None,
    precision: PrecisionName,
    price_per_hour: float | None,
) -> Probe:
    """Measure, and keep the result beside the plan.

    Args:
        plan: what is to be labelled.
        output: where, for the time that writing takes.
        bundle: what to label with.
        num_images: rows to measure, from all over the plan.
        limits: of decoding.
        batch_size: images in one step of the engine; None for what suits it.
        precision: as `engine.open_engine`.
        price_per_hour: of a machine like this one, in any currency.

    Raises:
        StoppedError: none of the rows can be labelled, or the output cannot be written.
    """
    rows = _sample(plan, num_images)
    cores = os.cpu_count() or 1
    on_gpu = shutil.which("nvidia-smi") is not None
    batch_size = batch_size or choose_batch_size(gpus=on_gpu)
    processes = 1 if on_gpu else max(1, min(cores, _MAX_PROCESSES, rows.num_rows // batch_size))
    shares = [rows.take(pa.array(np.arange(rows.num_rows)[start::processes])) for start in range(processes)]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    path, column = str(bundle.path), plan.image_column
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_keep, initargs=(barrier,)) as pool:
        tasks = [pool.submit(_measure, path, share, limits, batch_size, precision, column) for share in shares]
        faults = [fault for task in tasks if (fault := task.exception()) is not None]
    # one that fails breaks the barrier of the others
    for fault in sorted(faults, key=lambda fault: isinstance(fault, BrokenBarrierError)):
        raise fault
    measured = [task.result() for task in tasks]
    probe = _conclude(measured, cores, _time_writing(output, plan.num_rows), plan.num_rows, price_per_hour)
    _put(storage.join(output, FOLDER, RECORD), (json.dumps(asdict(probe), indent=2) + "\n").encode())
    return probe


def read_probe(output: str) -> Probe | None:
    """What an earlier probe of this plan found; None where there was none, or it cannot be read."""
    address = storage.join(output, FOLDER, RECORD)
    try:
        return Probe(**json.loads(storage.get(address))) if storage.exists(address) else None
    except (FetchError, OutputError, ValueError, TypeError):  # no reason to stop a job that has come to its end
        return None


_BARRIERS: list[Barrier] = []


def _keep(barrier: Barrier) -> None:
    """Keep what a process inherits."""
    _BARRIERS.append(barrier)


def _sample(plan: Plan, num_images: int) -> pa.Table:
    """Slices of neighbouring rows from all over the plan."""
    wanted = min(num_images, plan.num_rows)
    slices = min(_MAX_SLICES, wanted)
    bounds = np.linspace(0, wanted, slices + 1).astype(int)
    spread = np.linspace(0, plan.num_rows - wanted, slices).astype(int)
    pieces = [
        plan.read(int(start + gap), int(stop - start))
        for start, stop, gap in zip(bounds[:-1], bounds[1:], spread, strict=True)
    ]
    return pa.concat_tables(pieces)


@contextlib.contextmanager
def _breaking_the_barrier() -> Iterator[None]:
    """Whoever fails lets its neighbours go."""
    try:
        yield
    except BaseException:
        _BARRIERS[-1].abort()
        raise


@_breaking_the_barrier()
def _measure(
    bundle_path: str,
    rows: pa.Table,
    limits: Limits,
    batch_size: int,
    precision: PrecisionName,
    image_column: str | None,
) -> Measured:
    """One process: what each stage takes for its rows, while its neighbours do the same."""
    from tlray.console import silence_stderr
    from tlray.model.bundle import load_bundle
    from tlray.model.tf_imports import import_tensorflow

    bundle = load_bundle(bundle_path)
    with silence_stderr():
        import_tensorflow()
        from tlray.model.engine import count_gpus, open_engine

        engine = open_engine(bundle, batch_size, num_threads=1, precision=precision)
        num_gpus = count_gpus()
    _BARRIERS[-1].wait(_WAIT_S)
    began, cpu = time.perf_counter(), time.process_time()
    fetched = [answer.data for answer in read_rows(rows, limits.max_bytes, image_column)]
    fetch_s, fetch_cpu_s = time.perf_counter() - began, time.process_time() - cpu
    _BARRIERS[-1].wait(_WAIT_S)
    cpu = time.process_time()
    images = decode_images(fetched, len(fetched), bundle.image_size_px, limits)
    decode_cpu_s = time.process_time() - cpu
    readable = np.flatnonzero(np.array(images.status, object) == OK)
    _BARRIERS[-1].wait(_WAIT_S)
    began = time.perf_counter()
    if len(readable):
        batches = -(-len(readable) // batch_size)
        # whole batches, as nearly all of a long run are
        filled = np.resize(readable, batches * batch_size)
        for start in range(0, len(filled), batch_size):
            engine.predict(images.pixels[filled[start : start + batch_size]])
        infer_s = (time.perf_counter() - began) * len(readable) / len(filled)
    else:
        infer_s = 0.0
    return Measured(
        images=len(fetched),
        failed=len(fetched) - len(readable),
        engine=str(engine.form),
        gpus=num_gpus,
        fetch_s=fetch_s,
        fetch_cpu_s=fetch_cpu_s,
        decode_cpu_s=decode_cpu_s,
        infer_s=infer_s,
    )


def _time_writing(output: str, num_rows: int) -> float:
    """Seconds an image that one PUT of a part's size takes, its label counted with `_ROW_BYTES`."""
    rows = min(num_rows, 8192)
    address = storage.join(output, FOLDER, "_probe.partial")
    began = time.perf_counter()
    _put(address, os.urandom(rows * _ROW_BYTES))
    spent = time.perf_counter() - began
    storage.delete(address)
    return spent / rows


def _put(address: str, data: bytes) -> None:
    try:
        storage.put(address, data)
    except OutputError as error:
        raise StoppedError(str(error)) from None


def _conclude(
    measured: list[Measured], cores: int, write_s: float, num_rows: int, price_per_hour: float | None
) -> Probe:
    """Sum the processes up."""
    images = sum(one.images for one in measured)
    answered = images - sum(one.failed for one in measured)
    if answered == 0:
        raise StoppedError(f"none of {images:,} sampled images can be labelled; --probe N with a larger N takes more")
    gpus = sum(one.gpus for one in measured)
    stages = ("fetch_s", "fetch_cpu_s", "decode_cpu_s", "infer_s")
    spent = {name: sum(getattr(one, name) for one in measured) / images for name in stages}
    cores_s, infer_s = spent["fetch_cpu_s"] + spent["decode_cpu_s"], spent["infer_s"]
    rates = {"fetching": cores / spent["fetch_s"], "writing": 1 / write_s}
    if gpus:
        rates |= {"inference": gpus / infer_s, "decoding": cores / cores_s}
    else:
        # fetching, decoding and inference share the cores
        rates["inference" if infer_s > cores_s else "decoding"] = cores / (cores_s + infer_s)
    limited_by = min(rates, key=lambda stage: rates[stage])
    hours = num_rows / rates[limited_by] / 3600
    return Probe(
        images=images,
        failed=images - answered,
        engine=measured[0].engine,
        cores=cores,
        gpus=gpus,
        **spent,
        write_s=write_s,
        images_per_s=round(rates[limited_by], 2),
        limited_by=limited_by,
        cpus_per_gpu=round(cores_s / infer_s, 1) if gpus else None,
        hours=hours,
        cost=None if price_per_hour is None else hours * price_per_hour,
    )
