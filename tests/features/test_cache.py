import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.features.data import make_digests, make_frozen, plan_views, store
from tlray import storage
from tlray.errors import StoppedError
from tlray.features.build import _dump_array
from tlray.features.cache import (
    FROZEN_BASE,
    IMAGES,
    TAIL,
    FeatureSet,
    Shard,
    _choose_rows_per_shard,
    estimate_bytes,
    find_missing,
    measure_free_bytes,
    plan_cache,
)
from tlray.images.augment import Augmentation
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
    Path(features.uri, features.shards[2].name_file("activations", 1)).unlink()
    missing = find_missing(cache)
    (work,) = missing.works
    assert (work.role, work.shard, work.needs) == ("train", 2, {1: ("activations",)})
    assert (missing.images, missing.total_images, missing.tail) == (4, 40, False)


def test_features_of_another_base_or_size_count_as_missing(tmp_path):
    cache = plan_views(tmp_path, 1)
    store(cache)
    path = Path(cache.sets["train"].uri, cache.sets["train"].shards[0].name_file("pooled", 0))
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
    held = [np.array([11, 3, 5]), np.array([20, 8]), np.array([2, -1, 9])]
    values = np.random.default_rng(0).normal(size=(21, *shape)).astype(np.float16)
    shards = tuple(Shard(f"{number}", np.zeros((len(rows), 32), np.uint8), rows) for number, rows in enumerate(held))
    for shard in shards:
        storage.put(storage.join(str(tmp_path), shard.name_file("pooled", 1)), _dump_array(values[shard.rows]))
    rows = np.array([2, 3, 5, 8, 9, 11, 20])
    numbers, places = np.array([2, 0, 0, 1, 2, 0, 1]), np.array([0, 1, 2, 1, 2, 0, 0])
    features = FeatureSet(str(tmp_path), rows, shards, numbers, places, {1: ("pooled",)}, None)
    assert features.num_images == 7
    wanted = np.array([9, 3, 3, 20, 2], np.int64)
    expected = values[wanted]
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
    change(Path(features.uri, features.shards[0].name_file("pooled", 0)))
    with pytest.raises(StoppedError, match="changed while it was read; start again"):
        cache.open().read("train", "pooled", 0, np.array([7]))


def plan_images(root, train, val=()):
    """Plan two views of images by name; their rows are their places."""
    names = [*train, *val]
    rows = {"train": np.arange(len(train)), "val": np.arange(len(train), len(names))}
    augmentation = Augmentation(10.0, 0.2, True, 0)
    return plan_cache(str(root), make_frozen(), rows, make_digests(names), augmentation, {0: BOTH, 1: BOTH})[0]


def read_pooled(cache, role, row):
    return cache.open().read(role, "pooled", 0, np.array([row]))[0, 0]


def test_only_images_that_are_new_are_computed(tmp_path):
    store(plan_images(tmp_path, range(40), range(100, 110)))
    assert find_missing(plan_images(tmp_path, range(40), range(100, 110))).is_empty
    assert find_missing(plan_images(tmp_path, range(39), range(100, 109))).is_empty
    more = plan_images(tmp_path, [777, *range(40)], range(100, 110))
    missing = find_missing(more)
    assert (missing.images, missing.total_images) == (2, 92)
    (work,) = missing.works
    assert more.sets["train"].shards[work.shard].rows.tolist() == [0]
    other_split = plan_images(tmp_path, [*range(35), *range(100, 103)], [*range(35, 40), *range(103, 110)])
    assert find_missing(other_split).images == 2 * 3 + 5  # in views or plain, as their side asks for
    store(more)
    assert find_missing(more).is_empty


def test_features_are_those_of_the_image_whatever_its_row(tmp_path):
    first = plan_images(tmp_path, range(40))
    store(first)
    assert read_pooled(first, "train", 7) == 7.0
    turned = plan_images(tmp_path, range(39, -1, -1))
    assert find_missing(turned).is_empty
    assert read_pooled(turned, "train", 39 - 7) == 7.0


def test_equal_images_are_stored_once(tmp_path):
    cache = plan_images(tmp_path, [1, 2, 1, 3, 2])
    missing = find_missing(cache)
    assert (missing.images, missing.total_images, cache.sets["train"].num_images) == (6, 6, 3)
    store(cache)
    assert [read_pooled(cache, "train", row) for row in range(5)] == [0.0, 1.0, 0.0, 3.0, 1.0]


def test_a_shard_that_lacks_a_view_is_completed_only_where_all_of_its_images_are_there(tmp_path):
    cache = plan_images(tmp_path, range(16))
    store(cache)
    for shard in cache.sets["train"].shards:
        Path(cache.sets["train"].uri, shard.name_file("pooled", 1)).unlink()
    assert find_missing(plan_images(tmp_path, range(16))).images == 16  # the lacking view of each
    fewer = plan_images(tmp_path, range(12))
    assert find_missing(fewer).images == 8 + 2 * 4  # of the shard with foreign images both views anew
    store(fewer)
    assert find_missing(fewer).is_empty


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", _dump_array(np.zeros((1, 32), np.float64))[:-1], b"PK" * 96])
def test_an_index_that_is_damaged_counts_for_nothing(tmp_path, damage):
    cache = plan_images(tmp_path, range(8))
    store(cache)
    features = cache.sets["train"]
    Path(features.uri, features.shards[0].name, IMAGES).write_bytes(damage)
    again = plan_images(tmp_path, range(8))
    assert find_missing(again).is_empty  # the new shard has the same name and files
    assert find_missing(plan_images(tmp_path, range(7))).images == 14


def test_an_index_of_other_images_than_its_name_says_is_not_believed(tmp_path):
    cache = plan_images(tmp_path, range(16))
    store(cache)
    features = cache.sets["train"]
    first, second = (Path(features.uri, shard.name, IMAGES) for shard in features.shards)
    first.write_bytes(second.read_bytes())
    assert find_missing(plan_images(tmp_path, range(7))).images == 14


def test_the_folder_is_one_of_the_base_whatever_its_seed(tmp_path):
    assert plan_views(tmp_path, 1).uri == plan_views(tmp_path, 1, frozen=replace(make_frozen(), weights_seed=5)).uri
