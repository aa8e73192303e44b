"""The prediction pipeline on Ray Data: read in tasks, predict in engine actors, stream the predictions back.

Its input is windows of row ids: tasks get their rows from the dispatcher, so that the driver never holds them.
Predictions come back in any order, with their row ids.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from tlray.cluster.connect import explain_failure
from tlray.cluster.nodes import read_there, restart_elsewhere
from tlray.cluster.ray_private import map_blocks
from tlray.cluster.resources import DATA_TASK_CPUS, Cluster, EngineBounds, choose_batch_size, plan_engines
from tlray.errors import UNREACHABLE, Code, FetchError
from tlray.images.limits import Limits
from tlray.model.bundle import Bundle
from tlray.model.precision import PrecisionName
from tlray.output.plan import Stream
from tlray.output.rowset import RowSet
from tlray.output.schema import RequestedColumns
from tlray.prediction import dispatcher as dispatchers
from tlray.prediction.batches import Columns, cut, make_decoded, make_encoded, pack
from tlray.prediction.dispatcher import MAX_TRIES, Handle, Key, MemoryRows, Order, Rows, Sight
from tlray.prediction.engine_actor import EngineActor
from tlray.sources.places import Places
from tlray.sources.reading import read_rows
from tlray.storage import Fetched, S3Options, adopt, get_options

_MIN_WINDOW_ROWS = 1024
_MAX_WINDOW_ROWS = 8192
_MAX_WINDOWS = 4096
_LOOK_INTERVAL_S = 1.0
_BLIND_PAUSE_S = 20.0
_BLOCK_ROWS = 32
_BLOCK_ROWS_OF_MANY = 128
_MANY_CORES = 64
_ROW_BYTES = 512
_TOP_BYTES = 64


@dataclass(frozen=True)
class PredictionTask:
    """The rows to predict, and the options that apply.

    Attributes:
        done: row ids that need no work.
        windows: `(first, count)` of the slices that tasks take, by `make_windows`.
        batch_size: images per step of the engine; None for the default of its device.
        reading_node: machine on which all rows are read, by Ray's node id; None for any.
    """

    rows: Rows
    done: RowSet
    windows: Sequence[tuple[int, int]]
    bundle: Bundle
    limits: Limits
    batch_size: int | None
    precision: PrecisionName
    columns: RequestedColumns
    bounds: EngineBounds = EngineBounds()  # noqa: RUF009  # frozen
    reading_node: str | None = None


def choose_batch_rows(batch_size: int | None, num_cpus: float, *, gpus: bool) -> int:
    """Return the number of rows in a batch: one step of the engine on GPUs, a few steps on CPUs.

    Each batch costs the driver some milliseconds, so batches are larger if many engines ask for them.
    """
    if batch_size is not None:
        return batch_size
    if gpus:
        return choose_batch_size(gpus=True)
    return _BLOCK_ROWS_OF_MANY if num_cpus > _MANY_CORES else _BLOCK_ROWS


def make_windows(
    done: RowSet, num_cpus: float, batch_rows: int, streams: Sequence[Stream] = ()
) -> list[tuple[int, int]]:
    """Cut row ids into windows `(first, count)`, one per task; leave out windows without work.

    Windows hold whole batches, since an engine pads smaller ones; a short job is cut so that all cores get some work.
    Each stream is one window, since one pass over an archive reads it.
    """
    spread = math.ceil(done.num_rows / (4 * max(1, int(num_cpus))))
    most = min(_MAX_WINDOW_ROWS, max(_MIN_WINDOW_ROWS, done.num_rows // _MAX_WINDOWS))
    size = max(1, math.ceil(min(most, spread) / batch_rows)) * batch_rows
    bounds = [0, *(edge for stream in streams for edge in (stream.first, stream.first + stream.count)), done.num_rows]
    whole = {(stream.first, stream.count) for stream in streams}
    windows = []
    for start, stop in pairwise(bounds):
        step = max(1, stop - start) if (start, stop - start) in whole else size
        windows += [(first, min(step, stop - first)) for first in range(start, stop, step)]
    return [(first, count) for first, count in windows if len(done.find_missing(first, count))]


def predict_files(
    places: Places,
    bundle: Bundle,
    cluster: Cluster,
    limits: Limits,
    batch_size: int | None,
    precision: PrecisionName,
    columns: RequestedColumns,
    bounds: EngineBounds,
) -> Iterator[pa.Table]:
    """Predict images without a plan on disk; yields and raises as `PredictionPipeline`."""
    done = RowSet(len(places))
    batch_rows = choose_batch_rows(batch_size, cluster.cpus, gpus=bounds.choose_gpus(cluster) > 0)
    windows = make_windows(done, cluster.cpus, batch_rows)
    task = PredictionTask(MemoryRows(places), done, windows, bundle, limits, batch_size, precision, columns, bounds)
    return iter(PredictionPipeline(task, cluster))


class PredictionPipeline:
    """A running pipeline: iterate for tables by `RequestedColumns.fields`, one row per input even if its image fails.

    Attributes:
        resources: the resource plan.
        engines: number of engines by compute type: those ready at the first predictions, in the end all.
        sight: which machines can read, known in the end.

    Raises:
        StoppedError: Ray gave up on a task or an engine.
    """

    def __init__(self, task: PredictionTask, cluster: Cluster) -> None:
        num_rows = sum(count for _, count in task.windows)
        self._batch_rows = choose_batch_rows(task.batch_size, cluster.cpus, gpus=task.bounds.choose_gpus(cluster) > 0)
        self.resources = plan_engines(cluster, num_rows, self._batch_rows, task.bounds)
        self._done = ray.put(task.done)
        self._dispatcher = dispatchers.start(task.rows, self._done)
        self._dataset = self._make_dataset(task, cluster)
        self.engines: dict[str, int] = {}
        self.sight = Sight(0, frozenset(), frozenset())

    def stop(self) -> None:
        """Start no more rows; iteration ends when those in progress are predicted."""
        self._dispatcher.stop.remote()

    def count_fetched(self) -> int:
        """Return the number of rows that were fetched or could not be reached."""
        return int(ray.get(self._dispatcher.get_fetched.remote()))

    def __iter__(self) -> Iterator[pa.Table]:
        try:
            for predictions in self._dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
                self.engines = self.engines or self._count_engines()
                yield predictions
            self.engines = self._count_engines()
            self.sight = ray.get(self._dispatcher.describe_sight.remote())
        except ray.exceptions.RayError as error:
            raise explain_failure(error, "prediction") from error
        finally:
            ray.kill(self._dispatcher)

    def _count_engines(self) -> dict[str, int]:
        return dict(Counter(ray.get(self._dispatcher.get_engines.remote())))

    def _make_dataset(self, task: PredictionTask, cluster: Cluster) -> ray.data.Dataset:
        bundle, resources = task.bundle, self.resources
        batch_size = task.batch_size or choose_batch_size(gpus=resources.num_gpus > 0)
        # a batch of the reading stage becomes a block at once, and a batch of predictions is not split
        row_bytes = _ROW_BYTES + 4 * task.columns.embedding_size + _TOP_BYTES * task.columns.top_k
        pixel_bytes = batch_size * bundle.image_size_px**2 * 3 if resources.num_gpus else 0
        block_bytes = max(self._batch_rows * row_bytes, pixel_bytes)
        windows = [pa.table({"first": [first], "count": [count]}) for first, count in task.windows]
        batches = ray.data.from_blocks(windows).map_batches(
            _read_window,
            fn_kwargs={
                "dispatcher": [self._dispatcher],
                "limits": task.limits,
                "options": get_options(),
                "first_rows": batch_size,
                "batch_rows": self._batch_rows,
                "image_column": task.rows.image_column,
                "image_size_px": bundle.image_size_px,
                "encoded": not resources.num_gpus,
                "block_bytes": block_bytes,
            },
            batch_size=None,
            num_cpus=DATA_TASK_CPUS,
            # a process takes 3 s of a core to start, and reads faster than two cores predict
            concurrency=max(1, int(cluster.cpus) // 2) if cluster.local else None,
            **({"scheduling_strategy": read_there(task.reading_node)} if task.reading_node else {}),
        )
        dataset: ray.data.Dataset = map_blocks(
            batches,
            EngineActor,
            fn_constructor_kwargs={
                "files": [ray.put(bundle.read_inference_files()), ray.put(bundle.read_saved_model())],
                "limits": task.limits,
                "batch_size": batch_size,
                "num_threads": resources.num_threads,
                "allow_cpu": task.bounds.allow_cpu,
                "precision": task.precision,
                "num_engines": resources.max_actors,
                "columns": task.columns,
                "dispatcher": [self._dispatcher],
            },
            batch_size=None if resources.num_gpus else 1,
            compute=ray.data.ActorPoolStrategy(min_size=resources.actors, max_size=resources.max_actors),
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus or None,
        )
        dataset.context.target_max_block_size = block_bytes
        return dataset


def _read_window(
    window: Columns,
    dispatcher: list[Handle],
    limits: Limits,
    options: S3Options,
    first_rows: int,
    batch_rows: int,
    image_column: str | None,
    image_size_px: int,
    encoded: bool,
    block_bytes: int,
) -> Iterator[Columns]:
    """Lease the rows of a window and fetch them batch by batch; decode them unless they are sent encoded."""
    adopt(options)
    (handle,) = dispatcher
    first, count = int(window["first"][0]), int(window["count"][0])
    key = "window", first
    node = ray.get_runtime_context().get_node_id()
    if ray.get(handle.look.remote(0, node)) is Order.MOVE:
        restart_elsewhere()
    rows, tries = ray.get(handle.lease.remote(first, count, node))
    if rows is None:
        _wait_blind(handle, node)
        return
    reach = _ReachCounter(read_rows(rows, limits.max_bytes, image_column))
    fetched = iter(reach)
    looked, uncounted = time.monotonic(), 0
    for batch in cut(rows, first_rows, batch_rows, encoded=encoded):
        if time.monotonic() - looked > _LOOK_INTERVAL_S:
            looked = time.monotonic()
            order = ray.get(handle.look.remote(uncounted, node))
            if order is Order.MOVE:
                restart_elsewhere()
            if order is Order.STOP:
                break
            uncounted = 0
        row_ids = batch["row_id"].to_numpy()
        results: Iterator[Fetched] = islice(fetched, len(row_ids))
        if tries:
            results = _isolate_each(handle, key, row_ids, results)
        if encoded:
            yield pack(make_encoded(row_ids, results, image_size_px, limits), block_bytes)
        else:
            yield make_decoded(row_ids, results, image_size_px, limits)
        uncounted += len(row_ids)
    handle.note_reach.remote(node, reach.num_read, reach.num_unreachable)
    handle.leave.remote(key, uncounted)


class _ReachCounter:
    """Counts the rows of a window that were read, and those that could not be reached."""

    def __init__(self, fetched: Iterator[Fetched]) -> None:
        self.num_read = self.num_unreachable = 0
        self._fetched = fetched

    def __iter__(self) -> Iterator[Fetched]:
        for result in self._fetched:
            if isinstance(result.data, FetchError) and result.data.code in UNREACHABLE:
                self.num_unreachable += 1
            elif not isinstance(result.data, FetchError):
                self.num_read += 1
            yield result


def _wait_blind(handle: Handle, node: str) -> None:
    """Keep a machine that reads nothing from taking all windows, which it gives back at once."""
    until = time.monotonic() + _BLIND_PAUSE_S
    while time.monotonic() < until and ray.get(handle.look.remote(0, node)) is Order.WORK:
        time.sleep(1)


def _isolate_each(
    handle: Handle, key: Key, row_ids: npt.NDArray[np.int64], fetched: Iterator[Fetched]
) -> Iterator[Fetched]:
    """Yield the rows of a window whose process died, registering each before it is fetched and decoded."""
    for row_id in row_ids:
        if ray.get(handle.isolate.remote(key, int(row_id))) >= MAX_TRIES:
            next(fetched)
            yield Fetched(FetchError(Code.CRASHED, f"{MAX_TRIES} processes died while reading it"), 0)
        else:
            yield next(fetched)
