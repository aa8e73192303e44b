import pytest

from tlray.config import DemoConfig, EvaluateConfig, ImportConfig, ShowConfig
from tlray.errors import ConfigError


def make_import(**options):
    return ImportConfig(**{"model": "m.keras", "classes": "classes.txt", "output": "bundle", **options})


def list_faults(config):
    with pytest.raises(ConfigError) as caught:
        config.check()
    return list(caught.value.faults)


def test_every_fault_of_an_evaluation_is_reported_at_once():
    EvaluateConfig(model="bundle", data="s3://held-out").check()
    EvaluateConfig(model="bundle", data="held-out.csv", batch_size=4096, target_precision=0.999).check()
    faults = list_faults(
        EvaluateConfig(
            model="gs://b", data="", output="s3:///x", batch_size=4097, target_precision=1.0, max_cpus=0, max_pixels=0
        )
    )
    assert [fault.split()[0] for fault in faults] == [
        "--model",
        "--data",
        "--output",
        "--batch-size",
        "--target-precision",
        "--max-cpus",
        "--max-pixels",
    ]
    assert faults[4] == "--target-precision takes 0.01 to 0.999; got 1.0"


def test_a_bundle_to_show_needs_an_address():
    ShowConfig(bundle="s3://models/first").check()
    (fault,) = list_faults(ShowConfig(bundle="  "))
    assert fault == "--bundle takes a local path or s3://bucket/prefix; got an empty string"


def test_every_fault_of_an_import_is_reported_at_once():
    make_import(scale=-1.0, offset=1.0, image_size=8, val_data="held-out").check()
    faults = list_faults(make_import(model="m.h5", val_data="x://y", scale=0.0, image_size=7, target_precision=0.0))
    assert faults == [
        "--val-data takes a local path or s3://bucket/prefix; got the scheme 'x://'",
        "--scale takes a number other than 0; got 0.0",
        "--image-size takes 8 to 2,048; got 7",
        "--target-precision takes 0.01 to 0.999; got 0.0",
    ]


@pytest.mark.parametrize("weights", ["imagenet", "none", "weights.h5", "s3://weights/base.h5"])
def test_a_demo_takes_weights_by_name_or_address(weights):
    DemoConfig(weights=weights, max_cpus=2).check()


def test_a_demo_writes_to_a_local_folder():
    assert list_faults(DemoConfig(output="s3://demo", weights="http://x/w.h5", max_cpus=0)) == [
        "--output takes a local folder; got 's3://demo'",
        "--weights takes a local path or s3://bucket/prefix; got the scheme 'http://'",
        "--max-cpus takes 1 to 4,096; got 0",
    ]
