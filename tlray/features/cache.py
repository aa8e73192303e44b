"""The frozen base, computed once: what enters each phase, stored by row and view in a cache folder.

    CACHE/BACKBONE-FINGERPRINT/            one network, boundary, input size and precision
        frozen.json                        what the fingerprint stands for, shapes, dtype
        tail.npz                           the base after the boundary, so that a worker need not build the rest
        FINGERPRINT/                       one set of images (and its augmentation and seed)
            view-000/pooled-00000.npy      float `[rows, F]`, uncompressed: rows are read by offset
            view-000/activations-00000.npy float `[rows, h, w, c]`

A file appears whole or not at all, so what is there is done, and an interrupted build goes on from it. Views are stored
one by one: a training that wants more of them, or fewer, uses those that are there. `build.build` computes what
is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.errors import FetchError, StoppedError
from tlray.images.augment import Augmentation
from tlray.images.limits import Limits
from tlray.model.backbones import BACKBONES, INPUT
from tlray.model.manifest import Preprocessing, hash_json
from tlray.model.precision import Precision

Kind = Literal["pooled", "activations"]

FORMAT = 1
FROZEN_BASE = "frozen_base.json"
TAIL = "tail.npz"

_FINGERPRINT_DIGITS = 16
_MAX_ROWS_PER_SHARD = 256
_MIN_ROWS_PER_SHARD = 8
_SHARDS = 64
_NPY_HEADER_BYTES = 128  # what NumPy writes before the data of arrays like these


@dataclass(frozen=True)
class FrozenBase:
    """The frozen base: everything that decides its values.

    Attributes:
        backbone, image_size_px, boundary: up to where it reaches.
        weights: the file's content behind a Ray reference, or None for random ones.
        weights_sha256: of that content; "" for random ones.
        weights_seed: of random ones.
        precision: it computes in.
        limits: images are decoded under.
    """

    backbone: str
    image_size_px: int
    boundary: str
    weights: Any
    weights_sha256: str
    weights_seed: int
    precision: Precision
    limits: Limits

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What it can give: activations only where something is frozen in phase 2."""
        return ("pooled",) if self.boundary == INPUT else ("pooled", "activations")

    def describe(self) -> dict[str, Any]:
        """What its fingerprint stands for."""
        entry = BACKBONES[self.backbone]
        return {
            "format": FORMAT,
            "backbone": self.backbone,
            "boundary": self.boundary,
            "weights_sha256": self.weights_sha256,
            "weights_seed": None if self.weights_sha256 else self.weights_seed,
            "preprocessing": asdict(Preprocessing(self.image_size_px, entry.scale, entry.offset)),
            "precision": self.precision.frozen,
            "dtype": self.precision.storage_dtype,
        }


@dataclass(frozen=True)
class FeatureSet:
    """The features of some images in a cache folder: where each row lies, and how to read it. It pickles.

    Attributes:
        uri: its folder.
        rows: int64 `[N]`, row ids in the order in which they are stored.
        needs: which kinds each view holds.
        augmentation: how views differ; None for images as they are, which have one view, 0.
        rows_per_shard: rows in a file.
    """

    uri: str
    rows: npt.NDArray[np.int64]
    needs: dict[int, tuple[Kind, ...]]
    augmentation: Augmentation | None
    rows_per_shard: int

    @property
    def num_shards(self) -> int:
        """Files of one kind and view."""
        return -(-len(self.rows) // self.rows_per_shard)

    def name_shard(self, kind: Kind, view: int, shard: int) -> str:
        """Name of a file below `uri`."""
        return f"view-{view:03d}/{kind}-{shard:05d}.npy"

    def slice_shard(self, shard: int) -> npt.NDArray[np.int64]:
        """Row ids in a file."""
        start = shard * self.rows_per_shard
        return self.rows[start : start + self.rows_per_shard]

    def read(
        self, kind: Kind, view: int, rows: npt.NDArray[np.int64], shape: tuple[int, ...], dtype: str
    ) -> npt.NDArray[Any]:
        """Features of some rows, `[len(rows), *shape]`, read by offset.

        Raises:
            StoppedError: they cannot be read any more.
        """
        batch = np.empty((len(rows), *shape), dtype)
        row_bytes = batch[0].nbytes if len(rows) else 0
        shards, places = np.divmod(self._find_positions(rows), self.rows_per_shard)
        requests = [
            (
                storage.join(self.uri, self.name_shard(kind, view, int(shard))),
                _NPY_HEADER_BYTES + int(place) * row_bytes,
                row_bytes,
            )
            for shard, place in zip(shards, places, strict=True)
        ]
        for index, data in enumerate(storage.get_ranges(requests)):
            if isinstance(data, FetchError) or len(data) != row_bytes:
                raise StoppedError(f"the feature cache {self.uri} changed while it was read; start again")
            batch[index] = np.frombuffer(data, dtype).reshape(shape)
        return batch

    def _find_positions(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self._order[np.searchsorted(self.rows, rows, sorter=self._order)]

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.rows)


@dataclass(frozen=True)
class Cache:
    """All the features of one training.

    Attributes:
        uri: the folder of the frozen.
        frozen: what was frozen.
        sets: by role, "train", "val", "test"; without those that hold no rows.
    """

    uri: str
    frozen: FrozenBase
    sets: dict[str, FeatureSet]

    def open(self) -> OpenCache:
        """Read what a worker needs to use it."""
        described = json.loads(storage.get(storage.join(self.uri, FROZEN_BASE)))
        shapes = {kind: tuple(shape) for kind, shape in described["shapes"].items()}
        return OpenCache(self, shapes, described["dtype"])


@dataclass(frozen=True)
class OpenCache:
    """A built cache: shapes are known."""

    cache: Cache
    shapes: dict[str, tuple[int, ...]]
    dtype: str

    def read(self, role: str, kind: Kind, view: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Features of some rows of one role, `[len(rows), ...]`."""
        return self.cache.sets[role].read(kind, view, rows, self.shapes[kind], self.dtype)

    def load_tail(self) -> Any:
        """The base after the boundary, a `model.Tail`."""
        from tlray.model.network import Tail

        with np.load(io.BytesIO(storage.get(storage.join(self.cache.uri, TAIL)))) as stored:
            described = json.loads(stored["_tail"].tobytes())
            weights = {name: stored[name] for name in stored.files if name != "_tail"}
        return Tail(described["config"], described["positions"], weights)


@dataclass(frozen=True)
class Work:
    """Files of one shard that are not there yet.

    Attributes:
        role: of its set.
        shard: which.
        needs: kinds by view.
    """

    role: str
    shard: int
    needs: dict[int, tuple[Kind, ...]]


@dataclass(frozen=True)
class Missing:
    """What has to be built.

    Attributes:
        works: shard by shard.
        tail: whether the frozen base's own files are missing.
        images: passes through the frozen.
        total_images: passes, were nothing there.
    """

    works: list[Work]
    tail: bool
    images: int
    total_images: int

    @property
    def is_empty(self) -> bool:
        """Whether all is there."""
        return not self.works and not self.tail


def plan_cache(
    root: str,
    frozen: FrozenBase,
    roles: Mapping[str, npt.NDArray[np.int64]],
    digests: Sequence[str],
    augmentation: Augmentation,
    needs: Mapping[int, tuple[Kind, ...]],
) -> Cache:
    """Say where the features of a training lie, whether they are there or not.

    Args:
        root: `--cache-dir`.
        frozen: what is frozen.
        roles: row ids of "train", "val" and "test".
        digests: sha256 of every row's encoded image.
        augmentation: of training images.
        needs: kinds by view of the training images; the others have one view with every kind that any phase uses.
    """
    described = frozen.describe()
    uri = storage.join(root, f"{frozen.backbone}-{hash_json(described)[:_FINGERPRINT_DIGITS]}")
    plain = tuple(kind for kind in frozen.kinds if any(kind in kinds for kinds in needs.values()))
    sets = {}
    for role, rows in roles.items():
        if len(rows) == 0:
            continue
        augmented = augmentation if role == "train" else None
        fingerprint = hash_json(_describe_set(rows, digests, augmented))[:_FINGERPRINT_DIGITS]
        sets[role] = FeatureSet(
            uri=storage.join(uri, fingerprint),
            rows=rows,
            needs=dict(needs) if augmented else {0: plain},
            augmentation=augmented,
            rows_per_shard=_choose_rows_per_shard(len(rows)),
        )
    return Cache(uri, frozen, sets)


def find_missing(cache: Cache) -> Missing:
    """Compare with what is in the folder; files of a wrong size count as missing."""
    present = {entry.name: entry.size for entry in _list_folder(cache.uri)}
    shapes: dict[str, list[int]] = {}
    if FROZEN_BASE in present:
        described = json.loads(storage.get(storage.join(cache.uri, FROZEN_BASE)))
        if {key: value for key, value in described.items() if key != "shapes"} == cache.frozen.describe():
            shapes = described["shapes"]
    works = []
    images = total = 0
    for role, feature_set in cache.sets.items():
        below = feature_set.uri.removeprefix(f"{cache.uri}/")
        for shard in range(feature_set.num_shards):
            count = len(feature_set.slice_shard(shard))
            needs = {}
            for view, kinds in feature_set.needs.items():
                total += count
                lacking = tuple(
                    kind
                    for kind in kinds
                    if present.get(f"{below}/{feature_set.name_shard(kind, view, shard)}")
                    != _measure_shard(shapes.get(kind), count, cache.frozen.precision.storage_dtype)
                )
                if lacking:
                    needs[view] = lacking
                    images += count
            if needs:
                works.append(Work(role, shard, needs))
    return Missing(works, not shapes or (TAIL not in present and cache.frozen.boundary != INPUT), images, total)


def estimate_bytes(cache: Cache) -> int:
    """About how many bytes the features of a training take."""
    entry = BACKBONES[cache.frozen.backbone]
    bytes_each = np.dtype(cache.frozen.precision.storage_dtype).itemsize
    each = {
        "pooled": entry.num_features * bytes_each,
        "activations": entry.estimate_activation_bytes(cache.frozen.boundary, cache.frozen.image_size_px, bytes_each),
    }
    return sum(
        len(feature_set.rows) * sum(each[kind] for kinds in feature_set.needs.values() for kind in kinds)
        for feature_set in cache.sets.values()
    )


def measure_free_bytes(root: str) -> int | None:
    """Free bytes where a local cache would lie; None for object storage."""
    if storage.is_s3(root):
        return None
    folder = Path(root)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _describe_set(
    rows: npt.NDArray[np.int64], digests: Sequence[str], augmentation: Augmentation | None
) -> dict[str, Any]:
    """Unaugmented features depend on the images alone; views depend on row ids too."""
    content = hashlib.sha256()
    for row in rows:
        content.update(digests[row].encode() + (f" {row}" if augmentation else "").encode() + b"\n")
    drawn = vars(augmentation) if augmentation else None
    return {"images": len(rows), "content_sha256": content.hexdigest(), "augmentation": drawn}


def _choose_rows_per_shard(num_rows: int) -> int:
    """Small enough to share the work out evenly, large enough to keep files few."""
    return min(_MAX_ROWS_PER_SHARD, max(_MIN_ROWS_PER_SHARD, num_rows // _SHARDS))


def _measure_shard(shape: Iterable[int] | None, count: int, dtype: str) -> int:
    """Bytes of a whole file; -1, which no file has, where the shape is not known."""
    if shape is None:
        return -1
    return _NPY_HEADER_BYTES + count * int(np.prod(list(shape))) * np.dtype(dtype).itemsize


def _list_folder(uri: str) -> list[storage.Entry]:
    return storage.list_files(uri) if storage.has_content(uri) else []
