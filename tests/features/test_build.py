import hashlib
import io
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.factories import make_files
from tests.features.data import make_digests, make_frozen, plan_views
from tlray.errors import StoppedError
from tlray.features import build
from tlray.features import cache as cache_module
from tlray.features.build import _IDENTITY, NO_WORK, Done, ShardBuilder, _dump_array, _read_work
from tlray.features.cache import Work, plan_cache
from tlray.images.augment import Augmentation, make_keys
from tlray.images.decode import decode


def make_builder(cache, run, *, works):
    """Return a builder whose graph is `run`, without TensorFlow."""
    builder = object.__new__(ShardBuilder)
    builder._cache, builder._works, builder._uris = cache, works, []
    builder._run, builder._on_gpu, builder._ready = run, False, 5.0
    return builder


def load(cache, role, kind, view, shard):
    features = cache.sets[role]
    return np.load(Path(features.uri, features.shards[shard].name_file(kind, view)))


def test_an_array_is_stored_so_that_rows_are_read_by_offset():
    values = np.arange(12, dtype=np.float16).reshape(3, 4).T
    data = _dump_array(values)
    assert data[128:] == np.ascontiguousarray(values).tobytes()
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), values)


def test_a_shard_is_computed_by_view_and_stored_by_kind(tmp_path):
    cache = plan_views(tmp_path, 3, kinds=("pooled", "activations"), train=21)
    batches = []

    def run(pixels, places, transforms):
        batches.append(len(places))
        assert (places.dtype, transforms.shape) == (np.int32, (len(places), 8))
        pooled = np.stack([pixels[places, 0, 0, 0].astype(np.float32), transforms[:, 2]], axis=1)
        return {"pooled": pooled, "activations": -pooled}

    pixels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * 10
    work = Work("train", 2, {0: ("pooled",), 1: ("activations",), 2: ("pooled", "activations")})
    builder = make_builder(cache, run, works=[None, work])
    done = builder.build(1, pixels)
    assert (done, batches) == (Done(15, 5.0), [5, 5, 5])
    features = cache.sets["train"]
    assert features.shards[2].rows.tolist() == [16, 17, 18, 19, 20]
    keys = make_keys(make_digests([16, 17, 18, 19, 20]))
    for view, kind, sign in ((0, "pooled", 1), (1, "activations", -1), (2, "pooled", 1), (2, "activations", -1)):
        values = load(cache, "train", kind, view, 2) * sign
        assert values[:, 0].tolist() == [0, 10, 20, 30, 40]
        np.testing.assert_array_equal(values[:, 1], features.augmentation.draw(keys, view, 48)[:, 2])
    assert not Path(features.uri, features.shards[2].name_file("activations", 0)).exists()


def test_a_view_is_stored_while_the_next_one_is_computed_and_no_further(tmp_path, monkeypatch):
    cache = plan_views(tmp_path, 4, train=8)
    events, computed = [], [threading.Event() for _ in range(4)]
    put = build.storage.put

    def store(uri, data):
        if "view-" in uri:
            view = int(uri.partition("view-")[2][:3])
            if view < 3:  # the next view is computed before this one is stored
                assert computed[view + 1].wait(60)
            events.append(f"stored {view}")
        put(uri, data)

    def run(pixels, places, transforms):
        view = sum(event.startswith("computed") for event in events)
        events.append(f"computed {view}")
        computed[view].set()
        return {"pooled": np.ones((len(places), 3), np.float32)}

    monkeypatch.setattr(build.storage, "put", store)
    builder = make_builder(cache, run, works=[Work("train", 0, dict.fromkeys(range(4), ("pooled",)))])
    builder.build(0, np.zeros((8, 1, 1, 3), np.uint8))
    assert events[:2] == ["computed 0", "computed 1"]
    for view in range(2, 4):
        assert events.index(f"computed {view}") > events.index(f"stored {view - 2}")
    assert sorted(event for event in events if event.startswith("stored")) == [f"stored {view}" for view in range(4)]


def test_images_run_in_small_batches_and_validation_images_unchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_choose_rows_per_shard", lambda _: 40)
    cache = plan_views(tmp_path, 1, train=1, val=40)
    batches = []

    def run(pixels, places, transforms):
        batches.append(places.tolist())
        assert (transforms == _IDENTITY).all()
        return {"pooled": places[:, None].astype(np.float32)}

    builder = make_builder(cache, run, works=[Work("val", 0, {0: ("pooled",)})])
    builder.build(0, np.zeros((40, 1, 1, 3), np.uint8))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    assert load(cache, "val", "pooled", 0, 0)[:, 0].tolist() == list(range(40))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_stop_the_build(tmp_path, value):
    cache = plan_views(tmp_path, 1, train=8)

    def run(pixels, places, transforms):
        return {"pooled": np.where(places[:, None] == 3, value, 1.0).astype(np.float16)}

    builder = make_builder(cache, run, works=[Work("train", 0, {0: ("pooled",)})])
    with pytest.raises(StoppedError, match="numbers that are not finite in float16; give --precision float32"):
        builder.build(0, np.zeros((8, 1, 1, 3), np.uint8))
    assert not Path(cache.uri).exists()


def test_without_work_an_engine_only_opens_the_base():
    assert make_builder(None, None, works=[]).build(NO_WORK) == Done(0, 5.0)


def test_a_shard_is_read_by_its_rows(tmp_path, write_digits):
    paths = sorted(str(path) for path in write_digits(tmp_path / "digits", 2, 5).rglob("*.png"))
    digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    needs, augmentation = {0: ("pooled",)}, Augmentation(10.0, 0.2, True, 0)
    rows = {"train": np.arange(10)}
    cache, _ = plan_cache(str(tmp_path / "cache"), make_frozen(), rows, digests, augmentation, needs)
    assert [len(shard.rows) for shard in cache.sets["train"].shards] == [8, 2]
    pixels = _read_work(cache, Work("train", 1, {}), make_files(paths))
    assert (pixels.shape, pixels.dtype) == ((2, 48, 48, 3), np.uint8)
    np.testing.assert_array_equal(pixels[1], decode(Path(paths[9]).read_bytes(), 48).pixels)
    end = r"put it back, or start again"
    Path(paths[9]).write_bytes(Path(paths[0]).read_bytes())
    with pytest.raises(StoppedError, match=rf"^.*\.png cannot be read any more \(CHANGED: .*\); {end}"):
        _read_work(cache, Work("train", 1, {}), make_files(paths))
    Path(paths[9]).unlink()
    with pytest.raises(StoppedError, match=rf"^.*\.png cannot be read any more \(NOT_FOUND: .*\); {end}"):
        _read_work(cache, Work("train", 1, {}), make_files(paths))
