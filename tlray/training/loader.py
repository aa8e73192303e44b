"""Read a worker's batches ahead of its steps: images through Ray Data, or features from the cache.

`ImageSource` streams them through one ordered Ray Data pipeline, `FeatureSource` reads them by offset in a thread; each
holds a bounded number of batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.exceptions

from tlray import storage
from tlray.errors import OK, FetchError, StoppedError
from tlray.features.cache import Kind, OpenCache
from tlray.images.batch import decode_images
from tlray.images.limits import Limits
from tlray.sources.places import Places

PREFETCH_BATCHES = 4
"""Number of decoded batches read ahead."""

FEATURE_PREFETCH_BATCHES = 2
"""Number of batches of features read ahead."""


Inputs: TypeAlias = npt.NDArray[np.generic]
"""The network's inputs for one batch: uint8 pixels `[B, S, S, 3]`, or features `[B, ...]`."""


class RowBatch(NamedTuple):
    """One worker's batch of one step: role, view of the training images, and row ids `[B]`."""

    role: str
    view: int
    rows: npt.NDArray[np.int64]


class BatchSource(Protocol):
    """The source of a phase's batches."""

    def stream(self, batches: Sequence[RowBatch]) -> Generator[Inputs]:
        """Yield the batches' inputs in order, `[B, ...]` each, read ahead; closing the generator ends the reading."""


@dataclass(frozen=True)
class ImageSource:
    """Decoded images, uint8 `[B, S, S, 3]`, for phases that are not cached.

    Attributes:
        places: Ray reference to the places of all images.
        image_size_px: side S of the decoded square.
        num_readers, reader_cpus: number of reading actors, and the cores that Ray reserves for each.
        keep_in, keep_bytes: local folder for encoded images from object storage, and its maximum size.
    """

    places: ray.ObjectRef[Places]
    image_size_px: int
    limits: Limits
    num_readers: int
    reader_cpus: float
    keep_in: str
    keep_bytes: int

    def stream(self, batches: Sequence[RowBatch]) -> Generator[Inputs]:
        """Read ahead in actors.

        Raises:
            StoppedError: an image can no longer be read.
        """
        if not batches:
            return
        dataset = self._make_dataset(np.stack([batch.rows for batch in batches]))
        for item in dataset.iter_batches(batch_size=1, prefetch_batches=PREFETCH_BATCHES, batch_format="numpy"):
            if item["fault"][0]:
                raise StoppedError(item["fault"][0])
            yield item["images"][0]

    def _make_dataset(self, rows: npt.NDArray[np.int64]) -> ray.data.Dataset:
        import ray.data  # not needed for cached features

        indices = pa.array(range(len(rows)), pa.int64())
        # from_blocks starts no task; ray.data.range and from_arrow start tasks of a whole core each, and would wait
        # forever if the workers left less
        dataset: ray.data.Dataset = ray.data.from_blocks(
            [pa.table({"index": indices.slice(start, 1)}) for start in range(len(rows))]
        )
        # actors, since Ray ends a task's process after an idle second, and starting one costs 2 s of a core
        dataset = dataset.map_batches(
            _Reader,
            fn_constructor_kwargs={
                "places": [self.places],
                "batches": [ray.put(rows)],
                "image_size_px": self.image_size_px,
                "limits": self.limits,
                "options": storage.get_options(),
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
    """Features from the cache, `[B, ...]`."""

    cache: OpenCache
    kind: Kind

    def stream(self, batches: Sequence[RowBatch]) -> Generator[Inputs]:
        """Read ahead in a thread.

        Raises:
            StoppedError: the cache has changed.
        """
        waiting: queue.Queue[Inputs | BaseException] = queue.Queue(FEATURE_PREFETCH_BATCHES)
        stopped = threading.Event()

        def read() -> None:
            for batch in batches:
                item: Inputs | BaseException
                try:
                    item = self.cache.read(batch.role, self.kind, batch.view, batch.rows)
                except BaseException as error:
                    item = error
                while not stopped.is_set():
                    with contextlib.suppress(queue.Full):
                        waiting.put(item, timeout=0.5)
                        break
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
    def __init__(
        self,
        places: list[ray.ObjectRef[Places]],
        batches: list[ray.ObjectRef[npt.NDArray[np.int64]]],
        image_size_px: int,
        limits: Limits,
        options: storage.S3Options,
        kept: KeptBytes,
    ) -> None:
        storage.adopt(options)
        self._kept = kept
        self._places = ray.get(places[0])
        self._batches = ray.get(batches[0])
        self._image_size_px = image_size_px
        self._limits = limits

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, Inputs]:
        rows = self._batches[int(batch["index"][0])]
        names = self._places.list_names(rows)
        fetched = self._kept.fetch(self._places, rows, self._limits.max_bytes)
        images = decode_images(fetched, len(rows), self._image_size_px, self._limits)
        faults = [
            f"{name} cannot be read any more ({status}: {error}); put it back, or start again without it"
            for name, status, error in zip(names, images.status, images.errors, strict=True)
            if status != OK
        ]
        return {"images": images.pixels[None], "fault": np.array([faults[0] if faults else ""])}


class KeptBytes:
    """Encoded images from object storage in a local folder, so that later epochs don't download them again.

    A machine's readers share the folder, and each adds up to its own limit. Images beyond it are fetched every time;
    none is evicted, since every epoch reads all of them.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._left = max_bytes

    def fetch(self, places: Places, rows: npt.NDArray[np.int64], max_bytes: int) -> Iterator[bytes | FetchError]:
        """Fetch images as `Places.fetch` does."""
        uris, offsets = places.list_names(rows), places.table["offset"].take(pa.array(rows)).to_pylist()
        names = [f"{uri} {offset}" for uri, offset in zip(uris, offsets, strict=True)]
        paths = [self._folder / hashlib.sha256(name.encode()).hexdigest() for name in names]
        kept = [_read_if_there(path) if storage.is_s3(uri) else None for uri, path in zip(uris, paths, strict=True)]
        fetched = places.fetch([row for row, held in zip(rows, kept, strict=True) if held is None], max_bytes)
        for uri, path, held in zip(uris, paths, kept, strict=True):
            if held is not None:
                yield held
                continue
            data = next(fetched)
            if storage.is_s3(uri) and isinstance(data, bytes) and len(data) <= self._left:
                self._keep(path, data)
            yield data

    def _keep(self, path: Path, data: bytes) -> None:
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)
        except OSError:  # the disk is full: keep no more
            partial.unlink(missing_ok=True)
            self._left = 0
        else:
            self._left -= len(data)


def _read_if_there(path: Path) -> bytes | None:
    """Return the content of a file; None if it is missing, as after another worker's end."""
    try:
        return path.read_bytes()
    except OSError:
        return None
