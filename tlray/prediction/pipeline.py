"""The labelling pipeline on Ray Data: read and decode in tasks, answer in engine actors, stream the answers back.

What goes in is windows of row ids; tasks ask the dispatcher for their rows, so that the driver never holds them. Blocks
come back in any order; their row ids say where they belong.
"""

from __future__ import annotations

import math
import time
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

from tlray.bundle import Bundle
from tlray.errors import Code, FetchError
from tlray.limits import Limits
from tlray.prediction import dispatcher as dispatchers
from tlray.prediction.dispatcher import MAX_TRIES, Key, MemoryRows, Rows
from tlray.prediction.labeller import UNKNOWN, Batch, Labeller
from tlray.prediction.rowset import RowSet
from tlray.reader import ImageBatch, decode_images
from tlray.runtime import explain_failure
from tlray.shares import DATA_TASK_CPUS, Cluster, share_engines
from tlray.sources.reading import read_rows
from tlray.storage import Fetched

_MIN_WINDOW_ROWS = 1024
_MAX_WINDOW_ROWS = 8192
_MAX_WINDOWS = 4096
_LOOK_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Task:
    """What to label, and how.

    Attributes:
        rows: a plan, or `MemoryRows`.
        done: row ids that need no work.
        windows: `(first, count)` of the slices that tasks take, by `make_windows`.
        bundle: what to label with.
        limits: of decoding.
        batch_size: images in one step of the engine.
        top_k: how many classes to list beside the first; 0 for none.
    """

    rows: Rows
    done: RowSet
    windows: Sequence[tuple[int, int]]
    bundle: Bundle
    limits: Limits
    batch_size: int
    top_k: int = 0


def make_windows(done: RowSet, num_cpus: float, streams: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """Cut row ids into slices that tasks take; those without work are left out.

    Args:
        done: row ids that need no work.
        num_cpus: a short job is cut so that all cores have some.
        streams: slices that must stay whole, since one pass over an archive reads them.
    """
    spread = math.ceil(done.num_rows / (4 * max(1, int(num_cpus))))
    most = min(_MAX_WINDOW_ROWS, max(_MIN_WINDOW_ROWS, done.num_rows // _MAX_WINDOWS))
    size = max(1, min(most, spread))
    bounds = [0, *(edge for first, count in streams for edge in (first, first + count)), done.num_rows]
    whole = set(streams)
    windows = []
    for start, stop in pairwise(bounds):
        step = max(1, stop - start) if (start, stop - start) in whole else size
        windows += [(first, min(step, stop - first)) for first in range(start, stop, step)]
    return [(first, count) for first, count in windows if len(done.find_missing(first, count))]


def label_files(
    uris: list[str], bundle: Bundle, cluster: Cluster, limits: Limits, batch_size: int
) -> Iterator[pa.Table]:
    """Label a list of files; row ids are their positions. As `Labelling`."""
    done = RowSet(len(uris))
    task = Task(MemoryRows(uris), done, make_windows(done, cluster.cpus), bundle, limits, batch_size)
    return iter(Labelling(task, cluster))


class Labelling:
    """A pipeline at work: iterate for tables by `ANSWER_FIELDS` (and `TOP_FIELDS` where `top_k` is above 0).

    There is one answer for each row, whatever happens to its image.

    Raises:
        StoppedError: Ray gave up on a task or an engine.
    """

    def __init__(self, task: Task, cluster: Cluster) -> None:
        self._done = ray.put(task.done)
        self._dispatcher = dispatchers.start(task.rows, self._done)
        self._dataset = self._make_dataset(task, cluster)

    def drain(self) -> None:
        """Take no more rows in hand; iteration ends when those in hand are answered."""
        self._dispatcher.drain.remote()

    def __iter__(self) -> Iterator[pa.Table]:
        try:
            yield from self._dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
        except ray.exceptions.RayError as error:
            raise explain_failure(error, "labelling") from error
        finally:
            ray.kill(self._dispatcher)

    def _make_dataset(self, task: Task, cluster: Cluster) -> Any:
        num_rows = sum(count for _, count in task.windows)
        bundle, batch_size = task.bundle, task.batch_size
        shares = share_engines(cluster, num_rows, batch_size)
        dataset = (
            ray.data.from_blocks([pa.table({"first": [first], "count": [count]}) for first, count in task.windows])
            .map_batches(
                _read_window,
                fn_kwargs={
                    "dispatcher": [self._dispatcher],
                    "image_size_px": bundle.image_size_px,
                    "limits": task.limits,
                    "batch_size": batch_size,
                    "image_column": task.rows.image_column,
                },
                batch_size=None,
                num_cpus=DATA_TASK_CPUS,
            )
            .map_batches(
                Labeller,
                fn_constructor_kwargs={
                    "files": [ray.put(bundle.read_inference_files())],
                    "classes": bundle.classes,
                    "image_size_px": bundle.image_size_px,
                    "batch_size": batch_size,
                    "num_threads": shares.num_threads,
                    "num_engines": shares.actors,
                    "top_k": min(task.top_k, len(bundle.classes)),
                    "dispatcher": [self._dispatcher],
                },
                batch_size=batch_size,
                compute=ray.data.ActorPoolStrategy(size=shares.actors),
                num_cpus=shares.num_cpus,
                num_gpus=shares.num_gpus or None,
            )
        )
        dataset.context.target_max_block_size = max(2**20, batch_size * bundle.image_size_px**2 * 3)
        return dataset


def _read_window(
    window: Batch, dispatcher: list[Any], image_size_px: int, limits: Limits, batch_size: int, image_column: str | None
) -> Iterator[Batch]:
    """Lease a window's rows, read and decode them, a batch at a time."""
    (handle,) = dispatcher
    first, count = int(window["first"][0]), int(window["count"][0])
    rows, tries = ray.get(handle.lease.remote(first, count))
    fetched = read_rows(rows, limits.max_bytes, image_column)
    looked = time.monotonic()
    for start in range(0, rows.num_rows, batch_size):
        if time.monotonic() - looked > _LOOK_INTERVAL_S:
            looked = time.monotonic()
            if ray.get(handle.is_draining.remote()):
                break
        row_ids = rows["row_id"][start : start + batch_size].to_numpy()
        if tries == 0:
            answers = list(islice(fetched, len(row_ids)))
            images = decode_images((answer.data for answer in answers), len(row_ids), image_size_px, limits)
            yield _make_batch(row_ids, images, [answer.retries for answer in answers])
        else:
            yield _read_one_by_one(handle, ("window", first), row_ids, fetched, image_size_px, limits)
    handle.leave.remote(("window", first))


def _read_one_by_one(
    handle: Any,
    key: Key,
    row_ids: npt.NDArray[np.int64],
    fetched: Iterator[Fetched],
    image_size_px: int,
    limits: Limits,
) -> Batch:
    """A batch of a window whose process died: each row is said to be in hand before it is decoded."""
    crashed = FetchError(Code.CRASHED, f"its process died on it {MAX_TRIES} times")
    retries: list[int] = []

    def take() -> Iterator[bytes | FetchError]:
        for row_id in row_ids:
            given_up = ray.get(handle.suspect.remote(key, int(row_id))) >= MAX_TRIES
            answer = next(fetched)
            retries.append(answer.retries)
            yield crashed if given_up else answer.data

    images = decode_images(take(), len(row_ids), image_size_px, limits)
    return _make_batch(row_ids, images, retries)


def _make_batch(row_ids: npt.NDArray[np.int64], images: ImageBatch, retries: list[int]) -> Batch:
    return {
        "row_id": row_ids,
        "image": images.pixels,
        "status": np.array(images.status, object),
        "error": np.array([error or "" for error in images.errors], object),  # None would come out as NaN
        "width": np.array([UNKNOWN if value is None else value for value in images.widths], np.int32),
        "height": np.array([UNKNOWN if value is None else value for value in images.heights], np.int32),
        "retries": np.array(retries, np.int32),
    }
