import hashlib
from dataclasses import replace

import pytest

from tests.factories import make_epoch
from tests.report.data import make_manifest
from tlray.metrics.calibration import CalibrationRecord
from tlray.metrics.ood import OodRecord
from tlray.model.manifest import (
    KeptEpoch,
    Manifest,
    Metrics,
    Preprocessing,
    RoleCounts,
    compute_model_id,
    find_kept,
    hash_json,
    hash_preprocessing,
    sign,
)
from tlray.storage.records import dump_record, parse_record


@pytest.mark.parametrize("manifest", [make_manifest(), make_manifest(validation=False, test=False)])
def test_a_manifest_is_read_as_it_was_written(manifest):
    assert parse_record(Manifest, dump_record(manifest)) == manifest


def test_the_hash_of_json_depends_on_values_and_not_on_their_order():
    digest = hashlib.sha256(b'{"a":[1,2.5],"b":null}').hexdigest()
    assert hash_json({"b": None, "a": [1, 2.5]}) == hash_json({"a": [1, 2.5], "b": None}) == digest
    assert hash_json({"a": [2.5, 1], "b": None}) != digest


def test_the_model_id_covers_all_that_decides_a_prediction():
    manifest = make_manifest()
    model_id = compute_model_id(manifest)
    ood_score = OodRecord("class_knn", 3, 11, 0.5, "c" * 64)
    for change in (
        {"architecture": replace(manifest.architecture, weights_sha256="0" * 64)},
        {"preprocessing": replace(manifest.preprocessing, image_size=300)},
        {"classes": manifest.classes[::-1]},
        {"calibration": replace(manifest.calibration, temperature=1.0)},
        {"calibration": CalibrationRecord(1.3471, 81, ood_score)},
    ):
        assert compute_model_id(replace(manifest, **change)) != model_id, change
    for change in (
        {"metrics": Metrics()},
        {"training": None},
        {"thresholds": None},
        {"versions": {}},
        {"files": {"a": "b"}},
        {"model_id": ""},
    ):
        assert compute_model_id(replace(manifest, **change)) == model_id, change


def test_signing_fills_in_the_model_id_alone():
    manifest = replace(make_manifest(), model_id="")
    signed = sign(manifest)
    assert signed.model_id == compute_model_id(manifest)
    assert replace(signed, model_id="") == manifest


def test_the_fingerprint_of_a_preprocessing_covers_its_defaults():
    one = Preprocessing(48, 1.0, 0.0)
    assert hash_preprocessing(one) == hash_preprocessing(Preprocessing(48, 1.0, 0.0))
    assert hash_preprocessing(one) != hash_preprocessing(Preprocessing(48, 1.0, 0.0, alpha="over black"))


def test_the_kept_epoch_is_found_by_its_number():
    history = [make_epoch(1), make_epoch(2), make_epoch(3, phase="finetune")]
    assert find_kept(history, KeptEpoch("head", 2)) is history[1]
    assert find_kept(history, None) is history[2]
    assert find_kept(history, KeptEpoch("finetune", 9)) is history[2]


def test_roles_are_listed_where_they_were_measured():
    metrics = make_manifest().metrics
    assert [role for role, _ in metrics.list_measured()] == ["validation", "test"]
    assert replace(metrics, validation=None).list_measured() == [("test", metrics.test)]
    assert Metrics().list_measured() == []


def test_counts_are_said_without_empty_roles():
    assert str(RoleCounts(1459, 81, 0)) == "1,459 train, 81 validation"
    assert str(RoleCounts(1, 0, 2)) == "1 train, 2 test"


def test_options_are_the_config_with_its_defaults_resolved():
    training = make_manifest().training
    assert training.config["finetune_from"] is None
    assert training.options["finetune_from"] == "mixed8"
    assert training.options["batch_size"] == 16
