import importlib.util

import pytest

from tlray.config import TrainConfig, describe, describe_run, resolve
from tlray.errors import ConfigError


def make_train(**options):
    return TrainConfig(**{"data": "photos", "output": "bundle", **options})


def test_defaults_are_allowed():
    make_train().check()


def test_every_fault_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        make_train(batch_size=0, zoom=2.0, finetune_from="mixed99", data="gs://bucket", seed=-1).check()
    text = str(caught.value)
    assert len(caught.value.faults) == 5
    for flag in ("--batch-size", "--zoom", "--finetune-from", "--data", "--seed"):
        assert flag in text


def test_a_fault_says_what_was_allowed_and_what_came():
    with pytest.raises(ConfigError, match="--batch-size takes 1 to 65,536; got 0"):
        make_train(batch_size=0).check()


def test_an_image_size_below_the_backbones_least_is_refused():
    with pytest.raises(ConfigError, match="--image-size takes 75 to"):
        make_train(image_size=64).check()
    make_train(image_size=64, backbone="mobilenet_v2").check()


def test_no_epochs_at_all_are_refused():
    with pytest.raises(ConfigError, match="at least one"):
        make_train(head_epochs=0, finetune_epochs=0).check()
    make_train(head_epochs=0).check()
    make_train(finetune_epochs=0).check()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"early_stopping": 2, "val_fraction": 0}, "--early-stopping needs validation images"),
        ({"early_stopping": 0}, "--early-stopping takes 1 to"),
        ({"folds": 1}, "--folds takes 2 to 100; got 1"),
        ({"trials": 0}, "--trials takes 1 to 100; got 0"),
        ({"trials": 2, "folds": 0}, "--trials above 1 needs folds; got 2 and --folds 0"),
        ({"folds": 5, "val_fraction": 0.0}, "--folds, --val-data and --val-fraction: give one of them"),
        ({"folds": 5, "val_data": "held-out"}, "--folds, --val-data and --val-fraction: give one of them"),
        ({"folds": 5, "recipe": "seed"}, "--folds needs a solved linear head"),
        ({"folds": 5, "head_units": (64,)}, "--folds needs a solved linear head"),
        ({"folds": 5, "select": "accuracy"}, "--folds needs .*--select loss"),
        ({"folds": 5, "early_stopping": 3}, "--folds needs .*without .*--early-stopping"),
        ({"folds": 5, "lr_head": 1e-3}, "--folds needs .*without .*--lr-head"),
        ({"folds": 5, "finetune_from": "input", "head_epochs": 0}, "--folds needs a frozen part of the base"),
        ({"group_by_regex": "(burst"}, r"--group-by-regex '\(burst' is no regular expression"),
        ({"group_by_regex": "a", "group_column": "b"}, "--group-column and --group-by-regex: give one of them"),
        ({"label_smoothing": 1.0}, "--label-smoothing takes 0 to 0.99; got 1.0"),
        ({"dropout": -0.1}, "--dropout takes"),
        ({"clip_norm": -1.0}, "--clip-norm takes 0 to"),
        ({"mixup": -0.1}, "--mixup takes 0 to 100; got -0.1"),
        ({"tune": 2}, "--tune takes 6 to 300; got 2"),
        ({"views": 0}, "--views takes 1 to"),
        ({"max_failures": -2}, "--max-failures takes -1 to"),
        ({"max_failed": -0.1}, "--max-failed takes 0 to"),
        ({"lr_head": 0.0}, "--lr-head takes a number above 0; got 0.0"),
        ({"lr_finetune": float("inf")}, "--lr-finetune takes a number above 0; got inf"),
        ({"head_units": (64, 0)}, "--head-units takes 1 to 65,536; got 0"),
        ({"collective_timeout": float("nan")}, "--collective-timeout takes a number above 0; got nan"),
        ({"weights": "gs://bucket/w.h5"}, "--weights takes a local path or s3://"),
        ({"cache_dir": "gs://bucket"}, "--cache-dir takes a local path or s3://"),
        ({"cache": "on", "head_epochs": 0, "finetune_from": "input"}, "--cache on needs a frozen part of the base"),
        ({"cache": "on", "address": "ray://head:10001"}, "--cache on needs a --cache-dir"),
    ],
)
def test_options_are_checked(options, expected):
    with pytest.raises(ConfigError, match=expected):
        make_train(**options).check()


@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": 2, "val_fraction": 0, "val_data": "held-out"},
        {"cache": "on", "finetune_from": "input"},
        {"cache": "on", "address": "local"},
        {"cache": "on", "address": "head:6379", "cache_dir": "s3://cache"},
        {"weights": "none"},
        {"weights": "s3://weights/base.h5"},
        {"max_failures": -1},
    ],
)
def test_combinations_that_work_are_allowed(options):
    make_train(**options).check()


def test_a_tracking_server_needs_mlflow(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--mlflow-uri needs MLflow, which is not installed; pip install"):
        make_train(mlflow_uri="http://127.0.0.1:5000").check()
    make_train().check()


def test_defaults_follow_backbone_and_optimizer():
    seed = {
        "folds": 0,
        "val_fraction": 0.15,
        "image_size": 299,
        "finetune_from": "mixed8",
        "tune": "off",
        "head_units": (1024,),
        "head_epochs": 5,
        "lr_head": 1e-3,
        "finetune_epochs": 5,
        "lr_finetune": 1e-3,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "dropout": 0.0,
        "mixup": 0.0,
        "clip_norm": 0.0,
        "views": 5,
    }
    assert resolve_all(recipe="seed") == seed
    other = {"backbone": "mobilenet_v2", "head_optimizer": "sgd", "finetune_optimizer": "adam", "head_epochs": 3}
    changed = {
        "image_size": 224,
        "finetune_from": "block_12_add",
        "head_epochs": 3,
        "lr_head": 1e-2,
        "lr_finetune": 1e-5,
    }
    assert resolve_all(recipe="seed", **other) == seed | changed
    given = {name: value for name, value in seed.items() if name != "image_size"}
    assert resolve_all(recipe="tuned", **given) == seed


def resolve_all(**options):
    config = make_train(**options)
    return resolve(config, config.choose_recipe(), folds=0)


@pytest.mark.parametrize(
    ("options", "solvable", "expected"),
    [
        ({}, True, (True, 3, 1e-5)),
        ({}, False, (False, 5, 1e-3)),
        ({"tune": "off"}, True, (False, 5, 1e-3)),
        ({"tune": 12}, True, (True, 3, 1e-5)),
        ({"cache": "off"}, True, (False, 5, 1e-3)),
        ({"head_units": (64,)}, True, (False, 20, 1e-4)),
        ({"head_epochs": 7, "lr_head": 0.5}, True, (True, 7, 0.5)),
        ({"head_optimizer": "sgd"}, False, (False, 5, 1e-2)),
        ({"recipe": "seed"}, True, (False, 5, 1e-3)),
    ],
)
def test_a_linear_head_is_solved_where_its_features_are_cached(options, solvable, expected):
    recipe = make_train(**options).choose_recipe(solvable=solvable)
    assert (recipe.solved, recipe.head_epochs, recipe.lr_head) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (5, 0)),
        ({"folds": 3}, (3, 3)),
        ({"folds": 0}, (0, 0)),
        ({"val_fraction": 0.15}, (0, 0)),
        ({"val_fraction": 0.0}, (0, 0)),
        ({"val_data": "held-out"}, (0, 0)),
        ({"recipe": "seed"}, (0, 0)),
        ({"tune": "off"}, (0, 0)),
        ({"select": "macro_f1"}, (0, 0)),
        ({"lr_head": 1e-3}, (0, 0)),
        ({"finetune_from": "input"}, (0, 0)),
        ({"finetune_from": "input", "finetune_epochs": 0}, (5, 0)),
    ],
)
def test_a_small_set_is_divided_into_folds_where_heads_are_solved(options, expected):
    config = make_train(**options)
    config.check()
    recipe = config.choose_recipe()
    assert tuple(config.choose_folds(images, recipe) for images in (10_000, 10_001)) == expected


def test_the_validation_share_is_told_where_one_is_held_out():
    for folds, options, expected in ((0, {}, 0.15), (5, {}, None), (0, {"val_data": "b"}, None)):
        config = make_train(**options)
        resolved = resolve(config, config.choose_recipe(), folds)
        assert (resolved["folds"], resolved["val_fraction"]) == (folds, expected)


def test_there_are_no_more_views_than_epochs():
    assert resolve_all(head_epochs=2, finetune_epochs=1)["views"] == 3
    assert resolve_all(head_epochs=2, finetune_epochs=1, views=2)["views"] == 2
    assert resolve_all(views=100)["views"] == 15


def test_checkpoints_go_beside_the_output():
    assert make_train(output="s3://bundles/first/").resolved_storage_path == "s3://bundles/first-checkpoints"
    assert make_train(storage_path="elsewhere").resolved_storage_path == "elsewhere"


def test_the_division_of_work_and_the_target_do_not_keep_a_run_from_resuming():
    other = make_train(num_workers=4, batch_size=8, gpus_per_worker=1, target_precision=0.5)
    assert describe_run(other) == describe_run(make_train())
    assert describe_run(make_train(lr_head=0.1)) != describe_run(make_train())


def test_where_and_how_it_runs_does_not_decide_the_result():
    elsewhere = {"address": "head:6379", "wait_for_resources": 5.0, "verbose": True, "cache": "off", "max_failures": 0}
    assert describe(make_train(**elsewhere)) == describe(make_train())
    assert describe(make_train(max_cpus=2)) == describe(make_train())
    assert describe(make_train(seed=1)) != describe(make_train())


def test_data_may_be_one_or_several():
    assert make_train(data="a").data_roots == ("a",)
    assert (make_train(data=("a",)).data, make_train(data=["a", "b"]).data_roots) == ("a", ("a", "b"))
    make_train(data=("a", "s3://b/c")).check()
    with pytest.raises(ConfigError, match="--data takes a local path or s3://"):
        make_train(data=("a", "gs://b")).check()
    with pytest.raises(ConfigError, match="--data needs at least one"):
        make_train(data=()).check()
