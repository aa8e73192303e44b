import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.features.data import make_frozen, plan_views, store
from tlray import storage
from tlray.errors import StoppedError
from tlray.features.build import _dump_array
from tlray.features.cache import (
    FROZEN_BASE,
    TAIL,
    FeatureSet,
    _choose_rows_per_shard,
    estimate_bytes,
    find_missing,
    measure_free_bytes,
)
from tlray.model.backbones import INPUT

BOTH = ("pooled", "activations")


def test_views_that_another_training_has_stored_are_used(tmp_path):
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


def test_a_shard_lacks_only_the_files_that_are_missing(tmp_path):
    cache = plan_views(tmp_path, 2, kinds=BOTH)
    store(cache)
    features = cache.sets["train"]
    Path(features.uri, features.name_shard("activations", 1, 2)).unlink()
    missing = find_missing(cache)
    (work,) = missing.works
    assert (work.role, work.shard, work.needs) == ("train", 2, {1: ("activations",)})
    assert (missing.images, missing.total_images, missing.tail) == (4, 40, False)


def test_features_of_another_base_or_size_count_as_missing(tmp_path):
    cache = plan_views(tmp_path, 1)
    store(cache)
    path = Path(cache.sets["train"].uri, cache.sets["train"].name_shard("pooled", 0, 0))
    path.write_bytes(path.read_bytes()[:-1])
    assert find_missing(cache).images == 8
    described = json.loads(Path(cache.uri, FROZEN_BASE).read_text())
    Path(cache.uri, FROZEN_BASE).write_text(json.dumps({**described, "weights_sha256": "other"}))
    assert cache.read_shapes() == {}
    missing = find_missing(cache)
    assert (missing.images, missing.tail) == (20, True)


@pytest.mark.parametrize(("boundary", "lacks"), [("block_12_add", True), (INPUT, False)])
def test_the_tail_is_needed_where_phase_2_enters_at_a_boundary(tmp_path, boundary, lacks):
    cache = plan_views(tmp_path, 1, frozen=make_frozen(boundary))
    store(cache)
    Path(cache.uri, TAIL).unlink()
    missing = find_missing(cache)
    assert (missing.works, missing.tail, missing.is_empty) == ([], lacks, not lacks)


def test_the_kinds_follow_the_boundary():
    assert make_frozen(INPUT).kinds == ("pooled",)
    assert make_frozen("block_12_add").kinds == BOTH


def test_the_fingerprint_has_a_seed_only_for_random_weights(tmp_path):
    one, other = (plan_views(tmp_path, 1, frozen=make_frozen(seed=seed)) for seed in (0, 1))
    assert one.uri == other.uri
    one, other = (plan_views(tmp_path, 1, frozen=make_frozen(weights_sha256="", seed=seed)) for seed in (0, 1))
    assert one.uri != other.uri


def test_only_training_images_have_augmented_views(tmp_path):
    cache = plan_views(tmp_path, 3, kinds=BOTH, train=20, val=10)
    assert set(cache.sets) == {"train", "val"}
    assert cache.sets["train"].needs == dict.fromkeys(range(3), BOTH)
    assert cache.sets["val"].needs == {0: BOTH}
    assert cache.sets["val"].augmentation is None
    pooled = plan_views(tmp_path, 3, train=20, val=10)
    assert pooled.sets["val"].needs == {0: ("pooled",)}


@pytest.mark.parametrize(("rows", "expected"), [(1, 8), (512, 8), (640, 10), (16_384, 256), (10**6, 256)])
def test_shards_are_neither_many_nor_large(rows, expected):
    assert _choose_rows_per_shard(rows) == expected


@pytest.mark.parametrize(("precision", "bytes_each"), [("float32", 4), ("bfloat16", 2)])
def test_bytes_are_those_of_all_views(tmp_path, precision, bytes_each):
    cache = plan_views(tmp_path, 3, kinds=BOTH, frozen=make_frozen(precision=precision, size=224), val=10)
    one = (1280 + 14 * 14 * 96) * bytes_each
    assert estimate_bytes(cache) == (3 * 20 + 10) * one


def test_free_bytes_of_a_folder_to_be_made_are_those_of_its_disk(tmp_path):
    free = measure_free_bytes(str(tmp_path / "a" / "b"))
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.5)
    assert measure_free_bytes("s3://bucket/cache") is None


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_rows_are_read_by_offset_in_any_order(tmp_path, shape):
    rows = np.array([3, 11, 5, 20, 8, 2, 9], np.int64)
    values = np.random.default_rng(0).normal(size=(7, *shape)).astype(np.float16)
    features = FeatureSet(str(tmp_path), rows, {1: ("pooled",)}, None, rows_per_shard=3)
    assert features.num_shards == 3
    for shard in range(features.num_shards):
        part = values[shard * 3 : shard * 3 + 3]
        storage.put(storage.join(str(tmp_path), features.name_shard("pooled", 1, shard)), _dump_array(part))
    wanted = np.array([9, 3, 3, 20, 2], np.int64)
    expected = values[[6, 0, 0, 3, 5]]
    np.testing.assert_array_equal(features.read("pooled", 1, wanted, shape, "float16"), expected)
    assert features.read("pooled", 1, wanted[:0], shape, "float16").shape == (0, *shape)


@pytest.mark.parametrize(
    "shapes",
    [None, [], {}, {"pooled": [3]}, {"pooled": [3], "activations": [1, 0, 2]}, {"pooled": ["3"], "activations": [1]}],
)
def test_damaged_shapes_count_as_missing(tmp_path, shapes):
    cache = plan_views(tmp_path, 1)
    store(cache)
    record = {**cache.frozen.describe(), "shapes": shapes}
    Path(cache.uri, FROZEN_BASE).write_text(json.dumps(record if shapes is not None else []))
    assert cache.read_shapes() == {}
    assert find_missing(cache).tail


def write_tail(cache, layers):
    config = {"layers": [{"module": "keras.layers", "class_name": name, "config": {}} for name in layers]}
    stored = json.dumps({"config": config, "positions": {}}).encode()
    buffer = io.BytesIO()
    np.savez(buffer, _tail=np.frombuffer(stored, np.uint8))
    Path(cache.uri, TAIL).write_bytes(buffer.getvalue())


def test_a_tail_of_kerass_layers_is_loaded(tmp_path):
    cache = plan_views(tmp_path, 1)
    store(cache)
    write_tail(cache, ["Conv2D", "ReLU"])
    assert len(cache.open().load_tail().config["layers"]) == 2


def test_a_tail_that_holds_code_or_is_damaged_is_refused(tmp_path):
    cache = plan_views(tmp_path, 1)
    store(cache)
    with pytest.raises(StoppedError, match=r"tail\.npz is damaged"):
        cache.open().load_tail()
    write_tail(cache, ["Conv2D", "Lambda"])
    with pytest.raises(StoppedError, match=r"is refused: it holds keras\.layers\.Lambda"):
        cache.open().load_tail()


def test_an_open_cache_knows_shapes_and_dtype(tmp_path):
    cache = plan_views(tmp_path, 2, kinds=BOTH, train=20, val=10, frozen=make_frozen(precision="bfloat16"))
    store(cache)
    opened = cache.open()
    assert (opened.shapes, opened.dtype) == ({"pooled": (3,), "activations": (1, 1, 2)}, "float16")
    rows = np.array([25, 21])
    values = opened.read("val", "activations", 0, rows)
    assert (values.dtype, values.shape) == (np.float16, (2, 1, 1, 2))
    assert values[:, 0, 0, 0].tolist() == [25, 21]


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-5])])
def test_a_cache_that_changes_while_it_is_read_stops_the_training(tmp_path, change):
    cache = plan_views(tmp_path, 1)
    store(cache)
    features = cache.sets["train"]
    change(Path(features.uri, features.name_shard("pooled", 0, 0)))
    with pytest.raises(StoppedError, match="changed while it was read; start again"):
        cache.open().read("train", "pooled", 0, np.array([7]))


def test_a_set_depends_on_its_images_and_for_views_on_their_rows(tmp_path):
    """Validation images that come in other rows are the same features."""
    one, other = plan_views(tmp_path, 1, train=20, val=0), plan_views(tmp_path, 1, train=19, val=1)
    assert one.sets["train"].uri != other.sets["train"].uri
    assert one.uri == other.uri == plan_views(tmp_path, 1, frozen=replace(make_frozen(), weights_seed=5)).uri
