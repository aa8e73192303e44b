import json
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import docstring_parser
import pytest
import tyro

from tlray import config as configs
from tlray.config import (
    DoctorConfig,
    PlanConfig,
    PredictConfig,
    TrainConfig,
    VerifyConfig,
    describe,
    list_path_options,
)
from tlray.config.shared import Faults, LimitsConfig, RunConfig, S3Config, arrange_help, check_limits, check_run
from tlray.errors import ConfigError
from tlray.images.limits import MAX_BYTES, MAX_PIXELS, PILLOW_MAX_PIXELS, Limits
from tlray.storage import S3Options

COMMANDS = [getattr(configs, name) for name in configs.__all__ if name.endswith("Config")]


def collect(check, *arguments):
    """The sentences that one check adds."""
    faults = Faults()
    getattr(faults, check)(*arguments)
    try:
        faults.report()
    except ConfigError as error:
        return list(error.faults)
    return []


def test_faults_are_raised_together_in_order():
    faults = Faults()
    faults.report()
    faults.add("one")
    faults.add("two")
    with pytest.raises(ConfigError) as caught:
        faults.report()
    assert caught.value.faults == ("one", "two")
    assert str(caught.value) == "one\ntwo"


@pytest.mark.parametrize(
    ("check", "value", "sentence"),
    [
        ("check_range", 1, None),
        ("check_range", 4096, None),
        ("check_range", 0, "--batch-size takes 1 to 4,096; got 0"),
        ("check_range", 4097, "--batch-size takes 1 to 4,096; got 4097"),
        ("check_range", float("nan"), "--batch-size takes 1 to 4,096; got nan"),
        ("check_positive", 1e-300, None),
        ("check_positive", 0.0, "--batch-size takes a number above 0; got 0.0"),
        ("check_positive", -1, "--batch-size takes a number above 0; got -1"),
        ("check_positive", float("inf"), "--batch-size takes a number above 0; got inf"),
        ("check_positive", float("nan"), "--batch-size takes a number above 0; got nan"),
        ("check_share", 1.0, None),
        ("check_share", 0.001, None),
        ("check_share", 0.0, "--batch-size takes a share above 0, up to 1; got 0.0"),
        ("check_share", 1.001, "--batch-size takes a share above 0, up to 1; got 1.001"),
        ("check_share", float("nan"), "--batch-size takes a share above 0, up to 1; got nan"),
    ],
)
def test_numbers_are_checked_at_their_bounds(check, value, sentence):
    bounds = (1, 4096) if check == "check_range" else ()
    assert collect(check, "batch_size", value, *bounds) == ([] if sentence is None else [sentence])


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (None, None),
        ("photos", None),
        ("/shared/photos", None),
        ("a:b", None),
        ("s3://bucket", None),
        ("s3://bucket/a b/%2F", None),
        ("", "an empty string"),
        (" \t", "an empty string"),
        ("s3://", "'s3://' without a bucket"),
        ("s3:///key", "'s3:///key' without a bucket"),
        ("S3://bucket", "the scheme 'S3://'"),
        ("https://user:secret@store/x", "the scheme 'https://'"),
    ],
)
def test_an_address_is_a_local_path_or_in_a_bucket(value, got):
    expected = [] if got is None else [f"--val-data takes a local path or s3://bucket/prefix; got {got}"]
    assert collect("check_uri", "val_data", value) == expected


@pytest.mark.parametrize(
    ("options", "sentences"),
    [
        ({}, []),
        ({"max_cpus": 4096}, []),
        ({"max_cpus": 4097}, ["--max-cpus takes 1 to 4,096; got 4097"]),
        (
            {"max_cpus": 2, "address": "head:6379"},
            ["--max-cpus limits a local run; it cannot be combined with --address"],
        ),
        ({"address": "auto"}, []),
        ({"wait_for_resources": 0.0}, []),
        ({"wait_for_resources": -1.0}, ["--wait-for-resources takes 0 to 10,000,000; got -1.0"]),
        (
            {"address": "http://head:8265"},
            [
                "--address takes HOST:PORT of a Ray cluster that this machine is a node of; for http:// submit the "
                "command there: tlray submit COMMAND --address ... -- OPTIONS"
            ],
        ),
    ],
)
def test_options_of_a_run_are_checked(options, sentences):
    faults = Faults()
    check_run(faults, RunConfig(**options))
    assert faults._sentences == sentences


def test_limits_of_decoding_are_checked():
    faults = Faults()
    check_limits(faults, LimitsConfig(max_bytes=1, max_pixels=PILLOW_MAX_PIXELS))
    assert faults._sentences == []
    check_limits(faults, LimitsConfig(max_bytes=0, max_pixels=PILLOW_MAX_PIXELS + 1))
    assert [sentence.split()[0] for sentence in faults._sentences] == ["--max-bytes", "--max-pixels"]


def test_limits_and_s3_options_are_passed_on():
    assert LimitsConfig().limits == Limits(MAX_BYTES, MAX_PIXELS)
    assert LimitsConfig(max_bytes=5, max_pixels=7).limits == Limits(5, 7)
    assert S3Config(no_sign_request=True, kms_key_id="key").s3_options == S3Options(True, False, "key")


# ---- records


LISTS = ("sidecars", "include", "exclude", "allow")


def test_a_description_leaves_out_where_and_how_a_job_runs():
    config = PredictConfig(model="bundle", input=("photos",), address="head:6379", verbose=True, kms_key_id="key")
    described = describe(config)
    assert described["model"] == "bundle"
    assert described["min_engines"] == 1
    assert not {"address", "verbose", "kms_key_id", "max_failed", "wait_for_resources", "config"} & set(described)
    assert json.loads(json.dumps(described)) == {**described, "input": ["photos"], **{name: [] for name in LISTS}}


# ---- paths


def tell(config):
    return [(path.option, path.uri, path.is_output) for path in list_path_options(config)]


def test_every_path_of_a_config_is_listed_with_its_option():
    config = TrainConfig(
        data="photos", output="bundle", test_data="s3://test", weights="base.h5", cache_dir="cache", storage_path="kept"
    )
    assert set(tell(config)) == {
        ("--data", "photos", False),
        ("--test-data", "s3://test", False),
        ("--weights", "base.h5", False),
        ("--output", "bundle", True),
        ("--cache-dir", "cache", True),
        ("--storage-path", "kept", True),
    }


def test_each_of_several_inputs_is_listed():
    config = PredictConfig(model="bundle", input=("a", "b"), update_from="earlier")
    assert set(tell(config)) == {
        ("--model", "bundle", False),
        ("--input", "a", False),
        ("--input", "b", False),
        ("--update-from", "earlier", False),
    }
    assert tell(PlanConfig(input=(), output="labels")) == [("--output", "labels", True)]
    assert tell(DoctorConfig()) == []


@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_names_of_weights_are_no_paths(weights):
    assert set(tell(TrainConfig(data="photos", output="bundle", weights=weights))) == {
        ("--data", "photos", False),
        ("--output", "bundle", True),
    }


def test_a_positional_argument_has_no_dashes():
    assert tell(VerifyConfig(output="labels")) == [("output", "labels", True)]


# ---- help


def test_required_options_come_first_then_a_commands_own_then_shared_ones():
    @arrange_help
    @dataclass(frozen=True, kw_only=True)
    class Shared:
        """Options of several commands."""

        late: int = 0
        needed: str

    @arrange_help
    @dataclass(frozen=True, kw_only=True)
    class Own(Shared):
        """Options of one command."""

        early: int = 0
        also_needed: str

    assert [field.name for field in fields(Own)] == ["needed", "also_needed", "early", "late"]
    assert Own(needed="a", also_needed="b", late=3) == Own(late=3, also_needed="b", needed="a")


def test_only_empty_defaults_are_hidden():
    @arrange_help
    @dataclass(frozen=True, kw_only=True)
    class Own:
        """Options."""

        nothing: "str | None" = None
        several: "tuple[str, ...]" = ()
        switch: "bool" = False
        told: "str | None" = "imagenet"
        flip: "bool" = True
        count: "int | None" = 3
        gpus: "Literal[0, 1] | None" = None

    hidden = {name for name, kind in Own.__annotations__.items() if not isinstance(kind, str)}
    assert hidden == {"nothing", "several", "switch", "gpus"}
    assert Own.__annotations__["nothing"] == Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_option_has_help_that_ends_with_a_full_stop(command):
    texts = {}
    for kind in command.__mro__[:-1]:
        texts |= {entry.arg_name: entry.description for entry in docstring_parser.parse_from_object(kind).params}
    assert {field.name: texts.get(field.name, "")[-1:] for field in fields(command)} == dict.fromkeys(
        (field.name for field in fields(command)), "."
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_help_shows_no_default_that_says_nothing(command, capsys):
    with pytest.raises(SystemExit) as caught:
        tyro.cli(command, args=["--help"], prog="tlray", config=(tyro.conf.FlagCreatePairsOff,))
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "usage: tlray" in text
    assert "None" not in text
    assert "(default: )" not in text
    assert "(default: False)" not in text
