"""The frozen base at work: a Ray Data stage that computes what a feature cache lacks.

Engines decode a shard's images, make its views, run the base up to its end as one graph of constants, and store what
comes out. On GPUs separate processes decode ahead of them.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.cluster.resources import EngineResources
from tlray.errors import StoppedError
from tlray.features.cache import FROZEN_BASE, TAIL, Cache, FeatureSet, FrozenBase, Missing, Work
from tlray.model.backbones import BACKBONES
from tlray.model.tf_imports import import_keras

_RUN_IMAGES = 16
_RUN_IMAGES_GPU = 128
_IDENTITY = np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32)
"""A transform that leaves an image as it is, see `augment.warp`."""


class Done(NamedTuple):
    """A shard that has been stored.

    Attributes:
        images: that went through the frozen.
        ready: when its engine was ready to work, seconds since the epoch.
    """

    images: int
    ready: float


def build(
    cache: Cache, missing: Missing, uris: Any, resources: EngineResources, num_readers: int, reader_cpus: float
) -> Iterator[Done]:
    """Compute what is missing, as one Ray Data stage, and store it.

    Args:
        cache: where it goes.
        missing: what `find_missing` found.
        uris: Ray reference to every address, by row id.
        resources: engines that run the frozen.
        num_readers, reader_cpus: processes that read ahead of GPU engines; on CPUs each engine reads for itself.

    Yields:
        one `Done` a shard.

    Raises:
        StoppedError: an image that was good cannot be read any more, or the cluster failed.
        OutputError: the cache cannot be written.
    """
    import pyarrow as pa
    import ray
    import ray.data
    import ray.exceptions

    from tlray.cluster.connect import explain_failure

    # an empty list of works still builds the frozen base's own files
    indices = list(range(len(missing.works))) or [-1]
    dataset = ray.data.from_blocks([pa.table({"work": [index]}) for index in indices])
    shared = ray.put((cache, missing.works))
    if resources.num_gpus:
        dataset = dataset.map_batches(
            _ReadWork,
            fn_constructor_kwargs={"shared": [shared], "uris": [uris]},
            batch_size=1,
            num_cpus=reader_cpus,
            compute=ray.data.ActorPoolStrategy(size=num_readers),
        )
    dataset = dataset.map_batches(
        _RunWork,
        fn_constructor_kwargs={"shared": [shared], "uris": [uris], "num_threads": resources.num_threads},
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


class _ReadWork:
    """Reads the images of one shard after another."""

    def __init__(self, shared: list[Any], uris: list[Any]) -> None:
        import ray

        self._cache, self._works = ray.get(shared[0])
        self._uris = ray.get(uris[0])

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, Any]:
        index = int(batch["work"][0])
        if index < 0:
            return dict(batch)
        return {**batch, "pixels": _read_work(self._cache, self._works[index], self._uris)[None]}


class _RunWork:
    """One engine: makes the views of a shard's images, runs the frozen, stores what comes out."""

    def __init__(self, shared: list[Any], uris: list[Any], num_threads: int | None) -> None:
        import ray

        import_keras()
        from tlray.model.engine import allow_bfloat16, limit_threads

        self._cache, self._works = ray.get(shared[0])
        self._uris = ray.get(uris[0])
        frozen: FrozenBase = self._cache.frozen
        self._on_gpu = num_threads is None
        if num_threads is not None:
            limit_threads(num_threads)
            if frozen.precision.frozen == "bfloat16":
                allow_bfloat16()
        weights = ray.get(frozen.weights) if frozen.weights is not None else None
        self._run = _open_frozen_base(frozen, weights, self._cache.uri, mixed=self._on_gpu)
        self._ready = time.time()

    def __call__(self, batch: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
        index = int(batch["work"][0])
        if index < 0:
            return {"images": np.zeros(1, np.int64), "ready": np.array([self._ready])}
        work: Work = self._works[index]
        pixels = batch["pixels"][0] if "pixels" in batch else _read_work(self._cache, work, self._uris)
        feature_set: FeatureSet = self._cache.sets[work.role]
        rows = feature_set.slice_shard(work.shard)
        views = [(view, place) for view in work.needs for place in range(len(rows))]
        transforms = np.concatenate([self._draw(feature_set, rows, view) for view in work.needs])
        outputs: dict[str, list[npt.NDArray[Any]]] = {kind: [] for kind in self._cache.frozen.kinds}
        at_once = _RUN_IMAGES_GPU if self._on_gpu else _RUN_IMAGES
        for start in range(0, len(views), at_once):
            places = np.array([place for _, place in views[start : start + at_once]], np.int32)
            for kind, values in self._run(pixels, places, transforms[start : start + at_once]).items():
                outputs[kind].append(values)
        joined = {kind: np.concatenate(parts) for kind, parts in outputs.items()}
        for number, (view, kinds) in enumerate(work.needs.items()):
            for kind in kinds:
                values = joined[kind][number * len(rows) : (number + 1) * len(rows)]
                if not np.isfinite(values).all():
                    raise StoppedError(
                        f"the frozen base answers with numbers that are not finite as {values.dtype}; "
                        "give --precision float32"
                    )
                name = feature_set.name_shard(kind, view, work.shard)
                storage.put(storage.join(feature_set.uri, name), _dump_array(values))
        return {"images": np.array([len(views)]), "ready": np.array([self._ready])}

    def _draw(self, feature_set: FeatureSet, rows: npt.NDArray[np.int64], view: int) -> npt.NDArray[np.float32]:
        if feature_set.augmentation is None:
            return np.tile(_IDENTITY, (len(rows), 1))
        return feature_set.augmentation.draw(rows, view, self._cache.frozen.image_size_px)


def _open_frozen_base(frozen: FrozenBase, weights: bytes | None, uri: str, *, mixed: bool) -> Any:
    """The frozen as one graph that has run once; in float32 where a CPU refuses the bfloat16 that its flags promise."""
    import tensorflow as tf

    from tlray.model.engine import allow_bfloat16

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


def _freeze_base(frozen: FrozenBase, weights: bytes | None, uri: str, *, mixed: bool) -> Any:
    """Build the base, store what a worker needs of it, and fold the rest into one fast graph."""
    import keras
    import tensorflow as tf

    from tlray.images.augment import warp
    from tlray.model.engine import freeze
    from tlray.model.network import build_base, cut_tail

    entry = BACKBONES[frozen.backbone]
    base = build_base(frozen.backbone, frozen.image_size_px, weights=weights, seed=frozen.weights_seed)
    outputs = {"pooled": keras.layers.GlobalAveragePooling2D()(base.output)}
    if "activations" in frozen.kinds:
        outputs["activations"] = base.get_layer(frozen.boundary).output
        if not storage.exists(storage.join(uri, TAIL)):
            storage.put(storage.join(uri, TAIL), _dump_tail(cut_tail(base, frozen.boundary)))
    kinds = list(outputs)
    shapes = {kind: list(tensor.shape[1:]) for kind, tensor in outputs.items()}
    record = json.dumps({**frozen.describe(), "shapes": shapes}, indent=2).encode()
    if mixed and frozen.precision.frozen != "float32":  # a GPU's types come by Keras's policy, a CPU's by oneDNN
        keras.config.set_dtype_policy(f"mixed_{frozen.precision.frozen}")
        base = build_base(frozen.backbone, frozen.image_size_px, weights=weights, seed=frozen.weights_seed)
        outputs["pooled"] = keras.layers.GlobalAveragePooling2D()(base.output)
        if "activations" in outputs:
            outputs["activations"] = base.get_layer(frozen.boundary).output
    model = keras.Model(base.input, [outputs[kind] for kind in kinds])
    dtype = np.dtype(frozen.precision.storage_dtype)
    storage.put(storage.join(uri, FROZEN_BASE), record)
    side = frozen.image_size_px

    def call(pixels: Any, places: Any, transforms: Any) -> Any:
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
    ) -> dict[str, npt.NDArray[Any]]:
        values = graph(tf.constant(pixels), tf.constant(places), tf.constant(transforms))
        return {kind: value.numpy() for kind, value in zip(kinds, values, strict=True)}

    return run


def _read_work(cache: Cache, work: Work, uris: Sequence[str]) -> npt.NDArray[np.uint8]:
    from tlray.errors import OK
    from tlray.images.batch import read_images

    names = [uris[int(row)] for row in cache.sets[work.role].slice_shard(work.shard)]
    images = read_images(names, cache.frozen.image_size_px, cache.frozen.limits)
    for name, status, error in zip(names, images.status, images.errors, strict=True):
        if status != OK:
            raise StoppedError(
                f"{name} cannot be read any more ({status}: {error}); put it back, or start again without it"
            )
    return images.pixels


def _dump_array(values: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values))
    return buffer.getvalue()


def _dump_tail(tail: Any) -> bytes:
    described = json.dumps({"config": tail.config, "positions": tail.positions}).encode()
    buffer = io.BytesIO()
    np.savez(buffer, _tail=np.frombuffer(described, np.uint8), **tail.weights)
    return buffer.getvalue()
