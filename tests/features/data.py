"""A plan of cached features, and a stand-in for its build."""

import json

import numpy as np

from tlray import storage
from tlray.features.build import _dump_array
from tlray.features.cache import FROZEN_BASE, TAIL, Cache, FrozenBase, plan_cache
from tlray.images.augment import Augmentation
from tlray.images.limits import Limits
from tlray.model.precision import Precision

SHAPES = {"pooled": (3,), "activations": (1, 1, 2)}


def make_frozen(boundary="block_12_add", weights_sha256="w", seed=0, precision="float32", size=48) -> FrozenBase:
    both = Precision(precision, precision)
    return FrozenBase("mobilenet_v2", size, boundary, None, weights_sha256, seed, both, Limits())


def plan_views(root, num_views, *, frozen=None, kinds=("pooled",), train=20, val=0) -> Cache:
    rows = {"train": np.arange(train), "val": np.arange(train, train + val), "test": np.arange(0)}
    digests = [f"{row:064x}" for row in range(train + val)]
    needs = dict.fromkeys(range(num_views), kinds)
    return plan_cache(str(root), frozen or make_frozen(), rows, digests, Augmentation(10.0, 0.2, True, 0), needs)


def store(cache: Cache) -> None:
    """Write the files of a plan; each value is its row id."""
    record = {**cache.frozen.describe(), "shapes": SHAPES}
    storage.put(storage.join(cache.uri, FROZEN_BASE), json.dumps(record).encode())
    storage.put(storage.join(cache.uri, TAIL), b"tail")
    for features in cache.sets.values():
        for view, kinds in features.needs.items():
            for kind in kinds:
                for shard in range(features.num_shards):
                    rows = features.slice_shard(shard)
                    values = np.ones((len(rows), *SHAPES[kind])) * rows.reshape(-1, *[1] * len(SHAPES[kind]))
                    data = _dump_array(values.astype(cache.frozen.precision.storage_dtype))
                    storage.put(storage.join(features.uri, features.name_shard(kind, view, shard)), data)
