"""Read every image once before a training: the sha256 of its file, and its fault if it cannot be used.

    CACHE/inspected/FINGERPRINT.parquet    `uri, version, digest string` of earlier inspections

An image without a fault whose size and times, or etag, are those of an earlier inspection is not read again. The
fingerprint is that of the decoder and the limits.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.cluster.connect import explain_failure
from tlray.cluster.resources import DATA_TASK_CPUS
from tlray.console import Stage, say
from tlray.errors import UNREACHABLE, Code, FetchError, ImageError, StoppedError, TlrayError
from tlray.images.decode import decode
from tlray.images.limits import Limits
from tlray.model.manifest import DECODER, hash_json
from tlray.sources.places import Places
from tlray.sources.reading import read_rows

_INSPECT_ROWS = 64
_INSPECT_TABLE_ROWS = 2048
"""Rows of a block where there are tables, whose row groups are decoded from their beginning."""

_SIDE_PX = 64
_UNREACHABLE_SHARE = 0.01
_AWAY = frozenset({*UNREACHABLE, Code.NOT_FOUND, Code.DENIED, Code.CHANGED, Code.CORRUPT})
"""Codes of images that may be there again later, or whose whole archive or table is damaged."""

_DIGEST = re.compile("[0-9a-f]{64}", re.ASCII)
_SETTLED_S = 2.0
"""Age from which on a change of a file changes its times too, on any file system."""

_SCHEMA = pa.schema([(name, pa.string()) for name in ("uri", "version", "digest")])


class Inspected(NamedTuple):
    """The hexadecimal sha256 of an image's file, "" if it cannot be fetched, and the fault of the image, or None."""

    digest: str
    fault: str | None


class Memory:
    """Results of earlier inspections, by address and version."""

    def __init__(self, root: str | None, limits: Limits) -> None:
        """Read what is known below a cache; None for no memory."""
        self._began_ns = time.time_ns()
        self._uri: str | None = None
        self._known: dict[str, tuple[str, str]] = {}
        if root is not None:
            fingerprint = hash_json([DECODER, limits.max_bytes, limits.max_pixels])[:16]
            self._uri = storage.join(root, "inspected", f"{fingerprint}.parquet")
            self._known = _read_known(self._uri)

    def find(self, uri: str, version: str) -> Inspected | None:
        """Return what is known of an image of this version."""
        known, digest = self._known.get(uri, ("", ""))
        return Inspected(digest, None) if version and version == known else None

    def keep(self, uris: Sequence[str], versions: Sequence[str], found: Sequence[Inspected]) -> None:
        """Add what was found; what cannot be stored is inspected again."""
        new = {
            uri: (version, inspected.digest)
            for uri, version, inspected in zip(uris, versions, found, strict=True)
            if version and inspected.fault is None and not _is_fresh(version, self._began_ns)
        }
        if self._uri is None or new.items() <= self._known.items():
            return
        self._known |= new
        rows = [(uri, *known) for uri, known in self._known.items()]
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=_SCHEMA), buffer, compression="zstd")
        try:
            storage.put(self._uri, buffer.getvalue())
        except TlrayError as error:
            say(f"what was found by inspecting the images is not kept ({error})")


def _read_known(uri: str) -> dict[str, tuple[str, str]]:
    """Return version and digest by address; nothing of a file that is missing or damaged."""
    try:
        table = pq.read_table(io.BytesIO(storage.get(uri)))
    except (FetchError, OSError, pa.ArrowException):
        return {}
    if not table.schema.equals(_SCHEMA):
        return {}
    rows = zip(*(table[name].to_pylist() for name in _SCHEMA.names), strict=True)
    return {name: (version, digest) for name, version, digest in rows if digest and _DIGEST.fullmatch(digest)}


def _is_fresh(version: str, now_ns: int) -> bool:
    """Return whether a local file is so new that another change might leave its times as they are."""
    times = version.split(" ")[1:]
    return any(mark.isdecimal() and now_ns - int(mark) < _SETTLED_S * 1e9 for mark in times)


def inspect_images(
    places: Places, versions: Sequence[str], memory: Memory, limits: Limits, *, spread: bool
) -> list[Inspected]:
    """Read every image that memory does not know.

    Args:
        places: of the images.
        versions: of `storage.Entry`, by row id.
        memory: gets what is found.
        limits: of an image's size.
        spread: read by Ray Data over the cluster; else by threads of this process, which start at once.

    Raises:
        StoppedError: more images cannot be fetched than a few: the store may be away, or not theirs to read.
    """
    uris = places.list_names(range(len(places)))
    found = [memory.find(uri, version) for uri, version in zip(uris, versions, strict=True)]
    unknown = [index for index, inspected in enumerate(found) if inspected is None]
    if len(unknown) < len(uris):
        say(f"inspect: {len(uris) - len(unknown):,} of {len(uris):,} images are unchanged since an earlier training")
    rows = _INSPECT_ROWS if places.image_column is None else _INSPECT_TABLE_ROWS
    blocks = [
        places.table.take(pa.array(part)).append_column("index", pa.array(part))
        for start in range(0, len(unknown), rows)
        for part in [unknown[start : start + rows]]
    ]
    most = max(1, int(_UNREACHABLE_SHARE * len(uris)))
    unreachable: list[str] = []
    if blocks:
        with Stage("inspect", len(unknown)) as stage:
            for block in (_inspect_by_ray if spread else _inspect_by_threads)(blocks, places.image_column, limits):
                for index, digest, fault, away in zip(*(column.to_pylist() for column in block.columns), strict=True):
                    found[index] = Inspected(digest, fault)
                    if away:
                        unreachable.append(f"{uris[index]} ({fault})")
                if len(unreachable) > most:
                    raise StoppedError(
                        f"more than {most:,} of {len(uris):,} images cannot be read, which is too many to leave out; "
                        f"the first is {unreachable[0]}"
                    )
                stage.advance(block.num_rows)
    inspected = [one for one in found if one is not None]
    memory.keep(uris, versions, inspected)
    return inspected


def _inspect_by_threads(blocks: list[pa.Table], image_column: str | None, limits: Limits) -> Iterator[pa.Table]:
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda block: _inspect_block(block, image_column, limits), blocks)


def _inspect_by_ray(blocks: list[pa.Table], image_column: str | None, limits: Limits) -> Iterator[pa.Table]:
    import ray.data

    dataset = ray.data.from_blocks(blocks).map_batches(
        _inspect_block,
        fn_kwargs={"image_column": image_column, "limits": limits, "options": storage.get_options()},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=DATA_TASK_CPUS,
    )
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        raise explain_failure(error, "inspecting") from error


def _inspect_block(
    block: pa.Table, image_column: str | None, limits: Limits, options: storage.S3Options | None = None
) -> pa.Table:
    if options is not None:
        storage.adopt(options)
    found: list[Inspected] = []
    away: list[bool] = []
    for data, _ in read_rows(block, limits.max_bytes, image_column):
        digest, fault = "", None
        try:
            if isinstance(data, FetchError):
                raise data
            digest = hashlib.sha256(data).hexdigest()
            decode(data, _SIDE_PX, limits)
        except (FetchError, ImageError) as error:
            fault = f"{error.code}: {error}"
        found.append(Inspected(digest, fault))
        away.append(isinstance(data, FetchError) and data.code in _AWAY)
    digests, faults = zip(*found, strict=True)
    texts = {"digest": pa.array(digests, pa.string()), "fault": pa.array(faults, pa.string())}
    return pa.table({"index": block["index"], **texts, "away": away})
