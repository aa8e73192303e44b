"""Cached features: the inputs of each training phase, computed once and stored by image and view.

    CACHE/BACKBONE-FINGERPRINT/          one network, boundary, input size and precision
        frozen_base.json                 the contents of the fingerprint, and the shape of an image's features by kind
        tail.npz                         the base after the boundary; a worker need not build the rest
        plain/ or FINGERPRINT/           images as they are, or augmented views by one seed
            SHARD/images.npy             uint8 `[K, 32]`, the sha256 of each image's file
            SHARD/view-000/pooled.npy    float `[K, F]`, uncompressed: images are read by offset
            SHARD/view-000/activations.npy   float `[K, h, w, c]`

Shards are found by the images in them, whatever training stored them: one that has some images more, or splits them
otherwise, computes only what is new. A file appears whole or not at all, so an interrupted build resumes. Views are
stored one by one: a training that needs more or fewer of them uses those that exist. `build.build` computes what is
missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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

_Needs: TypeAlias = dict[int, tuple[Kind, ...]]
"""Kinds by view."""

FROZEN_BASE = "frozen_base.json"
TAIL = "tail.npz"
IMAGES = "images.npy"

PLAIN = "plain"
"""The role of the training images without augmentation, and the folder of all such features."""

_FINGERPRINT_DIGITS = 16
_MAX_ROWS_PER_SHARD = 256
_MIN_ROWS_PER_SHARD = 8
_SHARDS = 64
_NPY_HEADER_BYTES = 128  # what NumPy writes before the data of arrays like these
_DIGEST_BYTES = 32
_SHARD_INDEX = re.compile(rf"([0-9a-f]{{{_FINGERPRINT_DIGITS}}})/{re.escape(IMAGES)}", re.ASCII)


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
            "format": 2,
            "backbone": self.backbone,
            "boundary": self.boundary,
            "weights_sha256": self.weights_sha256,
            "weights_seed": None if self.weights_sha256 else self.weights_seed,
            "preprocessing": asdict(Preprocessing(self.image_size_px, entry.scale, entry.offset)),
            "precision": f"{self.precision.frozen}{rounding}",
            "dtype": self.precision.storage_dtype,
        }


@dataclass(frozen=True)
class Shard:
    """Images whose features are stored together.

    Attributes:
        name: folder, by the images' digests.
        digests: uint8 `[K, 32]`, sha256 of each image's file.
        rows: int64 `[K]`, row id of each image, -1 if this training has no such image.
    """

    name: str
    digests: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int64]

    @property
    def is_known(self) -> bool:
        """True if this training has all of its images."""
        return bool((self.rows >= 0).all())

    def name_file(self, kind: Kind, view: int) -> str:
        """Return the name of a file of features, below the folder of the set."""
        return f"{self.name}/view-{view:03d}/{kind}.npy"


@dataclass(frozen=True)
class FeatureSet:
    """The features of some images in a cache folder.

    Attributes:
        rows: int64 `[N]`, row ids, sorted.
        shards: where their features are, or will be.
        shard_numbers, places: int64 `[N]`, shard of each row, and position in it.
        needs: kinds by view.
        augmentation: augmentation of the views; None for unaugmented images, whose only view is 0.
    """

    uri: str
    rows: npt.NDArray[np.int64]
    shards: tuple[Shard, ...]
    shard_numbers: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    needs: dict[int, tuple[Kind, ...]]
    augmentation: Augmentation | None

    @property
    def num_images(self) -> int:
        """Number of different images."""
        return len(np.unique(self.shard_numbers * 2**32 + self.places))

    def read(self, kind: Kind, view: int, rows: npt.NDArray[np.int64], shape: tuple[int, ...], dtype: str) -> Features:
        """Read the features of some rows, `[len(rows), *shape]`, by offset.

        Raises:
            StoppedError: a file is gone or shorter than before.
        """
        batch = np.empty((len(rows), *shape), dtype)
        row_bytes = batch[0].nbytes if len(rows) else 0
        found = np.searchsorted(self.rows, rows)
        uris = [
            storage.join(self.uri, self.shards[number].name_file(kind, view)) for number in self.shard_numbers[found]
        ]
        starts = (_NPY_HEADER_BYTES + self.places[found] * row_bytes).tolist()
        requests = [(uri, start, row_bytes) for uri, start in zip(uris, starts, strict=True)]
        for index, data in enumerate(storage.get_ranges(requests)):
            if isinstance(data, FetchError) or len(data) != row_bytes:
                raise StoppedError(f"the feature cache {self.uri} changed while it was read; start again")
            batch[index] = np.frombuffer(data, dtype).reshape(shape)
        return batch


@dataclass(frozen=True)
class Cache:
    """All features of one training, in the folder of its frozen base.

    Attributes:
        sets: by role: "train" (augmented), "plain" (the training images as they are), "val" and "test".
    """

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
) -> tuple[Cache, Missing]:
    """Return the places of a training's features, shards that hold them and new ones, and what is missing.

    Args:
        root: `--cache-dir`.
        roles: row ids of "train", "plain", "val" and "test".
        digests: sha256 of every row's encoded image.
        needs: kinds by view of the training images; the others have one view with every kind of any phase.
    """
    uri = storage.join(root, f"{frozen.backbone}-{hash_json(frozen.describe())[:_FINGERPRINT_DIGITS]}")
    plain = tuple(kind for kind in frozen.kinds if any(kind in kinds for kinds in needs.values()))
    stored = _StoredFiles(uri, frozen)
    sets = {}
    for role, rows in roles.items():
        if len(rows) == 0:
            continue
        augmented = augmentation if role == "train" else None
        folder = hash_json(vars(augmented))[:_FINGERPRINT_DIGITS] if augmented else PLAIN
        needed = dict(needs) if augmented else {0: plain}
        sets[role] = _plan_set(stored, folder, np.sort(rows), digests, needed, augmented)
    cache = Cache(uri, frozen, sets)
    return cache, _compare(cache, stored)


class _StoredFiles:
    """The files of a frozen base's folder, listed once."""

    def __init__(self, uri: str, frozen: FrozenBase) -> None:
        self.uri = uri
        self._sizes = {entry.name: entry.size for entry in storage.list_files(uri)} if storage.has_content(uri) else {}
        self.shapes = Cache(uri, frozen, {}).read_shapes() if FROZEN_BASE in self._sizes else {}
        self.has_tail = TAIL in self._sizes
        self._dtype = frozen.precision.storage_dtype

    def list_shards(self, folder: str) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
        """Yield the name and the images' digests of each shard in a folder; damaged indices are passed over."""
        found = (_SHARD_INDEX.fullmatch(name.removeprefix(f"{folder}/")) for name in sorted(self._sizes))
        names = [match[1] for match in found if match and f"{folder}/{match[0]}" in self._sizes]
        indices = storage.get_many([storage.join(self.uri, folder, name, IMAGES) for name in names])
        for name, data in zip(names, indices, strict=True):
            digests = None if isinstance(data, FetchError) else _parse_digests(data)
            if digests is not None and _name_shard(digests) == name:
                yield name, digests

    def list_lacking(self, folder: str, shard: Shard, needs: Mapping[int, tuple[Kind, ...]]) -> _Needs:
        """Return the kinds by view that are missing; a file of the wrong size counts as missing."""
        lacking = {
            view: tuple(
                kind
                for kind in kinds
                if self._sizes.get(f"{folder}/{shard.name_file(kind, view)}")
                != _measure_shard(self.shapes.get(kind), len(shard.rows), self._dtype)
            )
            for view, kinds in needs.items()
        }
        return {view: kinds for view, kinds in lacking.items() if kinds}


def _plan_set(
    stored: _StoredFiles,
    folder: str,
    rows: npt.NDArray[np.int64],
    digests: Sequence[str],
    needs: dict[int, tuple[Kind, ...]],
    augmentation: Augmentation | None,
) -> FeatureSet:
    """Find each image in a stored shard that is whole or can be completed, and put the others into new ones."""
    row_of = {bytes.fromhex(digests[row]): int(row) for row in rows[::-1]}  # the first of equal images
    place_of: dict[bytes, tuple[int, int]] = {}
    shards: list[Shard] = []

    def add(shard: Shard, members: Sequence[bytes]) -> None:
        for place, member in enumerate(members):
            if shard.rows[place] >= 0:
                place_of.setdefault(member, (len(shards), place))
        shards.append(shard)

    for name, held in stored.list_shards(folder):
        members = [digest.tobytes() for digest in held]
        if all(member in place_of or member not in row_of for member in members):
            continue
        shard = Shard(name, held, np.array([row_of.get(member, -1) for member in members], np.int64))
        if shard.is_known or not stored.list_lacking(folder, shard, needs):
            add(shard, members)
    new = [member for member in reversed(row_of) if member not in place_of]
    size = _choose_rows_per_shard(len(new))
    for start in range(0, len(new), size):
        members = new[start : start + size]
        held = np.frombuffer(b"".join(members), np.uint8).reshape(-1, _DIGEST_BYTES)
        add(Shard(_name_shard(held), held, np.array([row_of[member] for member in members], np.int64)), members)
    found = np.array([place_of[bytes.fromhex(digests[row])] for row in rows], np.int64).reshape(-1, 2)
    uri = storage.join(stored.uri, folder)
    return FeatureSet(uri, rows, tuple(shards), found[:, 0], found[:, 1], needs, augmentation)


def _name_shard(digests: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(digests.tobytes()).hexdigest()[:_FINGERPRINT_DIGITS]


def _parse_digests(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Return the digests of a shard's index; None if it is damaged."""
    count, rest = divmod(len(data) - _NPY_HEADER_BYTES, _DIGEST_BYTES)
    if count <= 0 or rest:
        return None
    return np.frombuffer(data, np.uint8, offset=_NPY_HEADER_BYTES).reshape(count, _DIGEST_BYTES)


def find_missing(cache: Cache) -> Missing:
    """Compare a plan with the files that the folder holds now; a file of the wrong size counts as missing.

    Raises:
        StoppedError: a shard with images of other trainings is no longer whole.
    """
    return _compare(cache, _StoredFiles(cache.uri, cache.frozen))


def _compare(cache: Cache, stored: _StoredFiles) -> Missing:
    works = []
    images = total = 0
    for role, feature_set in cache.sets.items():
        folder = feature_set.uri.removeprefix(f"{cache.uri}/")
        total += len(feature_set.needs) * feature_set.num_images
        for number, shard in enumerate(feature_set.shards):
            lacking = stored.list_lacking(folder, shard, feature_set.needs)
            if lacking and not shard.is_known:
                raise StoppedError(f"the feature cache {cache.uri} changes meanwhile; run the same command again")
            if lacking:
                works.append(Work(role, number, lacking))
                images += len(lacking) * len(shard.rows)
    has_base = bool(stored.shapes) and (stored.has_tail or cache.frozen.boundary == INPUT)
    return Missing(works, not has_base, images, total)


def estimate_bytes(cache: Cache) -> int:
    """Estimate the size of a training's features in bytes."""
    entry = BACKBONES[cache.frozen.backbone]
    bytes_each = np.dtype(cache.frozen.precision.storage_dtype).itemsize
    each = {
        "pooled": entry.num_features * bytes_each,
        "activations": entry.estimate_activation_bytes(cache.frozen.boundary, cache.frozen.image_size_px, bytes_each),
    }
    return sum(
        feature_set.num_images * sum(each[kind] for kinds in feature_set.needs.values() for kind in kinds)
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


def _choose_rows_per_shard(num_rows: int) -> int:
    """Return a size small enough to share the work evenly, large enough to keep files few."""
    return min(_MAX_ROWS_PER_SHARD, max(_MIN_ROWS_PER_SHARD, num_rows // _SHARDS))


def _measure_shard(shape: Iterable[int] | None, count: int, dtype: str) -> int:
    """Return the bytes of a whole file; -1 if the shape is unknown."""
    if shape is None:
        return -1
    return _NPY_HEADER_BYTES + count * int(np.prod(list(shape))) * np.dtype(dtype).itemsize
