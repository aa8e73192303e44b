"""Images for training, through Ray Data: looked at once by the driver, then streamed to every worker in its own order.

A worker's stream is one ordered Ray Data pipeline over all its batches of all epochs, so reading runs ahead of the
step by a bounded number of batches and starts only once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from tlray import storage
from tlray.errors import FetchError, ImageError, StoppedError
from tlray.images import decode
from tlray.limits import Limits
from tlray.progress import Stage
from tlray.reader import OK, read_images
from tlray.runtime import explain_failure
from tlray.shares import DATA_TASK_CPUS

PREFETCH_BATCHES = 4
"""Decoded batches that wait for the step."""

_INSPECT_ROWS = 64


def inspect_images(uris: Sequence[str], limits: Limits) -> tuple[list[str], list[str | None]]:
    """Read every image once: sha256 of its bytes in hexadecimal, and what is wrong with it or None.

    Raises:
        StoppedError: an image cannot be fetched, so nobody knows whether it is good.
    """
    blocks = [
        pa.table({"index": pa.array(range(start, min(start + _INSPECT_ROWS, len(uris)))), "uri": part})
        for start in range(0, len(uris), _INSPECT_ROWS)
        for part in [pa.array(uris[start : start + _INSPECT_ROWS], pa.string())]
    ]
    dataset = ray.data.from_blocks(blocks).map_batches(
        _inspect_block,
        fn_kwargs={"limits": limits},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=DATA_TASK_CPUS,
    )
    digests = [""] * len(uris)
    faults: list[str | None] = [None] * len(uris)
    with Stage("inspect", len(uris)) as stage:
        try:
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in block.to_pylist():
                    digests[row["index"]] = row["digest"]
                    faults[row["index"]] = row["fault"]
                    if row["unreachable"]:
                        raise StoppedError(f"{uris[row['index']]} cannot be read ({row['fault']})")
                stage.advance(block.num_rows)
        except ray.exceptions.RayError as error:
            raise explain_failure(error, "inspecting") from error
    return digests, faults


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


def stream_batches(
    uris: ray.ObjectRef[Sequence[str]],
    batches: npt.NDArray[np.int64],
    image_size_px: int,
    limits: Limits,
    num_readers: int,
    reader_cpus: float,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Read batches of images in order, ahead of their use.

    Args:
        uris: every address, by row id.
        batches: int64 `[batches, batch]`, row ids.
        image_size_px: side S of the decoded square.
        limits: as for labelling.
        num_readers, reader_cpus: processes that read, and what Ray books for each.

    Yields:
        uint8 `[batch, S, S, 3]`.

    Raises:
        StoppedError: an image that was good when training began cannot be read any more.
    """
    indices = pa.array(range(len(batches)), pa.int64())
    # from_blocks starts no task; ray.data.range and from_arrow start some that want a whole core each, and wait for
    # ever where the workers left less
    dataset = ray.data.from_blocks([pa.table({"index": indices.slice(start, 1)}) for start in range(len(batches))])
    # actors, not tasks: Ray ends a task's process after an idle second, and starting one costs 2 s of a core
    dataset = dataset.map_batches(
        _Reader,
        fn_constructor_kwargs={
            "uris": [uris],
            "batches": [ray.put(batches)],
            "image_size_px": image_size_px,
            "limits": limits,
        },
        batch_size=1,
        num_cpus=reader_cpus,
        compute=ray.data.ActorPoolStrategy(size=num_readers),
    )
    dataset.context.execution_options.preserve_order = True
    for item in dataset.iter_batches(batch_size=1, prefetch_batches=PREFETCH_BATCHES, batch_format="numpy"):
        if item["fault"][0]:
            raise StoppedError(item["fault"][0])
        yield item["images"][0]


class _Reader:
    """Reads one batch after another."""

    def __init__(
        self,
        uris: list[ray.ObjectRef[Sequence[str]]],
        batches: list[ray.ObjectRef[npt.NDArray[np.int64]]],
        image_size_px: int,
        limits: Limits,
    ) -> None:
        self._uris = ray.get(uris[0])
        self._batches = ray.get(batches[0])
        self._image_size_px = image_size_px
        self._limits = limits

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, Any]:
        names = [self._uris[int(row)] for row in self._batches[int(batch["index"][0])]]
        images = read_images(names, self._image_size_px, self._limits)
        faults = [
            f"{name} cannot be read any more ({status}: {error}); put it back, or start again without it"
            for name, status, error in zip(names, images.status, images.errors, strict=True)
            if status != OK
        ]
        return {"images": images.pixels[None], "fault": np.array([faults[0] if faults else ""])}
