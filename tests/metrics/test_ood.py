import hashlib

import numpy as np
import pytest

from tlray.metrics.ood import NEIGHBOURS, OodRecord, fit_ood_score, measure_distances, normalize


def make_circle(degrees):
    """Features at some angles, of different lengths."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * (1 + np.arange(len(degrees)))[:, None]


def test_images_from_elsewhere_have_a_score_above_one():
    rng = np.random.default_rng(0)
    centre, elsewhere = rng.normal(size=(2, 32))
    inside = centre + rng.normal(size=(300, 32)) * 0.3
    ood_score = fit_ood_score(inside[:200], inside[200:])

    def score(features):
        return measure_distances(features, ood_score.references, ood_score.neighbours) / ood_score.scale

    assert (score(inside[200:]) > 1).mean() == pytest.approx(0.01)
    assert score(elsewhere + rng.normal(size=(50, 32)) * 0.3).min() > 1
    assert ood_score.percentiles["99"] == pytest.approx(1.0)
    np.testing.assert_allclose(np.linalg.norm(ood_score.references, axis=1), 1, rtol=1e-5)


def test_distances_by_hand():
    references = normalize(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    found = measure_distances(np.array([[2.0, 0.0], [3.0, 3.0]]), references, 2)
    np.testing.assert_allclose(found, [1.0, 1 - np.sqrt(0.5)], atol=1e-6)
    for neighbours, expected in ((1, 0.0), (2, 1.0), (3, 2.0)):
        assert measure_distances(np.array([[5.0, 0.0]]), references, neighbours) == pytest.approx([expected])


def test_rows_are_scaled_to_unit_length_and_zeros_stay_zeros():
    unit = normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_the_scale_is_the_99th_percentile_of_held_out_images():
    references = make_circle(range(0, 110, 10))  # 0 to 100 degrees; the 10th nearest of 11 is the last but one
    ood_score = fit_ood_score(references, make_circle([0, 50]))
    near, far = 1 - np.cos(np.radians(50)), 1 - np.cos(np.radians(90))
    scale = near + 0.99 * (far - near)
    assert ood_score.neighbours == NEIGHBOURS == 10
    assert ood_score.scale == pytest.approx(scale, rel=1e-5)
    expected = {str(share): (near + share / 100 * (far - near)) / scale for share in (50, 90, 95, 99)}
    assert ood_score.percentiles == pytest.approx(expected, rel=1e-5)


def test_without_held_out_images_references_are_compared_with_the_others():
    ood_score = fit_ood_score(make_circle(range(0, 110, 10)), np.empty((0, 2)))
    # of 11 references the 10th nearest of the others is the farthest one: 50 degrees from the middle, 100 from the ends
    distances = 1 - np.cos(np.radians([100, 90, 80, 70, 60, 50, 60, 70, 80, 90, 100]))
    assert ood_score.scale == pytest.approx(np.percentile(distances, 99), rel=1e-5)


def test_identical_images_keep_the_scale_above_zero():
    ood_score = fit_ood_score(np.tile([1.0, 0.0], (11, 1)), np.tile([2.0, 0.0], (5, 1)))
    assert ood_score.scale == 1e-6
    assert ood_score.percentiles == dict.fromkeys(("50", "90", "95", "99"), 0.0)


@pytest.mark.parametrize(("references", "fits"), [(0, False), (10, False), (11, True)])
def test_a_score_needs_more_references_than_neighbours(references, fits):
    assert (fit_ood_score(np.ones((references, 4)), np.ones((3, 4))) is not None) == fits


def test_a_record_identifies_the_references():
    ood_score = fit_ood_score(make_circle(range(0, 110, 10)), make_circle([0, 50]))
    digest = hashlib.sha256(ood_score.references.astype("<f4").tobytes()).hexdigest()
    assert ood_score.describe() == OodRecord("knn", 10, 11, ood_score.scale, digest)
