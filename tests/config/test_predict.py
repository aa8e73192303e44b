import pytest

from tlray.cluster.resources import EngineBounds
from tlray.config import PlanConfig, PredictConfig, VerifyConfig
from tlray.errors import ConfigError


def make_predict(**options):
    return PredictConfig(**{"model": "bundle", "input": ("photos",), "output": "labels", **options})


def make_plan(**options):
    return PlanConfig(**{"input": ("photos",), "output": "labels", **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output": None},
        {"min_probability": "auto"},
        {"min_probability": "0"},
        {"min_probability": "1.0"},
        {"gpus_per_engine": 0.0},
        {"gpus_per_engine": 0.25},
        {"min_engines": 4, "max_engines": 4},
        {"retry_failed": ()},
        {"retry_failed": ("TIMEOUT", "BOMB")},
        {"update_from": "earlier"},
        {"allow": ("s3://", "s3://photos/2024", "/shared")},
        {"shard": "8/8"},
        {"sample": 1.0, "limit": 1},
    ],
)
def test_these_options_are_allowed(options):
    make_predict(**options).check()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": "s3://"}, "--model takes a local path or s3://bucket/prefix; got 's3://' without a bucket"),
        ({"input": ()}, "--input takes one or more of: a local path or s3://bucket/prefix; got nothing"),
        ({"input": ("photos", "")}, "--input takes a local path or s3://bucket/prefix; got an empty string"),
        ({"allow": ("http://x",)}, "--allow takes"),
        ({"address": "ray://head:10001"}, r"--address takes HOST:PORT .* for ray:// submit the command there"),
        ({"address": "http://head:8265"}, r"for http:// submit the command there: tlray submit"),
        ({"wait_for_resources": -1.0}, "--wait-for-resources takes 0 to"),
        ({"gpus_per_engine": 1.5}, "--gpus-per-engine takes 0 to 1; got 1.5"),
        ({"min_engines": 0}, "--min-engines takes 1 to"),
        ({"min_engines": 4, "max_engines": 2}, "--max-engines takes 4 to 100,000; got 2"),
        ({"top_k": -1}, "--top-k takes 0 to 1,000; got -1"),
        ({"batch_size": 0}, "--batch-size takes 1 to 4,096; got 0"),
        ({"rows_per_part": 0}, "--rows-per-part takes 1 to"),
        ({"max_failed": -1.0}, "--max-failed takes 0 to"),
        ({"min_probability": "1.1"}, "--min-probability takes auto or 0 to 1; got 1.1"),
        ({"min_probability": "often"}, "--min-probability takes auto or 0 to 1; got often"),
        ({"min_probability": "nan"}, "--min-probability takes auto or 0 to 1; got nan"),
        ({"retry_failed": ("TIMEOUT", "LATE")}, r"--retry-failed takes codes among NOT_FOUND .*; got LATE$"),
        ({"update_from": "labels"}, "--update-from takes an earlier output; got --output itself"),
        ({"limit": 0}, "--limit takes 1 to"),
        ({"sample": 0.0}, "--sample takes a share above 0, up to 1; got 0.0"),
        ({"shard": "0/4"}, "--shard takes I/N with I from 1 to N, such as 2/8; got '0/4'"),
        ({"shard": "5/4"}, "--shard takes"),
        ({"shard": "1/"}, "--shard takes"),
        ({"shard": "-1/4"}, "--shard takes"),
        ({"shard": "1/4/8"}, "--shard takes"),
    ],
)
def test_these_options_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        make_predict(**options).check()
    assert len(caught.value.faults) == 1


def test_a_shard_is_two_numbers():
    assert make_predict().resolved_shard == (1, 1)
    assert make_predict(shard="3/16").resolved_shard == (3, 16)


def test_the_options_on_engines_are_their_bounds():
    assert make_predict().engine_bounds == EngineBounds()
    options = {"gpus_per_engine": 0.5, "min_engines": 2, "max_engines": 8}
    assert make_predict(**options).engine_bounds == EngineBounds(0.5, 2, 8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"input": ()}, "--input takes one or more of"),
        ({"output": ""}, "--output takes"),
        ({"probe": 0, "model": "bundle"}, "--probe takes 1 to 4,096; got 0"),
        ({"probe": 8}, "--probe needs --model"),
        ({"price_per_hour": 1.0}, "--price-per-hour needs --probe"),
        ({"probe": 8, "model": "bundle", "price_per_hour": -1.0}, "--price-per-hour takes 0 to"),
        ({"batch_size": 4097}, "--batch-size takes 1 to 4,096; got 4097"),
        ({"max_bytes": 0}, "--max-bytes takes 1 to"),
    ],
)
def test_a_plan_is_checked(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_plan(**options).check()


def test_a_plan_needs_no_model_without_a_probe():
    make_plan().check()
    make_plan(probe=8, model="bundle", price_per_hour=0.0).check()


def test_an_output_to_verify_needs_an_address():
    VerifyConfig(output="s3://labels").check()
    with pytest.raises(ConfigError, match="--output takes"):
        VerifyConfig(output="gs://labels").check()
