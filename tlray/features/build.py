"""Compute what a feature cache lacks, as a Ray Data stage or in training workers that wait for their task.

A builder decodes a shard's images, makes its views, runs the base up to its end as one graph of constants, and stores
the features. For engines on GPUs, separate processes decode ahead.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.cluster.connect import explain_failure
from tlray.cluster.resources import IMAGES_AN_ENGINE, EngineResources
from tlray.errors import OK, Code, FetchError, StoppedError
from tlray.features.cache import (
    FROZEN_BASE,
    IMAGES,
    TAIL,
    Cache,
    Features,
    FeatureSet,
    FrozenBase,
    Missing,
    Shard,
    Work,
)
from tlray.images.augment import make_keys, warp
from tlray.images.batch import decode_images
from tlray.model.backbones import BACKBONES
from tlray.model.tf_imports import import_keras, show_booked_gpus
from tlray.sources.places import Places

if TYPE_CHECKING:
    import keras
    import ray
    import tensorflow as tf

    from tlray.model.network import Tail

    _Shared: TypeAlias = list[ray.ObjectRef[tuple[Cache, list[Work]]]]
    _Places: TypeAlias = ray.ObjectRef[Places]

_Block: TypeAlias = dict[str, npt.NDArray[np.generic]]
"""A batch of Ray Data: one row."""

_Run: TypeAlias = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int32], npt.NDArray[np.float32]], dict[str, Features]]
"""Computes features by kind from pixels `[N, S, S, 3]`, places among them `[M]` and transforms `[M, 8]`."""

NO_WORK = -1
_RUN_IMAGES = 16
_RUN_IMAGES_GPU = 128
_IDENTITY = np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32)
"""The transform that leaves an image unchanged, see `augment.warp`."""


class Done(NamedTuple):
    """A stored shard: its passes through the base, and the time its builder was ready, in seconds since the epoch."""

    images: int
    ready: float


def build(
    cache: Cache,
    missing: Missing,
    places: _Places,
    resources: EngineResources,
    num_readers: int,
    reader_cpus: float,
    *,
    allow_cpu: bool,
) -> Iterator[Done]:
    """Compute and store what is missing; yield one `Done` a shard.

    Args:
        places: Ray reference to the places of all images.
        num_readers, reader_cpus: processes that read for GPU engines; an engine on CPUs reads for itself.
        allow_cpu: compute on cores where TensorFlow does not see a booked GPU.

    Raises:
        StoppedError: an image cannot be read any more, or the cluster failed.
        OutputError: the cache cannot be written.
    """
    import pyarrow as pa
    import ray
    import ray.data
    import ray.exceptions

    indices = list_indices(missing)
    dataset = ray.data.from_blocks([pa.table({"work": [index]}) for index in indices])
    shared = ray.put((cache, missing.works))
    if resources.num_gpus:
        dataset = dataset.map_batches(
            _ReadWork,
            fn_constructor_kwargs={"shared": [shared], "places": [places], "options": storage.get_options()},
            batch_size=1,
            num_cpus=reader_cpus,
            compute=ray.data.ActorPoolStrategy(size=num_readers),
        )
    dataset = dataset.map_batches(
        _RunWork,
        fn_constructor_kwargs={
            "shared": [shared],
            "places": [places],
            "options": storage.get_options(),
            "num_threads": resources.num_threads,
            "allow_cpu": allow_cpu,
        },
        batch_size=1,
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus or None,
        compute=ray.data.ActorPoolStrategy(size=min(resources.actors, len(indices))),
    )
    try:
        for block in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            for images, ready in zip(block["images"], block["ready"], strict=True):
                yield Done(int(images), float(ready))
    except ray.exceptions.RayError as error:
        raise explain_failure(error, "computing the frozen base") from error


def list_indices(missing: Missing) -> list[int]:
    """Return the arguments of `ShardBuilder.build`: `NO_WORK` alone if only the base's own files are missing."""
    return list(range(len(missing.works))) or [NO_WORK]


def count_builders(missing: Missing) -> int:
    """Return the most processes for which opening the frozen base is worth it."""
    return math.ceil(missing.images / IMAGES_AN_ENGINE) or 1


class _ReadWork:
    """A Ray Data stage that reads the images of one shard after another."""

    def __init__(self, shared: _Shared, places: list[_Places], options: storage.S3Options) -> None:
        import ray

        storage.adopt(options)
        self._cache, self._works = ray.get(shared[0])
        self._places = ray.get(places[0])

    def __call__(self, batch: _Block) -> _Block:
        index = int(batch["work"][0])
        if index == NO_WORK:
            return batch
        return {**batch, "pixels": _read_work(self._cache, self._works[index], self._places)[None]}


class _RunWork:
    """A Ray Data stage that builds one shard after another: an engine."""

    def __init__(
        self,
        shared: _Shared,
        places: list[_Places],
        options: storage.S3Options,
        num_threads: int | None,
        allow_cpu: bool,
    ) -> None:
        import ray

        storage.adopt(options)
        booked = show_booked_gpus()
        import_keras()
        from tlray.model.tf_runtime import limit_threads, prepare_gpus

        prepare_gpus(booked, allow_cpu=allow_cpu)
        if num_threads is not None:
            limit_threads(num_threads)
        self._builder = ShardBuilder(*ray.get(shared[0]), ray.get(places[0]), on_gpu=num_threads is None)

    def __call__(self, batch: _Block) -> _Block:
        done = self._builder.build(int(batch["work"][0]), batch["pixels"][0] if "pixels" in batch else None)
        return {"images": np.array([done.images]), "ready": np.array([done.ready])}


class ShardBuilder:
    """Makes the views of a shard's images, runs the frozen base, and stores the features."""

    def __init__(self, cache: Cache, works: list[Work], places: Places, *, on_gpu: bool) -> None:
        """Build the frozen base, and store its own files."""
        import ray

        from tlray.model.tf_runtime import allow_bfloat16

        self._cache, self._works, self._places, self._on_gpu = cache, works, places, on_gpu
        frozen = cache.frozen
        if not on_gpu and frozen.precision.frozen == "bfloat16":
            allow_bfloat16()
        weights = ray.get(frozen.weights) if frozen.weights is not None else None
        self._run = _open_frozen_base(frozen, weights, cache.uri, mixed=on_gpu)
        self._ready = time.time()

    def close(self) -> None:
        """Leave Keras and TensorFlow as they were in this process."""
        import keras

        from tlray.model.tf_runtime import allow_bfloat16

        del self._run
        allow_bfloat16(allowed=False)
        keras.utils.clear_session()  # names of layers count on otherwise

    def build(self, index: int, pixels: npt.NDArray[np.uint8] | None = None) -> Done:
        """Compute and store one work of the list, see `list_indices`.

        Args:
            pixels: uint8 `[K, S, S, 3]` of the shard's images; read here by default.

        Raises:
            StoppedError: an image cannot be read any more, or a feature is not finite.
            OutputError: the cache cannot be written.
        """
        if index == NO_WORK:
            return Done(0, self._ready)
        work = self._works[index]
        if pixels is None:
            pixels = _read_work(self._cache, work, self._places)
        feature_set = self._cache.sets[work.role]
        shard = feature_set.shards[work.shard]
        count = len(shard.rows)
        places = np.arange(count, dtype=np.int32)
        # a view is stored while the next one is computed, so that two views of a shard are in memory at most
        with ThreadPoolExecutor(1) as pool:
            storing: Future[None] | None = None
            for view, kinds in work.needs.items():
                features = self._compute(pixels, places, self._draw(feature_set, shard, view))
                files: dict[str, npt.NDArray[np.generic]] = {
                    shard.name_file(kind, view): features[kind] for kind in kinds
                }
                if storing is None:
                    files = {f"{shard.name}/{IMAGES}": shard.digests, **files}
                else:
                    storing.result()
                storing = pool.submit(_store, feature_set.uri, files)
            if storing is not None:
                storing.result()
        return Done(count * len(work.needs), self._ready)

    def _draw(self, feature_set: FeatureSet, shard: Shard, view: int) -> npt.NDArray[np.float32]:
        if feature_set.augmentation is None:
            return np.tile(_IDENTITY, (len(shard.rows), 1))
        keys = make_keys([digest.tobytes().hex() for digest in shard.digests])
        return feature_set.augmentation.draw(keys, view, self._cache.frozen.image_size_px)

    def _compute(
        self, pixels: npt.NDArray[np.uint8], places: npt.NDArray[np.int32], transforms: npt.NDArray[np.float32]
    ) -> dict[str, Features]:
        at_once = _RUN_IMAGES_GPU if self._on_gpu else _RUN_IMAGES
        parts = [
            self._run(pixels, places[start : start + at_once], transforms[start : start + at_once])
            for start in range(0, len(places), at_once)
        ]
        features = {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
        for values in features.values():
            if not np.isfinite(values).all():
                raise StoppedError(
                    f"the frozen base gives numbers that are not finite in {values.dtype}; give --precision float32"
                )
        return features


def _store(uri: str, files: dict[str, npt.NDArray[np.generic]]) -> None:
    for name, values in files.items():
        storage.put(storage.join(uri, name), _dump_array(values))


def _open_frozen_base(frozen: FrozenBase, weights: bytes | None, uri: str, *, mixed: bool) -> _Run:
    """Return the frozen base after one run; in float32 if a CPU refuses the bfloat16 that its flags promise."""
    import tensorflow as tf

    from tlray.model.tf_runtime import allow_bfloat16

    run = _freeze_base(frozen, weights, uri, mixed=mixed)
    side = frozen.image_size_px
    black, first, unmoved = np.zeros((1, side, side, 3), np.uint8), np.zeros(1, np.int32), _IDENTITY[None]
    try:
        run(black, first, unmoved)
    except tf.errors.OpError:
        if mixed or frozen.precision.frozen != "bfloat16":
            raise
        allow_bfloat16(allowed=False)
        run = _freeze_base(frozen, weights, uri, mixed=mixed)
        run(black, first, unmoved)
    return run


def _freeze_base(frozen: FrozenBase, weights: bytes | None, uri: str, *, mixed: bool) -> _Run:
    """Build the base, store its shapes and its tail, and fold it into one graph."""
    import keras
    import tensorflow as tf

    from tlray.model.network import build_base, cut_tail
    from tlray.model.serving import freeze

    entry = BACKBONES[frozen.backbone]
    side = frozen.image_size_px
    base = build_base(frozen.backbone, side, weights=weights, seed=frozen.weights_seed)
    if "activations" in frozen.kinds and not storage.exists(storage.join(uri, TAIL)):
        storage.put(storage.join(uri, TAIL), _dump_tail(cut_tail(base, frozen.boundary)))
    outputs = _list_outputs(base, frozen)
    shapes = {kind: list(tensor.shape[1:]) for kind, tensor in outputs.items()}
    record = json.dumps({**frozen.describe(), "shapes": shapes}, indent=2).encode()
    if mixed and frozen.precision.frozen != "float32":  # a GPU's types come by Keras's policy, a CPU's by oneDNN
        keras.config.set_dtype_policy(f"mixed_{frozen.precision.frozen}")
        base = build_base(frozen.backbone, side, weights=weights, seed=frozen.weights_seed)
        outputs = _list_outputs(base, frozen)
    model = keras.Model(base.input, list(outputs.values()))
    dtype = np.dtype(frozen.precision.storage_dtype)
    storage.put(storage.join(uri, FROZEN_BASE), record)

    def call(pixels: tf.Tensor, places: tf.Tensor, transforms: tf.Tensor) -> list[tf.Tensor]:
        images = warp(tf.gather(pixels, places), transforms) * entry.scale + entry.offset
        return [tf.cast(value, dtype) for value in model(images, training=False)]

    graph = freeze(
        call,
        model.variables,
        tf.TensorSpec((None, side, side, 3), tf.uint8),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None, 8), tf.float32),
    )

    def run(
        pixels: npt.NDArray[np.uint8], places: npt.NDArray[np.int32], transforms: npt.NDArray[np.float32]
    ) -> dict[str, Features]:
        values = graph(tf.constant(pixels), tf.constant(places), tf.constant(transforms))
        return {kind: value.numpy() for kind, value in zip(outputs, values, strict=True)}

    return run


def _list_outputs(base: keras.Model, frozen: FrozenBase) -> dict[str, keras.KerasTensor]:
    import keras

    outputs = {"pooled": keras.layers.GlobalAveragePooling2D()(base.output)}
    if "activations" in frozen.kinds:
        outputs["activations"] = base.get_layer(frozen.boundary).output
    return outputs


def _read_work(cache: Cache, work: Work, places: Places) -> npt.NDArray[np.uint8]:
    shard, limits = cache.sets[work.role].shards[work.shard], cache.frozen.limits

    def iter_unchanged() -> Iterator[bytes | FetchError]:
        for data, digest in zip(places.fetch(shard.rows, limits.max_bytes), shard.digests, strict=True):
            changed = not isinstance(data, FetchError) and hashlib.sha256(data).digest() != digest.tobytes()
            yield FetchError(Code.CHANGED, "it is not what was inspected") if changed else data

    images = decode_images(iter_unchanged(), len(shard.rows), cache.frozen.image_size_px, limits)
    names = places.list_names(shard.rows)
    for name, status, error in zip(names, images.status, images.errors, strict=True):
        if status != OK:
            fault = f"{name} cannot be read any more ({status}: {error})"
            raise StoppedError(f"{fault}; put it back, or start again without it")
    return images.pixels


def _dump_array(values: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values))
    return buffer.getvalue()


def _dump_tail(tail: Tail) -> bytes:
    described = json.dumps({"config": tail.config, "positions": tail.positions}).encode()
    buffer = io.BytesIO()
    np.savez(buffer, _tail=np.frombuffer(described, np.uint8), **tail.weights)  # type: ignore[arg-type]
    return buffer.getvalue()
