"""Batches for training: images through Ray Data, or features from the cache; both read ahead of the step.

`inspect_images` looks at every image once on the driver. `ImageSource` then streams a worker's batches through one
ordered Ray Data pipeline, `FeatureSource` reads them by offset in a thread; each holds a bounded number of batches.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.exceptions

from tlray import storage
from tlray.errors import FetchError, ImageError, StoppedError
from tlray.features import Kind, OpenCache
from tlray.images import decode
from tlray.limits import Limits
from tlray.progress import Stage
from tlray.reader import OK, KeptBytes, read_images
from tlray.runtime import explain_failure
from tlray.shares import DATA_TASK_CPUS

PREFETCH_BATCHES = 4
"""Decoded batches that wait for the step."""

FEATURE_PREFETCH_BATCHES = 2
"""Batches of features that wait for the step."""

_INSPECT_ROWS = 64


class Batch(NamedTuple):
    """What one worker takes in one step.

    Attributes:
        role: "train", "val" or "test".
        view: of training images.
        rows: int64 `[B]`, row ids.
    """

    role: str
    view: int
    rows: npt.NDArray[np.int64]


class Source(Protocol):
    """Where a phase's batches come from."""

    def stream(self, batches: Sequence[Batch]) -> Generator[npt.NDArray[Any]]:
        """The batches' inputs in order, `[B, ...]` each, read ahead; closing the iterator ends the reading."""


def inspect_images(uris: Sequence[str], limits: Limits, *, spread: bool) -> tuple[list[str], list[str | None]]:
    """Read every image once: sha256 of its bytes in hexadecimal, and what is wrong with it or None.

    Args:
        uris: addresses.
        limits: what an image may be.
        spread: over a cluster, by Ray Data; else by threads of this process, which need no start.

    Raises:
        StoppedError: an image cannot be fetched, so nobody knows whether it is good.
    """
    blocks = [
        pa.table({"index": pa.array(range(start, min(start + _INSPECT_ROWS, len(uris)))), "uri": part})
        for start in range(0, len(uris), _INSPECT_ROWS)
        for part in [pa.array(uris[start : start + _INSPECT_ROWS], pa.string())]
    ]
    digests = [""] * len(uris)
    faults: list[str | None] = [None] * len(uris)
    with Stage("inspect", len(uris)) as stage:
        for block in _inspect_by_ray(blocks, limits) if spread else _inspect_by_threads(blocks, limits):
            for row in block.to_pylist():
                digests[row["index"]] = row["digest"]
                faults[row["index"]] = row["fault"]
                if row["unreachable"]:
                    raise StoppedError(f"{uris[row['index']]} cannot be read ({row['fault']})")
            stage.advance(block.num_rows)
    return digests, faults


def _inspect_by_threads(blocks: list[pa.Table], limits: Limits) -> Iterator[pa.Table]:
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda block: _inspect_block(block, limits), blocks)


def _inspect_by_ray(blocks: list[pa.Table], limits: Limits) -> Iterator[pa.Table]:
    import ray.data

    dataset = ray.data.from_blocks(blocks).map_batches(
        _inspect_block,
        fn_kwargs={"limits": limits},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=DATA_TASK_CPUS,
    )
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        raise explain_failure(error, "inspecting") from error


def _inspect_block(block: pa.Table, limits: Limits) -> pa.Table:
    digests: list[str] = []
    faults: list[str | None] = []
    unreachable: list[bool] = []
    for data in storage.get_many(block["uri"].to_pylist()):
        if isinstance(data, FetchError):
            digests.append("")
            faults.append(f"{data.code}: {data}")
            unreachable.append(True)
            continue
        digests.append(hashlib.sha256(data).hexdigest())
        unreachable.append(False)
        try:
            decode(data, 64, limits)
        except ImageError as error:
            faults.append(f"{error.code}: {error}")
        else:
            faults.append(None)
    return pa.table(
        {
            "index": block["index"],
            "digest": pa.array(digests, pa.string()),
            "fault": pa.array(faults, pa.string()),
            "unreachable": pa.array(unreachable, pa.bool_()),
        }
    )


@dataclass(frozen=True)
class ImageSource:
    """Decoded images, uint8 `[B, S, S, 3]`, for the online road.

    Attributes:
        uris: Ray reference to every address, by row id.
        image_size_px: side S of the decoded square.
        limits: as for labelling.
        num_readers, reader_cpus: processes that read, and what Ray books for each.
        keep_in, keep_bytes: local folder where encoded images from object storage are kept, and how much of them.
    """

    uris: ray.ObjectRef[Sequence[str]]
    image_size_px: int
    limits: Limits
    num_readers: int
    reader_cpus: float
    keep_in: str
    keep_bytes: int

    def stream(self, batches: Sequence[Batch]) -> Generator[npt.NDArray[Any]]:
        """Read ahead in actors.

        Raises:
            StoppedError: an image that was good when training began cannot be read any more.
        """
        if not batches:
            return
        dataset = self._make_dataset(np.stack([batch.rows for batch in batches]))
        for item in dataset.iter_batches(batch_size=1, prefetch_batches=PREFETCH_BATCHES, batch_format="numpy"):
            if item["fault"][0]:
                raise StoppedError(item["fault"][0])
            yield item["images"][0]

    def _make_dataset(self, rows: npt.NDArray[np.int64]) -> Any:
        import ray.data  # a training on cached features does without its import

        indices = pa.array(range(len(rows)), pa.int64())
        # from_blocks starts no task; ray.data.range and from_arrow start some that want a whole core each, and wait
        # for ever where the workers left less
        dataset = ray.data.from_blocks([pa.table({"index": indices.slice(start, 1)}) for start in range(len(rows))])
        # actors, not tasks: Ray ends a task's process after an idle second, and starting one costs 2 s of a core
        dataset = dataset.map_batches(
            _Reader,
            fn_constructor_kwargs={
                "uris": [self.uris],
                "batches": [ray.put(rows)],
                "image_size_px": self.image_size_px,
                "limits": self.limits,
                "kept": KeptBytes(Path(self.keep_in), self.keep_bytes // self.num_readers),
            },
            batch_size=1,
            num_cpus=self.reader_cpus,
            compute=ray.data.ActorPoolStrategy(size=self.num_readers),
        )
        dataset.context.execution_options.preserve_order = True
        return dataset


@dataclass(frozen=True)
class FeatureSource:
    """Features from the cache, `[B, ...]`, read by offset in a thread; never more than a few batches in memory."""

    cache: OpenCache
    kind: Kind

    def stream(self, batches: Sequence[Batch]) -> Generator[npt.NDArray[Any]]:
        """Read ahead in a thread.

        Raises:
            StoppedError: the cache changed meanwhile.
        """
        waiting: queue.Queue[npt.NDArray[Any] | BaseException] = queue.Queue(FEATURE_PREFETCH_BATCHES)
        stopped = threading.Event()

        def read() -> None:
            for batch in batches:
                try:
                    item: Any = self.cache.read(batch.role, self.kind, batch.view, batch.rows)
                except BaseException as error:
                    item = error
                while not stopped.is_set():
                    try:
                        waiting.put(item, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if stopped.is_set() or isinstance(item, BaseException):
                    return

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            for _ in batches:
                item = waiting.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()


class _Reader:
    """Reads one batch after another."""

    def __init__(
        self,
        uris: list[ray.ObjectRef[Sequence[str]]],
        batches: list[ray.ObjectRef[npt.NDArray[np.int64]]],
        image_size_px: int,
        limits: Limits,
        kept: KeptBytes,
    ) -> None:
        self._kept = kept
        self._uris = ray.get(uris[0])
        self._batches = ray.get(batches[0])
        self._image_size_px = image_size_px
        self._limits = limits

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, Any]:
        names = [self._uris[int(row)] for row in self._batches[int(batch["index"][0])]]
        images = read_images(names, self._image_size_px, self._limits, self._kept.get_many)
        faults = [
            f"{name} cannot be read any more ({status}: {error}); put it back, or start again without it"
            for name, status, error in zip(names, images.status, images.errors, strict=True)
            if status != OK
        ]
        return {"images": images.pixels[None], "fault": np.array([faults[0] if faults else ""])}
