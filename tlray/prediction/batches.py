"""Batches that the reading stage sends to the engines: rows with encoded or with decoded images.

An engine on a CPU gets encoded images, a fraction of the pixels' size, and decodes them itself: another process would
compete for its core. An engine on a GPU gets pixels from many decoding processes.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.errors import FetchError, ImageError
from tlray.images.batch import ImageBatch, decode_images
from tlray.images.decode import Decoded, decode
from tlray.images.limits import Limits
from tlray.storage import Fetched

Columns = dict[str, npt.NDArray[Any]]
"""Columns by name: row_id, retries, and either data (bytes, a FetchError, or what `make_encoded` decoded) or image,
status, error ("" for none), width and height; or a packed batch."""

UNKNOWN = -1
"""An unknown width or height; a batch cannot hold null."""

_MAX_ENCODED_BYTES = 64 * 2**20
_DECODED = ("image", "status", "error", "width", "height")


def cut(rows: pa.Table, first_size: int, batch_size: int, *, encoded: bool) -> Iterator[pa.Table]:
    """Cut planned rows into batches, also bounded in bytes if they are sent encoded and their sizes are planned.

    The first may be smaller, so that the first predictions come sooner. Batches depend on the plan alone: a task that
    is run again must make the same ones.
    """
    unknown = _MAX_ENCODED_BYTES // batch_size  # `make_encoded` bounds what they turn out to be
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


def make_encoded(
    row_ids: npt.NDArray[np.int64], fetched: Iterable[Fetched], image_size_px: int, limits: Limits
) -> Columns:
    """Return a batch of encoded images; what goes beyond 64 MiB, as sizes were not planned, is decoded here."""
    batch: Columns = {"row_id": row_ids, "data": np.empty(len(row_ids), object)}
    retries: list[int] = []
    held = 0
    for index, (data, num_retries) in enumerate(fetched):
        size = len(data) if isinstance(data, bytes) else 0
        if isinstance(data, bytes) and index and held + size > _MAX_ENCODED_BYTES:
            batch["data"][index] = _decode_early(data, image_size_px, limits)
        else:
            batch["data"][index] = data
            held += size
        retries.append(num_retries)
    return batch | {"retries": np.array(retries, np.int32)}


def _decode_early(data: bytes, image_size_px: int, limits: Limits) -> Decoded | ImageError:
    try:
        return decode(data, image_size_px, limits)
    except ImageError as error:
        return error


def pack(batch: Columns, block_bytes: int) -> Columns:
    """Return one row that holds a batch, which Ray Data cannot split; it makes blocks of `block_bytes`."""
    # always above that size, so that a task that is run again makes the same blocks
    data = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL).ljust(block_bytes + 1, b"\0")
    return {"packed": np.array([data], object)}


def unpack(batch: Columns) -> Columns:
    """Return the batch of a packed row; another batch is returned as it is."""
    if "packed" not in batch:
        return batch
    unpacked: Columns = pickle.loads(batch["packed"][0])
    return unpacked


def make_decoded(
    row_ids: npt.NDArray[np.int64], fetched: Iterable[Fetched], image_size_px: int, limits: Limits
) -> Columns:
    """Return a batch of images that are decoded one by one as they are fetched."""
    retries: list[int] = []

    def take() -> Iterator[bytes | FetchError]:
        for data, num_retries in fetched:
            retries.append(num_retries)
            yield data

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
    """Return the decoded images of some rows of a batch."""
    if "data" in batch:
        fetched = batch["data"][rows]
        return decode_images(fetched, len(fetched), image_size_px, limits)
    pixels, status, errors, widths, heights = (batch[name][rows] for name in _DECODED)
    messages = [error or None for error in errors]
    return ImageBatch(pixels, status.tolist(), messages, _null_unknown(widths), _null_unknown(heights))


def _fill_unknown(values: list[int | None]) -> npt.NDArray[np.int32]:
    return np.array([UNKNOWN if value is None else value for value in values], np.int32)


def _null_unknown(values: npt.NDArray[np.int32]) -> list[int | None]:
    return [None if value == UNKNOWN else int(value) for value in values]
