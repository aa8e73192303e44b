"""Cached features: the inputs of each training phase, computed once and stored by row and view.

    CACHE/BACKBONE-FINGERPRINT/            one network, boundary, input size and precision
        frozen_base.json                   the contents of the fingerprint, and the shape of a row by kind
        tail.npz                           the base after the boundary; a worker need not build the rest
        FINGERPRINT/                       one set of images (and its augmentation and seed)
            view-000/pooled-00000.npy      float `[rows, F]`, uncompressed: rows are read by offset
            view-000/activations-00000.npy float `[rows, h, w, c]`

A file appears whole or not at all, so an interrupted build resumes. Views are stored one by one: a training that needs
more or fewer of them uses those that exist. `build.build` computes what is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.errors import FetchError, StoppedError
from tlray.images.augment import Augmentation
from tlray.images.limits import Limits
from tlray.model.backbones import BACKBONES, INPUT
from tlray.model.manifest import Preprocessing, hash_json
from tlray.model.precision import Precision
from tlray.model.safety import list_foreign
from tlray.storage.records import Json, build_record

if TYPE_CHECKING:
    import ray

    from tlray.model.network import Tail

Kind = Literal["pooled", "activations"]

Features: TypeAlias = npt.NDArray[np.floating]
"""Pooled features `[N, F]` or activations `[N, h, w, c]`, float16 or float32."""

FROZEN_BASE = "frozen_base.json"
TAIL = "tail.npz"

_FINGERPRINT_DIGITS = 16
_MAX_ROWS_PER_SHARD = 256
_MIN_ROWS_PER_SHARD = 8
_SHARDS = 64
_NPY_HEADER_BYTES = 128  # what NumPy writes before the data of arrays like these


@dataclass(frozen=True)
class FrozenBase:
    """The base up to a boundary: everything that decides its output.

    Attributes:
        weights: Ray reference to the weights file; None for random weights.
        weights_sha256: sha256 of that file; "" for random weights.
        on_gpus: whether engines on GPUs compute it.
    """

    backbone: str
    image_size_px: int
    boundary: str
    weights: ray.ObjectRef[bytes] | None
    weights_sha256: str
    weights_seed: int
    precision: Precision
    limits: Limits
    on_gpus: bool = False

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of features: without activations if phase 2 trains the whole base."""
        return ("pooled",) if self.boundary == INPUT else ("pooled", "activations")

    def describe(self) -> dict[str, Json]:
        """Return the contents of its fingerprint."""
        entry = BACKBONES[self.backbone]
        # CPUs and GPUs agree in float32 alone: other types are rounded at other places
        rounding = " on GPUs" if self.on_gpus and self.precision.frozen != "float32" else ""
        return {
            "format": 1,
            "backbone": self.backbone,
            "boundary": self.boundary,
            "weights_sha256": self.weights_sha256,
            "weights_seed": None if self.weights_sha256 else self.weights_seed,
            "preprocessing": asdict(Preprocessing(self.image_size_px, entry.scale, entry.offset)),
            "precision": f"{self.precision.frozen}{rounding}",
            "dtype": self.precision.storage_dtype,
        }


@dataclass(frozen=True)
class FeatureSet:
    """The features of some images in a cache folder.

    Attributes:
        rows: int64 `[N]`, row ids in the order in which they are stored.
        needs: kinds by view.
        augmentation: augmentation of the views; None for unaugmented images, whose only view is 0.
    """

    uri: str
    rows: npt.NDArray[np.int64]
    needs: dict[int, tuple[Kind, ...]]
    augmentation: Augmentation | None
    rows_per_shard: int

    @property
    def num_shards(self) -> int:
        """Number of files of one kind and view."""
        return -(-len(self.rows) // self.rows_per_shard)

    def name_shard(self, kind: Kind, view: int, shard: int) -> str:
        """Return the name of a file below `uri`."""
        return f"view-{view:03d}/{kind}-{shard:05d}.npy"

    def slice_shard(self, shard: int) -> npt.NDArray[np.int64]:
        """Return the row ids of a shard."""
        start = shard * self.rows_per_shard
        return self.rows[start : start + self.rows_per_shard]

    def read(self, kind: Kind, view: int, rows: npt.NDArray[np.int64], shape: tuple[int, ...], dtype: str) -> Features:
        """Read the features of some rows, `[len(rows), *shape]`, by offset.

        Raises:
            StoppedError: a file is gone or shorter than before.
        """
        batch = np.empty((len(rows), *shape), dtype)
        row_bytes = batch[0].nbytes if len(rows) else 0
        shards, places = np.divmod(self._find_positions(rows), self.rows_per_shard)
        uris = [storage.join(self.uri, self.name_shard(kind, view, int(shard))) for shard in shards]
        starts = (_NPY_HEADER_BYTES + places * row_bytes).tolist()
        requests = [(uri, start, row_bytes) for uri, start in zip(uris, starts, strict=True)]
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
    """All features of one training, in the folder of its frozen base, by role: "train", "val", "test"."""

    uri: str
    frozen: FrozenBase
    sets: dict[str, FeatureSet]

    def open(self) -> OpenCache:
        """Open the cache after it was built."""
        return OpenCache(self, self.read_shapes(), self.frozen.precision.storage_dtype)

    def read_shapes(self) -> dict[str, tuple[int, ...]]:
        """Read the shape of a row by kind; empty if the folder is of another base, or damaged."""
        try:
            described = json.loads(storage.get(storage.join(self.uri, FROZEN_BASE)))
            shapes = build_record(dict[str, tuple[int, ...]], described.pop("shapes"))
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return {}
        whole = shapes.keys() >= {*self.frozen.kinds} and all(min(shape, default=0) > 0 for shape in shapes.values())
        return shapes if whole and described == self.frozen.describe() else {}


@dataclass(frozen=True)
class OpenCache:
    """A built cache, with the shape of a row by kind."""

    cache: Cache
    shapes: dict[str, tuple[int, ...]]
    dtype: str

    def read(self, role: str, kind: Kind, view: int, rows: npt.NDArray[np.int64]) -> Features:
        """Read the features of some rows of one role, `[len(rows), ...]`."""
        return self.cache.sets[role].read(kind, view, rows, self.shapes[kind], self.dtype)

    def load_tail(self) -> Tail:
        """Load the base after the boundary.

        Raises:
            StoppedError: the file is damaged, or its layers are not Keras's own.
        """
        from tlray.model.network import Tail

        address = storage.join(self.cache.uri, TAIL)
        try:
            with np.load(io.BytesIO(storage.get(address))) as stored:
                weights = {name: stored[name] for name in stored.files if name != "_tail"}
                tail = Tail(**json.loads(stored["_tail"].tobytes()), weights=weights)
            foreign = list_foreign(tail.config)
        except (ValueError, TypeError, LookupError, EOFError, RecursionError, zipfile.BadZipFile) as error:
            raise StoppedError(f"{address} is damaged ({error}); remove it, and run the same command again") from None
        if foreign:
            raise StoppedError(f"{address} is refused: it holds {foreign[0]}, which tlray does not write; remove it")
        return tail


@dataclass(frozen=True)
class Work:
    """Missing files of one shard of one role: kinds by view."""

    role: str
    shard: int
    needs: dict[int, tuple[Kind, ...]]


@dataclass(frozen=True)
class Missing:
    """The missing part of a cache.

    Attributes:
        tail: True if the files of the frozen base itself are missing.
        images, total_images: missing passes through the frozen base, and those for an empty cache.
    """

    works: list[Work]
    tail: bool
    images: int
    total_images: int

    @property
    def is_empty(self) -> bool:
        """True if the cache is complete."""
        return not self.works and not self.tail


def plan_cache(
    root: str,
    frozen: FrozenBase,
    roles: Mapping[str, npt.NDArray[np.int64]],
    digests: Sequence[str],
    augmentation: Augmentation,
    needs: Mapping[int, tuple[Kind, ...]],
) -> Cache:
    """Return the places of a training's features, built or not.

    Args:
        root: `--cache-dir`.
        roles: row ids of "train", "val" and "test".
        digests: sha256 of every row's encoded image.
        needs: kinds by view of the training images; the others have one view with every kind of any phase.
    """
    uri = storage.join(root, f"{frozen.backbone}-{hash_json(frozen.describe())[:_FINGERPRINT_DIGITS]}")
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
    """Compare a plan with the files in the folder; a file of the wrong size counts as missing."""
    files = storage.list_files(cache.uri) if storage.has_content(cache.uri) else []
    present = {entry.name: entry.size for entry in files}
    shapes = cache.read_shapes() if FROZEN_BASE in present else {}
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
    """Estimate the size of a training's features in bytes."""
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
    """Return the free bytes of a local folder's disk, also of a folder yet to be made; None for object storage."""
    if storage.is_s3(root):
        return None
    folder = Path(root)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _describe_set(
    rows: npt.NDArray[np.int64], digests: Sequence[str], augmentation: Augmentation | None
) -> dict[str, Json]:
    """Return the contents of a set's fingerprint: its images, and for augmented views also their row ids."""
    content = hashlib.sha256()
    for row in rows:
        content.update(digests[row].encode() + (f" {row}" if augmentation else "").encode() + b"\n")
    drawn = vars(augmentation) if augmentation else None
    return {"images": len(rows), "content_sha256": content.hexdigest(), "augmentation": drawn}


def _choose_rows_per_shard(num_rows: int) -> int:
    """Return a size small enough to share the work evenly, large enough to keep files few."""
    return min(_MAX_ROWS_PER_SHARD, max(_MIN_ROWS_PER_SHARD, num_rows // _SHARDS))


def _measure_shard(shape: Iterable[int] | None, count: int, dtype: str) -> int:
    """Return the bytes of a whole file; -1 if the shape is unknown."""
    if shape is None:
        return -1
    return _NPY_HEADER_BYTES + count * int(np.prod(list(shape))) * np.dtype(dtype).itemsize
