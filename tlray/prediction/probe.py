"""`tlray plan --probe N`: predict a few planned rows stage by stage, to estimate the whole plan on this machine.

All cores measure at the same time, with one single-threaded engine each: a core on its own would be faster.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.cluster.resources import choose_batch_size, count_cores
from tlray.console import silence_stderr
from tlray.errors import OK, FetchError, OutageError, OutputError, StoppedError
from tlray.images.batch import decode_images
from tlray.images.limits import Limits
from tlray.model.bundle import Bundle, load_bundle
from tlray.model.engine import open_engine
from tlray.model.precision import PrecisionName, count_gpus
from tlray.output.plan import FOLDER, Plan
from tlray.sources.reading import read_rows
from tlray.storage.records import RecordError, dump_record, parse_record

RECORD = "_probe.json"

_MAX_PROCESSES = 16
_MAX_SLICES = 16
_ROW_BYTES = 200
_WAIT_S = 300.0


@dataclass(frozen=True)
class Probe:
    """The costs of a few rows, and an estimate for the plan.

    Attributes:
        images, failed: rows measured, and how many of them failed.
        engine: compute type.
        fetch_s: seconds per image to fetch, with the full number of requests in flight.
        fetch_cpu_s, decode_cpu_s: core-seconds per image.
        infer_s: engine-seconds per image, of a core or a GPU.
        write_s: seconds per image to write its label.
        images_per_s: estimated rate of this machine, without start-up.
        limited_by: the slowest stage.
        cpus_per_gpu: cores that keep one GPU busy; None without a GPU.
        hours: for the whole plan on this machine.
        cost: for these hours; None without a price.
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
    """The seconds that one process took for all of its rows."""

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
    """Measure rows from all over the plan, and save the result beside it.

    Raises:
        StoppedError: none of the rows can be predicted, or the output cannot be written.
    """
    rows = _sample(plan, num_images)
    cores = count_cores()
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
    # a process that fails breaks the barrier of the others
    for fault in sorted(faults, key=lambda fault: isinstance(fault, BrokenBarrierError)):
        raise fault
    measured = [task.result() for task in tasks]
    probe = _conclude(measured, cores, _time_writing(output, plan.num_rows), plan.num_rows, price_per_hour)
    _put(storage.join(output, FOLDER, RECORD), dump_record(probe))
    return probe


def read_probe(output: str) -> Probe | None:
    """Return the result of an earlier probe; None without one, or if it cannot be read."""
    address = storage.join(output, FOLDER, RECORD)
    try:
        return parse_record(Probe, storage.get(address)) if storage.exists(address) else None
    except (FetchError, OutputError, OutageError, RecordError):  # no reason to stop a job that is finished
        return None


_BARRIERS: list[Barrier] = []


def _keep(barrier: Barrier) -> None:
    _BARRIERS.append(barrier)


def _sample(plan: Plan, num_images: int) -> pa.Table:
    """Return slices of neighbouring rows from all over the plan."""
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
    """Release the other processes if this one fails."""
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
    """Measure each stage on rows, in step with the other processes."""
    bundle = load_bundle(bundle_path)
    with silence_stderr():
        num_gpus = count_gpus()
        engine = open_engine(bundle, batch_size, num_threads=1, precision=precision, booked_gpus=num_gpus)
        num_gpus = num_gpus if engine.form.device == "GPU" else 0
    _BARRIERS[-1].wait(_WAIT_S)
    began, cpu = time.perf_counter(), time.process_time()
    fetched = [one.data for one in read_rows(rows, limits.max_bytes, image_column)]
    fetch_s, fetch_cpu_s = time.perf_counter() - began, time.process_time() - cpu
    _BARRIERS[-1].wait(_WAIT_S)
    cpu = time.process_time()
    images = decode_images(fetched, len(fetched), bundle.image_size_px, limits)
    decode_cpu_s = time.process_time() - cpu
    readable = np.flatnonzero(np.array(images.status, object) == OK)
    infer_s = 0.0
    _BARRIERS[-1].wait(_WAIT_S)
    began = time.perf_counter()
    if len(readable):
        # fill the last batch: nearly all batches of a long run are full
        filled = np.resize(readable, -(-len(readable) // batch_size) * batch_size)
        for start in range(0, len(filled), batch_size):
            engine.predict(images.pixels[filled[start : start + batch_size]])
        infer_s = (time.perf_counter() - began) * len(readable) / len(filled)
    num_failed = len(fetched) - len(readable)
    return Measured(len(fetched), num_failed, str(engine.form), num_gpus, fetch_s, fetch_cpu_s, decode_cpu_s, infer_s)


def _time_writing(output: str, num_rows: int) -> float:
    """Return the seconds per row of writing one part, with `_ROW_BYTES` per label."""
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
    """Add up the processes, and extrapolate to the plan."""
    images, failed = sum(one.images for one in measured), sum(one.failed for one in measured)
    if failed == images:
        raise StoppedError(f"none of {images:,} sampled images can be predicted; sample more with a larger --probe")
    gpus = sum(one.gpus for one in measured)
    fetch_s = sum(one.fetch_s for one in measured) / images
    fetch_cpu_s = sum(one.fetch_cpu_s for one in measured) / images
    decode_cpu_s = sum(one.decode_cpu_s for one in measured) / images
    infer_s = sum(one.infer_s for one in measured) / images
    cores_s = fetch_cpu_s + decode_cpu_s
    rates = {"fetching": cores / fetch_s, "writing": 1 / write_s}
    if gpus:
        rates |= {"inference": gpus / infer_s, "decoding": cores / cores_s}
    else:
        # fetching, decoding and inference share the cores
        rates["inference" if infer_s > cores_s else "decoding"] = cores / (cores_s + infer_s)
    limited_by = min(rates, key=lambda stage: rates[stage])
    hours = num_rows / rates[limited_by] / 3600
    return Probe(
        images=images,
        failed=failed,
        engine=measured[0].engine,
        cores=cores,
        gpus=gpus,
        fetch_s=fetch_s,
        fetch_cpu_s=fetch_cpu_s,
        decode_cpu_s=decode_cpu_s,
        infer_s=infer_s,
        write_s=write_s,
        images_per_s=round(rates[limited_by], 2),
        limited_by=limited_by,
        cpus_per_gpu=round(cores_s / infer_s, 1) if gpus else None,
        hours=hours,
        cost=None if price_per_hour is None else hours * price_per_hour,
    )
