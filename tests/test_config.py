import pytest

from tlray.config import PredictConfig, TrainConfig, describe
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
