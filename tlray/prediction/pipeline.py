"""The labelling pipeline on Ray Data: read in tasks, answer in engine actors, stream the answers back.

What goes in is windows of row ids; tasks ask the dispatcher for their rows, so that the driver never holds them. Blocks
come back in any order; their row ids say where they belong.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from tlray.cluster.connect import explain_failure
from tlray.cluster.ray_private import map_blocks
from tlray.cluster.resources import DATA_TASK_CPUS, Cluster, EngineBounds, choose_batch_size, plan_engines
from tlray.errors import Code, FetchError
from tlray.images.limits import Limits
from tlray.model.bundle import Bundle
from tlray.model.precision import PrecisionName
from tlray.output.rowset import RowSet
from tlray.output.schema import RequestedColumns
from tlray.prediction import dispatcher as dispatchers
from tlray.prediction.batches import Columns, cut, make_decoded, make_encoded, pack
from tlray.prediction.dispatcher import MAX_TRIES, Key, MemoryRows, Rows
from tlray.prediction.engine_actor import EngineActor
from tlray.sources.reading import read_rows
from tlray.storage import Fetched

_MIN_WINDOW_ROWS = 1024
_MAX_WINDOW_ROWS = 8192
_MAX_WINDOWS = 4096
_LOOK_INTERVAL_S = 1.0
_BLOCK_ROWS = 32
_BLOCK_ROWS_OF_MANY = 128
_MANY_CORES = 64
_ANSWER_BYTES = 512
_TOP_BYTES = 64


@dataclass(frozen=True)
class PredictionTask:
    """What to label, and how.

    Attributes:
        rows: a plan, or `MemoryRows`.
        done: row ids that need no work.
        windows: `(first, count)` of the slices that tasks take, by `make_windows`.
        bundle: what to label with.
        limits: of decoding.
        batch_size: images in one step of the engine; None for what suits it.
        precision: as `engine.open_engine`.
        columns: what to answer beside the most probable class.
        bounds: of engines.
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


def choose_batch_rows(batch_size: int | None, num_cpus: float, *, gpus: bool) -> int:
    """Rows that travel together: on GPUs one step of the engine, on CPUs a few, which ask less often.

    Each block costs the driver some milliseconds, so that where many engines ask it, they ask for more at once.
    """
    if batch_size is not None:
        return batch_size
    if gpus:
        return choose_batch_size(gpus=True)
    return _BLOCK_ROWS_OF_MANY if num_cpus > _MANY_CORES else _BLOCK_ROWS


def make_windows(
    done: RowSet, num_cpus: float, batch_rows: int, streams: Sequence[tuple[int, int]] = ()
) -> list[tuple[int, int]]:
    """Cut row ids into slices that tasks take; those without work are left out.

    Args:
        done: row ids that need no work.
        num_cpus: a short job is cut so that all cores have some.
        batch_rows: slices are of whole batches, since an engine pads what is less.
        streams: slices that must stay whole, since one pass over an archive reads them.
    """
    spread = math.ceil(done.num_rows / (4 * max(1, int(num_cpus))))
    most = min(_MAX_WINDOW_ROWS, max(_MIN_WINDOW_ROWS, done.num_rows // _MAX_WINDOWS))
    size = max(1, math.ceil(min(most, spread) / batch_rows)) * batch_rows
    bounds = [0, *(edge for first, count in streams for edge in (first, first + count)), done.num_rows]
    whole = set(streams)
    windows = []
    for start, stop in pairwise(bounds):
        step = max(1, stop - start) if (start, stop - start) in whole else size
        windows += [(first, min(step, stop - first)) for first in range(start, stop, step)]
    return [(first, count) for first, count in windows if len(done.find_missing(first, count))]


def predict_files(
    uris: list[str],
    bundle: Bundle,
    cluster: Cluster,
    limits: Limits,
    batch_size: int | None,
    precision: PrecisionName,
    columns: RequestedColumns,
) -> Iterator[pa.Table]:
    """Label a list of files; row ids are their positions. As `PredictionPipeline`."""
    done = RowSet(len(uris))
    batch_rows = choose_batch_rows(batch_size, cluster.cpus, gpus=EngineBounds().choose_gpus(cluster) > 0)
    windows = make_windows(done, cluster.cpus, batch_rows)
    task = PredictionTask(MemoryRows(uris), done, windows, bundle, limits, batch_size, precision, columns)
    return iter(PredictionPipeline(task, cluster))


class PredictionPipeline:
    """A pipeline at work: iterate for tables by `RequestedColumns.fields`.

    There is one answer for each row, whatever happens to its image.

    Attributes:
        resources: how its engines are spread over the cluster.
        engines: how those that were ready with the first answers compute, in the end all; and how many do so.

    Raises:
        StoppedError: Ray gave up on a task or an engine.
    """

    def __init__(self, task: PredictionTask, cluster: Cluster) -> None:
        num_rows = sum(count for _, count in task.windows)
        self._batch_rows = choose_batch_rows(task.batch_size, cluster.cpus, gpus=task.bounds.choose_gpus(cluster) > 0)
        self.resources = plan_engines(cluster, num_rows, self._batch_rows, task.bounds)
        self._done = ray.put(task.done)
        self._dispatcher = dispatchers.start(task.rows, self._done)
        self._dataset = self._make_dataset(task)
        self.engines: dict[str, int] = {}

    def drain(self) -> None:
        """Take no more rows in hand; iteration ends when those in hand are answered."""
        self._dispatcher.drain.remote()

    def count_fetched(self) -> int:
        """Rows whose bytes are there, or were found to be out of reach."""
        fetched: int = ray.get(self._dispatcher.get_fetched.remote())
        return fetched

    def __iter__(self) -> Iterator[pa.Table]:
        try:
            for answers in self._dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
                self.engines = self.engines or self._count_engines()
                yield answers
            self.engines = self._count_engines()
        except ray.exceptions.RayError as error:
            raise explain_failure(error, "prediction") from error
        finally:
            ray.kill(self._dispatcher)

    def _count_engines(self) -> dict[str, int]:
        return dict(Counter(ray.get(self._dispatcher.get_engines.remote())))

    def _make_dataset(self, task: PredictionTask) -> Any:
        bundle, resources = task.bundle, self.resources
        batch_size = task.batch_size or choose_batch_size(gpus=resources.num_gpus > 0)
        # so that a batch of the reading stage becomes a block at once, and one of answers isn't split
        answer_bytes = self._batch_rows * (
            _ANSWER_BYTES + 4 * task.columns.embedding_size + _TOP_BYTES * task.columns.top_k
        )
        block_bytes = max(answer_bytes, batch_size * bundle.image_size_px**2 * 3 if resources.num_gpus else 0)
        windows = [pa.table({"first": [first], "count": [count]}) for first, count in task.windows]
        batches = ray.data.from_blocks(windows).map_batches(
            _read_window,
            fn_kwargs={
                "dispatcher": [self._dispatcher],
                "limits": task.limits,
                "first_rows": batch_size,
                "batch_rows": self._batch_rows,
                "image_column": task.rows.image_column,
                "image_size_px": bundle.image_size_px if resources.num_gpus else None,
                "block_bytes": block_bytes,
            },
            batch_size=None,
            num_cpus=DATA_TASK_CPUS,
        )
        dataset = map_blocks(
            batches,
            EngineActor,
            fn_constructor_kwargs={
                "files": [ray.put(bundle.read_inference_files())],
                "limits": task.limits,
                "batch_size": batch_size,
                "num_threads": resources.num_threads,
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
    dispatcher: list[Any],
    limits: Limits,
    first_rows: int,
    batch_rows: int,
    image_column: str | None,
    image_size_px: int | None,
    block_bytes: int,
) -> Iterator[Columns]:
    """Lease a window's rows and fetch them, a batch at a time; decode them where `image_size_px` is given."""
    (handle,) = dispatcher
    first, count = int(window["first"][0]), int(window["count"][0])
    rows, tries = ray.get(handle.lease.remote(first, count))
    fetched = read_rows(rows, limits.max_bytes, image_column)
    looked, unseen = time.monotonic(), 0
    for batch in cut(rows, first_rows, batch_rows, encoded=image_size_px is None):
        if time.monotonic() - looked > _LOOK_INTERVAL_S:
            looked = time.monotonic()
            if ray.get(handle.look.remote(unseen)):
                break
            unseen = 0
        row_ids = batch["row_id"].to_numpy()
        answers: Iterator[Fetched] = islice(fetched, len(row_ids))
        if tries:
            answers = _isolate_each(handle, ("window", first), row_ids, answers)
        if image_size_px is None:
            yield pack(make_encoded(row_ids, answers), block_bytes)
        else:
            yield make_decoded(row_ids, answers, image_size_px, limits)
        unseen += len(row_ids)
    handle.leave.remote(("window", first), unseen)


def _isolate_each(
    handle: Any, key: Key, row_ids: npt.NDArray[np.int64], fetched: Iterator[Fetched]
) -> Iterator[Fetched]:
    """Rows of a window whose process died: each is said to be in hand before it is fetched and decoded."""
    for row_id in row_ids:
        if ray.get(handle.isolate.remote(key, int(row_id))) >= MAX_TRIES:
            next(fetched)
            yield Fetched(FetchError(Code.CRASHED, f"its process died on it {MAX_TRIES} times"), 0)
        else:
            yield next(fetched)
