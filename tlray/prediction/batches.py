"""What passes from the reading stage to the engines: rows with encoded images, or with decoded ones.

An engine on a CPU decodes for itself, since whoever decoded would take its core: what travels are the encoded bytes, a
fraction of the pixels. An engine on a GPU is fed by many decoding processes with pixels.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.errors import OK, Code, FetchError
from tlray.images.batch import ImageBatch, decode_images
from tlray.images.limits import Limits
from tlray.storage import Fetched

Columns = dict[str, npt.NDArray[Any]]
"""Columns by name: row_id, status, error ("" for none), retries; data, or image, width, height; or packed."""

UNKNOWN = -1
"""A width or height that is not known, where a batch can hold no null."""

_MAX_ENCODED_BYTES = 64 * 2**20


def cut(rows: pa.Table, first_size: int, batch_size: int, *, encoded: bool) -> Iterator[pa.Table]:
    """Batches of planned rows, of bounded bytes where they will travel encoded and the plan knows their sizes.

    The first may be smaller, so that a run's first answers come sooner. Bounds follow from the plan alone: a task that
    is run again must make the same batches.
    """
    unknown = _MAX_ENCODED_BYTES // batch_size
    sizes = rows["size"].fill_null(unknown).to_numpy() if encoded else np.zeros(rows.num_rows, np.int64)
    first, held = 0, 0
    for index, size in enumerate(sizes):
        most = batch_size if first else first_size
        if index > first and (index - first == most or held + size > _MAX_ENCODED_BYTES):
            yield rows.slice(first, index - first)
            first, held = index, 0
        held += size
    if rows.num_rows > first:
        yield rows.slice(first)


def make_encoded(row_ids: npt.NDArray[np.int64], fetched: Iterable[Fetched]) -> Columns:
    """Rows as they were fetched."""
    answers = list(fetched)
    errors = [answer.data if isinstance(answer.data, FetchError) else None for answer in answers]
    return {
        "row_id": row_ids,
        "data": np.array([answer.data if isinstance(answer.data, bytes) else b"" for answer in answers], object),
        "status": np.array([OK if error is None else error.code.value for error in errors], object),
        "error": np.array(["" if error is None else str(error) for error in errors], object),
        "retries": np.array([answer.retries for answer in answers], np.int32),
    }


def pack(batch: Columns, block_bytes: int) -> Columns:
    """One row that holds a batch: Ray Data joins and splits rows by their bytes, and a batch is to stay one.

    Args:
        batch: what to pack.
        block_bytes: the size at which Ray Data makes a block.
    """
    # all above that size, so that a task that is run again makes the same blocks
    data = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL).ljust(block_bytes + 1, b"\0")
    return {"packed": np.array([data], object)}


def unpack(batch: Columns) -> Columns:
    """What was packed; what was not stays as it is."""
    if "packed" not in batch:
        return batch
    unpacked: Columns = pickle.loads(batch["packed"][0])
    return unpacked


def make_decoded(
    row_ids: npt.NDArray[np.int64], fetched: Iterable[Fetched], image_size_px: int, limits: Limits
) -> Columns:
    """Rows decoded one by one as they are fetched."""
    retries: list[int] = []

    def take() -> Iterator[bytes | FetchError]:
        for answer in fetched:
            retries.append(answer.retries)
            yield answer.data

    images = decode_images(take(), len(row_ids), image_size_px, limits)
    return {
        "row_id": row_ids,
        "image": images.pixels,
        "status": np.array(images.status, object),
        "error": np.array([error or "" for error in images.errors], object),  # None would come out as NaN
        "width": _fill_unknown(images.widths),
        "height": _fill_unknown(images.heights),
        "retries": np.array(retries, np.int32),
    }


def open_images(batch: Columns, rows: slice, image_size_px: int, limits: Limits) -> ImageBatch:
    """The decoded images of some rows of a batch."""
    statuses, errors = batch["status"][rows].tolist(), batch["error"][rows].tolist()
    if "data" in batch:
        fetched = (
            data if status == OK else FetchError(Code(status), error)
            for data, status, error in zip(batch["data"][rows], statuses, errors, strict=True)
        )
        return decode_images(fetched, len(statuses), image_size_px, limits)
    return ImageBatch(
        pixels=batch["image"][rows],
        status=statuses,
        errors=[error or None for error in errors],
        widths=_null_unknown(batch["width"][rows]),
        heights=_null_unknown(batch["height"][rows]),
    )


def _fill_unknown(values: list[int | None]) -> npt.NDArray[np.int32]:
    return np.array([UNKNOWN if value is None else value for value in values], np.int32)


def _null_unknown(values: npt.NDArray[np.int32]) -> list[int | None]:
    return [None if value == UNKNOWN else int(value) for value in values]
