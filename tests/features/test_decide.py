"""Whether the cache is worth it, which views it holds, and reading rows out of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from tlray import storage
from tlray.config import TrainConfig
from tlray.features.build import _dump_array
from tlray.features.cache import FROZEN_BASE, TAIL, FeatureSet, FrozenBase, find_missing, plan_cache
from tlray.features.decide import Passes, decide, list_needs
from tlray.images.augment import Augmentation
from tlray.images.limits import Limits
from tlray.model.precision import Precision, choose_precision


def configure(**options):
    return TrainConfig(data="data", output="output", **options)


def test_views_are_taken_in_turn_over_both_phases():
    both = ("activations", "pooled")
    assert list_needs(configure()) == dict.fromkeys(range(5), both)
    needs = list_needs(configure(head_epochs=1, finetune_epochs=2, views=3))
    assert needs == {0: ("pooled",), 1: ("activations",), 2: ("activations",)}
    assert list_needs(configure(head_epochs=2, finetune_epochs=0)) == {0: ("pooled",), 1: ("pooled",)}
    assert list_needs(configure(head_epochs=0, finetune_epochs=3, finetune_from="input")) == {}
    assert list_needs(configure(head_epochs=1, finetune_epochs=3, finetune_from="input")) == {0: ("pooled",)}
    early = list_needs(configure(head_epochs=2, finetune_epochs=2, views=4, early_stopping=1))
    assert "activations" in early[1]  # phase 1 may end after its first epoch


def test_it_is_used_where_it_saves_passes_and_fits():
    assert decide(Passes(1000.0, 500), 10**9, 10**10).use
    assert decide(Passes(1000.0, 0), 0, None).use
    assert not decide(Passes(1000.0, 950), 10**9, 10**10).use
    full = decide(Passes(1000.0, 500), 6 * 10**9, 10**10)
    assert not full.use
    assert full.reason == "it would take 6.0 GB of the 10.0 GB that are free"


def test_views_that_another_training_has_stored_are_used(tmp_path):
    """Whatever the number of views, view v of a row is the same."""
    few, many = plan_views(tmp_path, 2), plan_views(tmp_path, 5)
    assert find_missing(many).images == 100
    store(few)
    assert find_missing(few).is_empty
    missing = find_missing(many)
    assert {view for work in missing.works for view in work.needs} == {2, 3, 4}
    assert (missing.images, missing.total_images) == (60, 100)
    store(many)
    assert find_missing(many).is_empty
    assert find_missing(few).is_empty


def test_features_of_another_prefix_or_size_count_as_missing(tmp_path):
    cache = plan_views(tmp_path, 1)
    store(cache)
    path = Path(cache.sets["train"].uri, cache.sets["train"].name_shard("pooled", 0, 0))
    path.write_bytes(path.read_bytes()[:-1])
    assert find_missing(cache).images == 8
    described = json.loads(Path(cache.uri, FROZEN_BASE).read_text())
    Path(cache.uri, FROZEN_BASE).write_text(json.dumps({**described, "weights_sha256": "other"}))
    assert find_missing(cache).images == 20


def plan_views(root, num_views):
    frozen = FrozenBase("mobilenet_v2", 48, "block_12_add", None, "w", 0, Precision("float32", "float32"), Limits())
    rows = {"train": np.arange(20), "val": np.arange(0), "test": np.arange(0)}
    digests = [f"{row:064x}" for row in range(20)]
    needs = dict.fromkeys(range(num_views), ("pooled",))
    return plan_cache(str(root), frozen, rows, digests, Augmentation(10.0, 0.2, True, 0), needs)


def store(cache):
    """What a build would: files of the right size."""
    shapes = {"pooled": [3], "activations": [1, 1, 2]}
    storage.put(
        storage.join(cache.uri, FROZEN_BASE), json.dumps({**cache.frozen.describe(), "shapes": shapes}).encode()
    )
    storage.put(storage.join(cache.uri, TAIL), b"tail")
    features = cache.sets["train"]
    for view in features.needs:
        for shard in range(features.num_shards):
            values = np.zeros((len(features.slice_shard(shard)), 3), np.float32)
            name = features.name_shard("pooled", view, shard)
            storage.put(storage.join(features.uri, name), _dump_array(values))


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_rows_are_read_by_offset_in_any_order(tmp_path, shape):
    rows = np.array([3, 11, 5, 20, 8, 2, 9], np.int64)
    values = np.random.default_rng(0).normal(size=(7, *shape)).astype(np.float16)
    features = FeatureSet(str(tmp_path), rows, {1: ("pooled",)}, None, rows_per_shard=3)
    for shard in range(features.num_shards):
        part = values[shard * 3 : shard * 3 + 3]
        storage.put(storage.join(str(tmp_path), features.name_shard("pooled", 1, shard)), _dump_array(part))
    wanted = np.array([9, 3, 3, 20, 2], np.int64)
    expected = values[[6, 0, 0, 3, 5]]
    np.testing.assert_array_equal(features.read("pooled", 1, wanted, shape, "float16"), expected)


def test_precision_is_chosen_by_what_the_machine_has():
    assert choose_precision("auto", "float32", gpus=False).storage_dtype == "float32"
    cpu = choose_precision("auto", "bfloat16", gpus=False)
    assert (cpu.frozen, cpu.step, cpu.storage_dtype) == ("bfloat16", "float32", "float16")
    gpu = choose_precision("auto", "bfloat16", gpus=True)
    assert (gpu.frozen, gpu.step) == ("bfloat16", "bfloat16")
    assert choose_precision("float32", "bfloat16", gpus=True).step == "float32"
