"""Batches for training: images through Ray Data, or features from the cache; both read ahead of the step.

`inspect_images` looks at every image once on the driver. `ImageSource` then streams a worker's batches through one
ordered Ray Data pipeline, `FeatureSource` reads them by offset in a thread; each holds a bounded number of batches.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.exceptions

from tlray import storage
from tlray.errors import OK, FetchError, StoppedError
from tlray.features.cache import Kind, OpenCache
from tlray.images.batch import read_images
from tlray.images.limits import Limits

PREFETCH_BATCHES = 4
"""Decoded batches that wait for the step."""

FEATURE_PREFETCH_BATCHES = 2
"""Batches of features that wait for the step."""


class RowBatch(NamedTuple):
    """What one worker takes in one step.

    Attributes:
        role: "train", "val" or "test".
        view: of training images.
        rows: int64 `[B]`, row ids.
    """

    role: str
    view: int
    rows: npt.NDArray[np.int64]


class BatchSource(Protocol):
    """Where a phase's batches come from."""

    def stream(self, batches: Sequence[RowBatch]) -> Generator[npt.NDArray[Any]]:
        """The batches' inputs in order, `[B, ...]` each, read ahead; closing the iterator ends the reading."""


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

    def stream(self, batches: Sequence[RowBatch]) -> Generator[npt.NDArray[Any]]:
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

    def stream(self, batches: Sequence[RowBatch]) -> Generator[npt.NDArray[Any]]:
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


class KeptBytes:
    """Encoded images from object storage, kept in a local folder, so that epochs don't download them again.

    A machine's readers share the folder; each adds up to its own limit. What does not fit is fetched each time, and
    nothing is thrown out for it, since every epoch reads everything.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._left = max_bytes

    def get_many(self, uris: Sequence[str]) -> Iterator[bytes | FetchError]:
        """Like `storage.get_many`."""
        paths = [self._folder / hashlib.sha256(uri.encode()).hexdigest() for uri in uris]
        kept = [storage.is_s3(uri) and path.is_file() for uri, path in zip(uris, paths, strict=True)]
        fetched = storage.get_many([uri for uri, there in zip(uris, kept, strict=True) if not there])
        for uri, path, there in zip(uris, paths, kept, strict=True):
            if there:
                yield path.read_bytes()
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
        except OSError:  # a full disk only means that nothing more is kept
            partial.unlink(missing_ok=True)
            self._left = 0
        else:
            self._left -= len(data)
