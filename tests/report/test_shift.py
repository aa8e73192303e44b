import math
from dataclasses import replace

import numpy as np
import pytest

from tests.report import data
from tlray.report.shift import Validation, compare_with_validation, measure_shift, read_validation

SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}
VALIDATION = Validation(80, SHARES, 0.9, [0] * 18 + [80, 0])


def make_archive(shares, confidence, images):
    """Class counts, a histogram and a mean of predictions with given shares and one confidence."""
    histogram = [0] * 20
    histogram[int(confidence * 20)] = images
    return {name: round(share * images) for name, share in shares.items()}, histogram, confidence


def test_noise_is_no_shift():
    rng = np.random.default_rng(0)
    fits = 0
    for _ in range(200):
        drawn = rng.multinomial(60, list(SHARES.values())) / 60
        fits += measure_shift(*make_archive(dict(zip(SHARES, drawn, strict=True)), 0.9, 60), VALIDATION).fits
    assert fits >= 198


def test_the_verdict_names_what_differs():
    def compare(shares, confidence):
        return compare_with_validation(*make_archive(shares, confidence, 10_000), VALIDATION)

    assert compare(SHARES, 0.9) == "Classes and confidence look like those of the validation images."
    moved = compare({"a": 0.05, "b": 0.15, "c": 0.8}, 0.9)
    assert "the classes are distributed differently (c is 80.0% here and 20.0% there)" in moved
    assert "confident" not in moved
    unsure = compare(SHARES, 0.7)
    assert "the predictions are less confident (on average 70.0% here and 90.0% there)" in unsure
    assert "distributed" not in unsure
    assert "more confident" in compare(SHARES, 0.99)
    both = compare({"a": 0.05, "b": 0.15, "c": 0.8}, 0.7)
    assert "there) and the predictions" in both


def test_a_shift_by_hand():
    validation = Validation(100, {"a": 0.5, "b": 0.5}, 0.9, [0] * 17 + [50, 0, 50])
    shift = measure_shift({"a": 70, "z": 30}, [0] * 10 + [50] + [0] * 8 + [50], 0.75, validation)
    assert shift.distance == pytest.approx((0.2 + 0.5 + 0.3) / 2)
    assert shift.class_name == "b"
    together = np.array([0.6, 0.25, 0.15])
    expected = 0.5 * np.sqrt(2 / math.pi * together * (1 - together) * 0.02).sum()
    assert shift.distance_limit == pytest.approx(expected + math.sqrt(-math.log(0.01) / 2 * 0.02))
    assert shift.difference == pytest.approx(-0.15)
    here, there = ((0.975 - 0.525) / 2) ** 2, ((0.975 - 0.875) / 2) ** 2  # half of the images in either bin
    assert shift.difference_limit == pytest.approx(2.576 * math.sqrt((here + there) / 100))


def test_small_differences_in_large_archives_are_no_shift():
    validation = Validation(10**6, {"a": 0.5, "b": 0.5}, 0.9, [0] * 18 + [10**6, 0])
    shift = measure_shift(*make_archive({"a": 0.58, "b": 0.42}, 0.86, 10**6), validation)
    assert shift.fits
    assert shift.distance_limit == pytest.approx(0.1, abs=0.001)
    assert shift.difference_limit == 0.05
    assert not measure_shift(*make_archive({"a": 0.62, "b": 0.38}, 0.9, 10**6), validation).fits
    assert not measure_shift(*make_archive({"a": 0.5, "b": 0.5}, 0.84, 10**6), validation).fits


@pytest.mark.parametrize(("counts", "confidence", "validation"), [({"a": 10}, 0.9, None), ({}, None, VALIDATION)])
def test_without_images_on_either_side_there_is_nothing_to_compare(counts, confidence, validation):
    assert measure_shift(counts, [0] * 20, confidence, validation) is None
    assert compare_with_validation(counts, [0] * 20, confidence, validation) is None


def test_validation_is_read_from_a_manifest():
    manifest = data.make_manifest()
    measured = manifest.metrics.validation
    found = read_validation(manifest)
    assert found.images == 81
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares["glass"] == measured.by_class["glass"].predicted / 81
    assert found.confidences == measured.confidences
    middles = (np.arange(20) + 0.5) / 20
    assert found.confidence == pytest.approx(np.average(middles, weights=found.confidences), abs=0.025)


def test_a_bundle_without_validation_images_has_nothing_to_compare_with():
    assert read_validation(data.make_manifest(validation=False)) is None
    manifest = data.make_manifest()
    empty = replace(manifest.metrics, validation=replace(manifest.metrics.validation, images=0))
    assert read_validation(replace(manifest, metrics=empty)) is None
