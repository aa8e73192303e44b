import pytest

from tlray.config import PredictConfig, TrainConfig, describe, describe_run
from tlray.errors import ConfigError


def make_train(**options):
    return TrainConfig(**{"data": "photos", "output": "bundle", **options})


def test_defaults_are_allowed():
    make_train().check()
    PredictConfig(model="bundle", input=("photos",), output="labels").check()


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


def test_defaults_follow_backbone_and_optimizer():
    assert make_train().resolved_image_size == 299
    assert make_train().resolved_finetune_from == "mixed8"
    assert make_train(backbone="mobilenet_v2").resolved_image_size == 224
    assert make_train(finetune_optimizer="adam").resolved_lr_finetune < make_train().resolved_lr_finetune


def test_a_bucket_is_needed():
    with pytest.raises(ConfigError, match="without a bucket"):
        PredictConfig(model="s3://", input=("photos",)).check()


def test_where_it_runs_does_not_decide_the_result():
    assert describe(make_train(max_cpus=2, verbose=True)) == describe(make_train())
    assert describe(make_train(seed=1)) != describe(make_train())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"early_stopping": 2, "val_fraction": 0}, "--early-stopping needs validation images"),
        ({"label_smoothing": 1.0}, "--label-smoothing takes 0 to 0.99; got 1.0"),
        ({"dropout": -0.1}, "--dropout takes"),
        ({"clip_norm": 0.0}, "--clip-norm takes a number above 0"),
        ({"views": 0}, "--views takes 1 to"),
        ({"max_failures": -2}, "--max-failures takes -1 to"),
        ({"cache_dir": "gs://bucket"}, "--cache-dir takes a local path or s3://"),
        ({"cache": "on", "head_epochs": 0, "finetune_from": "input"}, "--cache on needs a part of the base"),
        ({"cache": "on", "address": "ray://head:10001"}, "--cache on needs a --cache-dir"),
    ],
)
def test_training_options_are_checked(options, expected):
    with pytest.raises(ConfigError, match=expected):
        make_train(**options).check()


def test_how_work_is_shared_out_does_not_keep_a_run_from_going_on():
    assert describe_run(make_train(num_workers=4, batch_size=8)) == describe_run(make_train())
    assert describe_run(make_train(lr_head=0.1)) != describe_run(make_train())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"address": "ray://head:10001"}, r"--address takes HOST:PORT .* for ray:// submit the command there"),
        ({"address": "http://head:8265"}, r"for http:// submit the command there: tlray submit"),
        ({"wait_for_resources": -1.0}, "--wait-for-resources takes 0 to"),
        ({"gpus_per_engine": 1.5}, "--gpus-per-engine takes 0 to 1; got 1.5"),
        ({"min_engines": 0}, "--min-engines takes 1 to"),
        ({"min_engines": 4, "max_engines": 2}, "--max-engines takes 4 to 100,000; got 2"),
    ],
)
def test_what_is_said_of_a_cluster_is_checked(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        PredictConfig(model="bundle", input=("photos",), output="labels", **options).check()


def test_where_and_how_much_of_a_cluster_decides_no_training():
    one, two = make_train(), make_train(address="head:6379", wait_for_resources=5.0)
    assert describe(one) == describe(two)
