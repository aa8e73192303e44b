import numpy as np
import pytest

from tests.features.data import make_digests, make_frozen, store
from tlray.cluster.resources import Cluster
from tlray.config import TrainConfig
from tlray.errors import StoppedError
from tlray.features.cache import PLAIN, plan_cache
from tlray.features.decide import Passes, choose_cache, count_online, decide, list_needs
from tlray.images.augment import Augmentation

LOCAL, JOINED = Cluster(2, 0, local=True), Cluster(64, 0, local=False, node_cpus=(32, 32))
ROWS = {"train": np.arange(20), "val": np.arange(20, 30), "test": np.arange(30, 35)}
DIGESTS = make_digests(range(35))
AUGMENTATION = Augmentation(10.0, 0.2, True, 0)


def configure(**options):
    return TrainConfig(data="data", output="output", **{"backbone": "mobilenet_v2", **options})


def prepare(config, cluster=LOCAL):
    return choose_cache(config, config.choose_recipe(), cluster, ROWS, DIGESTS, make_frozen(), AUGMENTATION)


def list_all(**options):
    config = configure(**options)
    return list_needs(config, config.choose_recipe())


def count_all(**options):
    config = configure(**options)
    return count_online(config, config.choose_recipe(), ROWS)


def test_views_are_taken_in_turn_over_both_phases():
    both = ("activations", "pooled")
    assert list_all(recipe="seed") == dict.fromkeys(range(5), both)
    needs = list_all(head_epochs=1, finetune_epochs=2, views=3)
    assert needs == {0: ("pooled",), 1: ("activations",), 2: ("activations",)}
    assert list_all(head_epochs=2, finetune_epochs=0) == {0: ("pooled",), 1: ("pooled",)}
    assert list_all(head_epochs=0, finetune_epochs=3, finetune_from="input") == {}
    assert list_all(head_epochs=1, finetune_epochs=3, finetune_from="input") == {0: ("pooled",)}
    early = list_all(head_epochs=2, finetune_epochs=2, views=4, early_stopping=1)
    assert "activations" in early[1]  # phase 1 may end after its first epoch


def test_passes_without_a_cache_are_counted_in_whole_bases():
    # 0.70 of MobileNetV2 lies up to its default boundary
    assert count_all(head_epochs=2, finetune_epochs=3) == pytest.approx((2 + 3 * 0.7) * 30 + 5 * 0.7, rel=0.01)
    assert count_all(head_epochs=2, finetune_epochs=3, finetune_from="input") == 60


def test_a_solved_head_is_worth_as_many_passes_again():
    assert not decide(Passes(1000.0, 1900), 1, None).use
    assert decide(Passes(1000.0, 1900), 1, None, least_saving=-1.0).use
    assert not decide(Passes(1000.0, 2100), 1, None, least_saving=-1.0).use


def test_it_is_used_where_it_saves_passes_and_fits():
    decision = decide(Passes(1000.0, 500), 10**9, 10**10)
    assert decision.use
    assert decision.reason == "500 passes through the base instead of 1,000"
    assert decide(Passes(1000.0, 0), 0, None).use
    assert decide(Passes(1000.0, 900), 5 * 10**9, 10**10).use
    few = decide(Passes(1000.0, 950), 10**9, 10**10)
    assert not few.use
    assert few.reason == "it would take 950 passes through the base, computing every epoch 1,000"
    full = decide(Passes(1000.0, 500), 6 * 10**9, 10**10)
    assert not full.use
    assert full.reason == "it would take 6.0 GB of the 10.0 GB that are free"
    assert not decide(Passes(0.0, 0), 0, None).use


@pytest.mark.parametrize(
    ("options", "cluster", "reason"),
    [
        ({"cache": "off"}, LOCAL, "as asked for"),
        ({"head_epochs": 0, "finetune_from": "input"}, LOCAL, "no phase leaves a part of the base frozen"),
        ({}, JOINED, "a cluster's machines share no folder that tlray knows of; give --cache-dir"),
    ],
)
def test_a_cache_that_is_not_possible_is_off_with_its_reason(options, cluster, reason, capsys):
    assert prepare(configure(**options), cluster) is None
    assert capsys.readouterr().out.rstrip().endswith(f"feature cache: off, {reason}")
    if options.get("cache") != "off":
        with pytest.raises(StoppedError) as caught:
            prepare(configure(**options, cache="on"), cluster)
        assert str(caught.value) == f"--cache on is not possible: {reason}"


def test_a_cache_that_saves_too_little_is_off(tmp_path, capsys):
    config = configure(head_epochs=1, finetune_epochs=0, tune="off", cache_dir=str(tmp_path))
    assert prepare(config) is None
    assert "feature cache: off, it would take 55 passes through the base" in capsys.readouterr().out


def test_phase_1_alone_has_a_cache_for_its_solved_head(tmp_path, capsys):
    config = configure(finetune_epochs=0, cache_dir=str(tmp_path))
    cache, missing = prepare(config)
    assert missing.images == 20 * (3 + 1) + 15
    assert "95 passes through the base instead of 154" in capsys.readouterr().out  # 5 epochs from a random head
    assert list_all(head_epochs=0, finetune_epochs=2)[0] == ("activations", "pooled")
    assert cache.sets["plain"].needs == {0: ("pooled",)}


def test_a_complete_cache_is_not_built_again(tmp_path, capsys):
    config = configure(head_epochs=2, finetune_epochs=2, views=2, cache_dir=str(tmp_path))
    roles = {**ROWS, PLAIN: ROWS["train"]}
    planned, before = plan_cache(
        str(tmp_path), make_frozen(), roles, DIGESTS, AUGMENTATION, list_needs(config, config.choose_recipe())
    )
    assert before.images == before.total_images == 75
    store(planned)
    cache, missing = prepare(config)
    assert cache.uri == planned.uri
    assert missing.is_empty
    printed = capsys.readouterr().out
    assert f"feature cache: on, 0 passes through the base instead of 106; about 643.2 kB in {planned.uri}" in printed
    assert "feature cache: all 75 images and views are cached from an earlier run" in printed
