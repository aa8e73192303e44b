"""A plan of cached features, and a stand-in for its build."""

import hashlib
import json

import numpy as np

from tlray import storage
from tlray.features.build import _dump_array
from tlray.features.cache import FROZEN_BASE, IMAGES, TAIL, Cache, FrozenBase, plan_cache
from tlray.images.augment import Augmentation
from tlray.images.limits import Limits
from tlray.model.precision import Precision

SHAPES = {"pooled": (3,), "activations": (1, 1, 2)}


def make_frozen(boundary="block_12_add", weights_sha256="w", seed=0, precision="float32", size=48) -> FrozenBase:
    both = Precision(precision, precision)
    return FrozenBase("mobilenet_v2", size, boundary, None, weights_sha256, seed, both, Limits())


def make_digests(names) -> list[str]:
    """Digests of images of these names."""
    return [hashlib.sha256(str(name).encode()).hexdigest() for name in names]


def plan_views(root, num_views, *, frozen=None, kinds=("pooled",), train=20, val=0) -> Cache:
    rows = {"train": np.arange(train), "val": np.arange(train, train + val), "test": np.arange(0)}
    digests = make_digests(range(train + val))
    needs = dict.fromkeys(range(num_views), kinds)
    return plan_cache(str(root), frozen or make_frozen(), rows, digests, Augmentation(10.0, 0.2, True, 0), needs)[0]


def store(cache: Cache) -> None:
    """Write the files of a plan; each value is the row id of its image."""
    record = {**cache.frozen.describe(), "shapes": SHAPES}
    storage.put(storage.join(cache.uri, FROZEN_BASE), json.dumps(record).encode())
    storage.put(storage.join(cache.uri, TAIL), b"tail")
    for features in cache.sets.values():
        for shard in features.shards:
            storage.put(storage.join(features.uri, shard.name, IMAGES), _dump_array(shard.digests))
            for view, kinds in features.needs.items():
                for kind in kinds:
                    values = np.ones((len(shard.rows), *SHAPES[kind])) * shard.rows.reshape(
                        -1, *[1] * len(SHAPES[kind])
                    )
                    data = _dump_array(values.astype(cache.frozen.precision.storage_dtype))
                    storage.put(storage.join(features.uri, shard.name_file(kind, view)), data)
