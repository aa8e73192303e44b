import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tlray.config import ImportConfig
from tlray.errors import ConfigError
from tlray.importer.files import read_classes
from tlray.importer.import_model import _calibrate, _measure, _ValidationPredictions
from tlray.importer.network import draw_images, find_image_size
from tlray.metrics.calibration import MIN_IMAGES

CONFIG = ImportConfig(model="m.keras", classes="c.txt", output="out", target_precision=0.9, confidence=0.8)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    "text",
    [
        "cat\n\n  dog \nowl\n",
        json.dumps(["cat", "dog", "owl"]),
        json.dumps({"owl": 2, "cat": 0, "dog": 1}),
        json.dumps({"0": "cat", "2": "owl", "1": "dog"}),
    ],
)
def test_class_names_come_from_lines_lists_or_indices(tmp_path, text, encoding):
    path = tmp_path / "classes.txt"
    path.write_text(text, encoding)
    assert read_classes(str(path)) == ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    "text", ["", "cat\n", "[]", '["cat", 1]', '["cat", ""]', '{"cat": 0, "dog": 2}', '{"a": "b", "c": "d"}', "12"]
)
def test_anything_but_two_names_is_refused(tmp_path, text):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--classes takes a file with one name a line, a JSON list"):
        read_classes(str(path))


def test_a_name_given_twice_is_refused(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("dog\ncat\ndog\n")
    with pytest.raises(ConfigError, match="takes each name once; got dog several times"):
        read_classes(str(path))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_a_class_list_in_another_encoding_is_refused(tmp_path, encoding):
    path = tmp_path / "classes.txt"
    path.write_text("café\ndog\n", encoding)
    with pytest.raises(ConfigError, match=r"takes a text file in UTF-8; got .*classes\.txt in another encoding"):
        read_classes(str(path))


def test_a_class_list_that_is_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="--classes takes a file with one name a line"):
        read_classes(str(path))


def test_a_missing_class_list_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--classes .*none\.txt cannot be read"):
        read_classes(str(tmp_path / "none.txt"))


def find_size(given, height, width):
    config = ImportConfig(model="m.keras", classes="c", output="o", image_size=given)
    return find_image_size(config, SimpleNamespace(inputs=[SimpleNamespace(shape=(None, height, width, 3))]))


def test_the_image_size_is_the_models_or_the_given_one():
    assert (
        find_size(None, 96, 96) == find_size(96, 96, 96) == find_size(96, None, None) == find_size(None, None, 96) == 96
    )


@pytest.mark.parametrize("sizes", [(64, 96, 96), (None, 96, 64), (64, None, 96)])
def test_another_size_than_the_models_is_refused(sizes):
    with pytest.raises(ConfigError, match="--image-size takes what the model does"):
        find_size(*sizes)


def test_a_model_of_any_size_needs_one():
    with pytest.raises(ConfigError, match="--image-size is needed"):
        find_size(None, None, None)


def make_predictions(count, num_features=4):
    random = np.random.default_rng(0)
    features = random.random((count, num_features), np.float32)
    return _ValidationPredictions(random.integers(0, 2, count), random.dirichlet([1, 1], count), features, 0)


def test_without_images_nothing_is_calibrated_or_measured():
    calibration = _calibrate(None, 2, scalable=True)
    assert (calibration.temperature, calibration.images, calibration.ood_score) == (1.0, 0, None)
    metrics, thresholds = _measure(None, calibration, ["a", "b"], CONFIG)
    assert (metrics.validation, thresholds) == (None, None)


@pytest.mark.parametrize(
    ("count", "scalable", "images"), [(MIN_IMAGES, True, MIN_IMAGES), (MIN_IMAGES - 1, True, 0), (MIN_IMAGES, False, 0)]
)
def test_the_temperature_needs_logits_and_enough_images(count, scalable, images):
    calibration = _calibrate(make_predictions(count), 2, scalable=scalable)
    assert calibration.images == images
    assert (calibration.temperature != 1.0) == (images > 0)


def test_each_class_has_references_before_it_has_held_out_images(monkeypatch):
    fitted = {}

    def fit(features, labels, num_classes, held_out):
        fitted.update(labels=labels, held_out=held_out)

    monkeypatch.setattr(sys.modules[_calibrate.__module__], "fit_ood_score", fit)
    predictions = make_predictions(80)
    labels = np.repeat(np.arange(16), 5)
    assert _calibrate(dataclasses.replace(predictions, labels=labels), 16, scalable=False).ood_score is None
    assert np.bincount(fitted["labels"]).tolist() == [3] * 16
    assert len(fitted["held_out"]) == 32


def test_held_out_images_are_of_all_classes_however_many_there_are(monkeypatch):
    fitted = {}

    def fit(features, labels, num_classes, held_out):
        fitted.update(held_out=held_out)

    monkeypatch.setattr(sys.modules[_calibrate.__module__], "fit_ood_score", fit)
    labels = np.repeat(np.arange(100), 60)
    predictions = dataclasses.replace(make_predictions(6000), labels=labels, features=np.tile(labels[:, None], (1, 2)))
    _calibrate(predictions, 100, scalable=False)
    assert len(fitted["held_out"]) == 2048
    assert len(set(fitted["held_out"][:, 0])) == 100


def test_half_of_the_images_are_references_and_no_features_give_no_score():
    assert _calibrate(make_predictions(80), 2, scalable=True).ood_score.counts.sum() == 40
    predictions = make_predictions(20, num_features=0)
    calibration = _calibrate(predictions, 2, scalable=True)
    assert calibration.ood_score is None
    metrics, thresholds = _measure(predictions, calibration, ["a", "b"], CONFIG)
    assert metrics.validation.images == metrics.uncalibrated.images == 20
    assert metrics.ood_score is None
    assert (thresholds.target_precision, thresholds.confidence) == (0.9, 0.8)


def test_drawn_images_are_the_same_every_time():
    first, second = draw_images(24), draw_images(24)
    assert [data for _, data, _ in first] == [data for _, data, _ in second]
    assert {pixels.shape for _, _, pixels in first} == {(24, 24, 3)}
    assert len({data for _, data, _ in first}) == len(first)
