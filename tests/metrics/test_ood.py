import hashlib

import numpy as np
import pytest
from scipy.stats import rankdata

from tlray.metrics import ood
from tlray.metrics.ood import (
    OodRecord,
    OodScore,
    count_references,
    draw_reference_rows,
    fit_ood_score,
    normalize,
    score_held_out,
)

DIMENSIONS = 64
EMPTY = np.empty((0, DIMENSIONS), np.float32)


class Clouds:
    """Classes that are Gaussians of unit noise around centres of norm 8; the rarest has a hundredth of the largest."""

    def __init__(self, num_classes, *, tailed, seed):
        self.random = np.random.default_rng(seed)
        self.counts = np.full(num_classes, 50)
        if tailed:
            self.counts = np.maximum(3, 300 * 0.01 ** np.linspace(0, 1, num_classes)).astype(int)
        self.centres = self.draw_centres(num_classes)
        self.labels = np.repeat(np.arange(num_classes), self.counts)
        self.features = self.draw(self.labels)

    def draw_centres(self, count):
        return 8 * normalize(self.random.normal(size=(count, DIMENSIONS)))

    def draw(self, labels):
        return self.centres[labels] + self.random.normal(size=(len(labels), DIMENSIONS))

    def draw_ordinary(self, count):
        return self.draw(self.random.choice(len(self.counts), count, p=self.counts / self.counts.sum()))

    def draw_rarest(self, count):
        return self.draw(np.full(count, self.counts.argmin()))

    def draw_unknown(self, count):
        return self.draw_centres(count) + self.random.normal(size=(count, DIMENSIONS))


def compute_auroc(inside, outside):
    ranks = rankdata(np.concatenate([inside, outside]))[len(inside) :]
    return (ranks.sum() - len(outside) * (len(outside) + 1) / 2) / (len(inside) * len(outside))


@pytest.mark.parametrize("tailed", [False, True])
@pytest.mark.parametrize(("num_classes", "seeds"), [(10, 6), (100, 3), (1000, 2)])
def test_unknown_images_are_told_from_ordinary_ones_however_many_classes_there_are(num_classes, seeds, tailed):
    """The rarest class of one seed hangs on its three images, hence the mean of several."""
    found = []
    for seed in range(seeds):
        clouds = Clouds(num_classes, tailed=tailed, seed=seed)
        score = fit_ood_score(clouds.features, clouds.labels, num_classes, EMPTY)
        draws = clouds.draw_ordinary(2000), clouds.draw_rarest(2000), clouds.draw_unknown(2000)
        ordinary, rarest, unknown = (score.measure(features) for features in draws)
        found.append([compute_auroc(ordinary, unknown), (ordinary > 1).mean(), (rarest > 1).mean()])
    auroc, ordinary, rarest = np.mean(found, axis=0)
    assert auroc > 0.98
    assert 0.005 <= ordinary <= 0.02
    assert 0.004 <= rarest <= 0.022


def test_held_out_images_set_the_scales_where_there_are_enough():
    clouds = Clouds(10, tailed=False, seed=0)
    wider = clouds.draw_ordinary(300) + clouds.random.normal(size=(300, DIMENSIONS))  # as if training knew its images
    score = fit_ood_score(clouds.features, clouds.labels, 10, wider)
    assert (score.measure(wider) > 1).mean() == pytest.approx(0.01)
    assert score.percentiles["99"] == pytest.approx(1.0)
    assert list(score.percentiles) == ["50", "90", "95", "99"]
    few = fit_ood_score(clouds.features, clouds.labels, 10, wider[:3])
    assert (few.scales < 0.9 * score.scales).all()
    assert 0.005 <= (few.measure(clouds.draw_ordinary(2000)) > 1).mean() <= 0.02


def test_scores_of_another_network_set_the_scales_as_its_held_out_images_do():
    clouds = Clouds(10, tailed=False, seed=0)
    wider = clouds.draw_ordinary(300) + clouds.random.normal(size=(300, DIMENSIONS))
    expected = fit_ood_score(clouds.features, clouds.labels, 10, wider)
    scores = score_held_out(clouds.features, clouds.labels, 10, wider)
    given = fit_ood_score(clouds.features, clouds.labels, 10, EMPTY, scores)
    np.testing.assert_array_equal(given.scales, expected.scales)
    assert given.percentiles == expected.percentiles
    assert score_held_out(clouds.features[:3], clouds.labels[:3], 10, wider) is None


def test_scores_by_hand():
    references = np.zeros((3, 4, 2), np.float32)
    references[0, :4] = [[1, 0], [1, 0], [0, 1], [0, -1]]
    references[1, :1] = [[-1, 0]]
    score = OodScore(references, np.array([4, 1, 0]), np.array([0.5, 2.0, 1e-6], np.float32), {})
    right, left = score.measure_by_class(normalize(np.array([[3.0, 0.0], [-2.0, 0.0]])))
    # of class 0 the mean of the 3 nearest of 4, of class 1 its only one; class 2 is nowhere near
    np.testing.assert_allclose(right[:2], [(1 - 2 / 3) / 0.5, 2 / 2.0], atol=1e-6)
    np.testing.assert_allclose(left[:2], [(1 - (0 + 0 - 1) / 3) / 0.5, 0.0], atol=1e-6)
    assert min(right[2], left[2]) > 1e5
    np.testing.assert_allclose(score.measure(np.array([[3.0, 0.0], [-2.0, 0.0]])), [2 / 3, 0.0], atol=1e-6)


def test_rows_are_scaled_to_unit_length_and_zeros_stay_zeros():
    unit = normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_a_class_without_images_is_near_nothing():
    clouds = Clouds(4, tailed=False, seed=1)
    known = clouds.labels != 2
    score = fit_ood_score(clouds.features[known], clouds.labels[known], 4, EMPTY)
    assert score.counts.tolist() == [50, 50, 0, 50]
    assert (score.measure(clouds.draw(np.full(200, 2))) > 1).all()


def test_identical_images_keep_the_scales_above_zero():
    score = fit_ood_score(np.tile([1.0, 0.0], (12, 1)), np.repeat([0, 1], 6), 2, np.tile([2.0, 0.0], (5, 1)))
    assert (score.scales > 0).all()
    assert all(0 <= value <= 1 for value in score.percentiles.values())
    assert score.measure(np.array([[0.0, 1.0]])) > 1


@pytest.mark.parametrize(
    ("images", "fits"), [([], False), ([5, 5], False), ([1] * 20, False), ([6, 5], True), ([11, 1], True)]
)
def test_a_score_needs_some_images_and_a_class_of_two(images, fits):
    labels = np.repeat(np.arange(len(images)), images)
    features = np.random.default_rng(0).normal(size=(len(labels), DIMENSIONS))
    assert (fit_ood_score(features, labels, max(1, len(images)), EMPTY) is not None) == fits


@pytest.mark.parametrize("num_classes", [2, 7, 100, 1500, 10_000])
def test_references_are_bounded_and_drawn_from_each_class(num_classes):
    most = count_references(num_classes)
    assert most >= 1
    assert most * num_classes <= max(8192, num_classes)
    labels = np.repeat(np.arange(num_classes, dtype=np.int32), np.where(np.arange(num_classes) % 2, 3, 30))
    rows = draw_reference_rows(np.arange(len(labels)), labels, num_classes, seed=0)
    assert (np.diff(rows) > 0).all()
    assert (np.bincount(labels[rows], minlength=num_classes) >= 3).all()
    assert len(rows) <= max(16384, 4 * num_classes)
    assert (draw_reference_rows(np.arange(len(labels)), labels, num_classes, seed=0) == rows).all()


def test_many_images_become_centres_of_unit_length(monkeypatch):
    monkeypatch.setattr(ood, "_MIN_REFERENCES", 8)
    clouds = Clouds(2, tailed=False, seed=0)
    score = fit_ood_score(clouds.features, clouds.labels, 2, EMPTY)
    assert score.counts.tolist() == [8, 8]
    np.testing.assert_allclose(np.linalg.norm(score.references, axis=2), 1, rtol=1e-5)
    assert (score.measure(clouds.draw_unknown(500)) > 1).all()


def test_a_record_identifies_the_references():
    clouds = Clouds(3, tailed=False, seed=0)
    score = fit_ood_score(clouds.features, clouds.labels, 3, EMPTY)
    digest = hashlib.sha256(score.references.astype("<f4").tobytes()).hexdigest()
    assert score.describe() == OodRecord("class_knn", 3, 150, float(np.median(score.scales)), digest)


def test_what_measuring_needs_is_saved(tmp_path):
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(60, 8)).astype(np.float32), np.repeat([0, 1, 3], 20)
    score = fit_ood_score(features, labels, 4, features[:0])
    path = tmp_path / "score.npz"
    score.save(path)
    np.testing.assert_array_equal(OodScore.load(path).measure(features), score.measure(features))
    again = tmp_path / "again.npz"
    score.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_a_damaged_file_of_references_is_told(tmp_path):
    path = tmp_path / "score.npz"
    for data in (b"", b"PK", b"cos\nsystem\n."):
        path.write_bytes(data)
        with pytest.raises(RuntimeError, match="is damaged"):
            OodScore.load(path)
    np.savez(path, references=np.array([{}], object), counts=np.zeros(1), scales=np.zeros(1))
    with pytest.raises(RuntimeError, match="is damaged"):
        OodScore.load(path)


def test_references_of_other_shapes_are_told(tmp_path):
    path = tmp_path / "score.npz"
    right = {"references": np.zeros((2, 3, 4), np.float32), "counts": np.ones(2, np.int64), "scales": np.ones(2)}
    np.savez(path, **right)
    OodScore.load(path)
    for name, wrong in (
        ("references", np.zeros((2, 4))),
        ("counts", np.ones(3, np.int64)),
        ("scales", np.ones(2, int)),
    ):
        np.savez(path, **{**right, name: wrong})
        with pytest.raises(RuntimeError, match="holds no references"):
            OodScore.load(path)
