import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tlray.training import linear_head
from tlray.training.linear_head import can_solve, choose_sample, draw_folds, draw_sample, solve_head

NUM_CLASSES = 3


def draw(num_images, num_features=20, distance=2.0, seed=0):
    """Clouds of unit noise around the classes' centres, in units that differ by feature, and their labels."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(NUM_CLASSES, num_features)) * distance / num_features**0.5
    labels = np.arange(num_images) % NUM_CLASSES
    units = np.geomspace(0.01, 10, num_features)
    features = (centres[labels] + random.normal(size=(num_images, num_features))) * units + 3 * units
    return features.astype(np.float32), labels


def solve(features, labels, views=(), groups=None, weights=(1, 1, 1)):
    groups = np.arange(len(labels)) if groups is None else groups
    return solve_head(features, views, labels, groups, np.array(weights, np.float32), seed=0)


def predict(head, features):
    logits = features.astype(np.float64) @ head.kernel + head.bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def measure_loss(head, features, labels):
    return float(-np.log(predict(head, features)[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize(("weights", "num_features"), [((1, 1, 1), 20), ((3, 1, 0.5), 20), ((3, 1, 0.5), 300)])
def test_it_is_the_minimum_that_scikit_learn_finds(monkeypatch, weights, num_features):
    features, labels = draw(150, num_features)
    monkeypatch.setattr(linear_head, "_POWERS", (1.0,))
    monkeypatch.setattr(linear_head, "_DECAYS", (0.03, 0.03))
    monkeypatch.setattr(linear_head, "_TOLERANCE", 1e-6)
    monkeypatch.setattr(linear_head, "_FINAL_STEPS", 5000)
    head = solve(features, labels, weights=weights)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    row_weights = np.array(weights)[labels]
    # its C weighs the sum of losses against half the sum of squares
    other = LogisticRegression(C=1 / (0.03 * row_weights.sum()), tol=1e-8, max_iter=5000)
    other.fit(scaled, labels, sample_weight=row_weights)
    np.testing.assert_allclose(predict(head, features), other.predict_proba(scaled), atol=1e-3)


def test_with_the_shipped_tolerance_it_is_near_the_minimum(monkeypatch):
    features, labels = draw(150)
    shipped = solve(features, labels)
    monkeypatch.setattr(linear_head, "_TOLERANCE", 1e-6)
    monkeypatch.setattr(linear_head, "_FINAL_STEPS", 5000)
    monkeypatch.setattr(linear_head, "_POWERS", (shipped.power,))
    monkeypatch.setattr(linear_head, "_DECAYS", (shipped.decay, shipped.decay))
    np.testing.assert_allclose(predict(shipped, features), predict(solve(features, labels), features), atol=0.02)


def test_settings_are_chosen_by_the_loss_on_images_held_out():
    features, labels = draw(60, num_features=200)
    unseen, truth = draw(3000, num_features=200, seed=1)
    chosen = solve(features, labels)
    assert chosen.decay > 1e-3  # 200 features of 60 images: without a penalty it is sure of what it cannot know
    assert measure_loss(chosen, unseen, truth) < np.log(NUM_CLASSES)
    assert chosen.log_loss == pytest.approx(measure_loss(chosen, unseen, truth), abs=0.1)
    many = solve(*draw(3000, num_features=20))
    assert many.decay < chosen.decay


def test_standardization_is_chosen_where_units_differ():
    features, labels = draw(300)
    assert solve(features, labels).power == 1.0
    noise = np.random.default_rng(3).normal(size=(300, 200)).astype(np.float32) * 0.01
    alike = np.hstack([features / np.geomspace(0.01, 10, 20).astype(np.float32), noise])
    assert solve(alike, labels).power < 1.0  # full standardization would raise what is only noise


def test_views_are_solved_on_too():
    features, labels = draw(30, distance=4.0)
    views = [features + draw(30, distance=0.0, seed=seed)[0] * 0.5 for seed in (5, 6)]
    alone, together = solve(features, labels), solve(features, labels, views)
    assert (alone.power, alone.decay, alone.log_loss) == (together.power, together.decay, together.log_loss)
    assert np.abs(alone.kernel - together.kernel).max() > 0.01 * np.abs(alone.kernel).max()


def test_the_same_images_give_the_same_head():
    features, labels = draw(60)
    one, other = solve(features, labels), solve(features, labels)
    np.testing.assert_array_equal(one.kernel, other.kernel)
    assert (one.kernel.dtype, one.kernel.shape, one.bias.shape) == (np.float32, (20, 3), (3,))


def test_too_few_images_or_groups_take_the_default():
    features, labels = draw(4)
    head = solve(features, labels)
    assert (head.power, head.decay, head.log_loss) == (0.5, 0.1, None)
    features, labels = draw(40)
    assert solve(features, labels, groups=np.arange(40) % 4).log_loss is None
    assert solve(features, labels, groups=np.arange(40) % 5).log_loss is not None


def test_classes_of_one_image_each_take_the_default():
    features = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    head = solve_head(features, [], np.arange(10), np.arange(10), np.ones(10, np.float32), seed=0)
    assert (head.power, head.decay, head.log_loss) == (0.5, 0.1, None)


def test_constant_features_do_no_harm():
    features, labels = draw(60)
    features[:, :5] = 7.0
    assert np.isfinite(solve(features, labels).kernel).all()
    head = solve(np.full((60, 4), 7.0, np.float32), labels)
    np.testing.assert_allclose(predict(head, features[:, :4]), 1 / 3, atol=0.01)


def test_folds_spread_classes_and_keep_groups_together():
    labels = np.repeat([0, 1, 2], [50, 10, 5])
    groups = np.arange(65)
    groups[:4] = 0
    folds = draw_folds(labels, groups, 5, seed=1)
    assert len(set(folds[:4])) == 1
    for label, num_images in ((0, 47), (1, 10), (2, 5)):
        first_of_groups = np.unique(groups[labels == label], return_index=True)[1] + np.flatnonzero(labels == label)[0]
        counts = np.bincount(folds[first_of_groups], minlength=5)
        assert counts.sum() == num_images
        assert counts.max() - counts.min() <= 1
    assert (folds != draw_folds(labels, groups, 5, seed=2)).any()


def test_a_large_problem_is_solved_on_a_sample_or_not_at_all():
    assert choose_sample(1000, 1280, 6) == 1000
    assert choose_sample(10**6, 2048, 10) == 10**8 // 2048
    assert choose_sample(10**6, 1280, 100) == 2 * 10**9 // 128_000
    assert not can_solve(10**6, 1280, 1000)  # 1,562 images would fit, fewer than 10 a class
    assert can_solve(1500, 1280, 1000)


def test_a_sample_has_some_images_of_each_class():
    labels = np.repeat([0, 1, 2], [5000, 12, 3]).astype(np.int32)
    rows = np.arange(len(labels))
    drawn = draw_sample(rows, labels, 100, seed=1)
    assert np.bincount(labels[drawn]).tolist()[1:] == [10, 3]
    assert len(drawn) == len(set(drawn)) == 100
    assert (np.diff(drawn) > 0).all()
    assert (drawn != draw_sample(rows, labels, 100, seed=2)).any()
    np.testing.assert_array_equal(draw_sample(rows, labels, 10**6, seed=1), rows)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 1, 1, 60)])
def test_a_class_of_one_image_does_not_decide(weights):
    features, labels = draw(90)
    alone = solve_head(features, [], labels, np.arange(90), np.ones(3, np.float32), seed=0)
    features = np.vstack([features, 3 * features[:1]])
    labels = np.append(labels, 3)
    with_one = solve_head(features, [], labels, np.arange(91), np.array(weights, np.float32), seed=0)
    assert with_one.decay <= 10 * alone.decay
    assert with_one.log_loss == pytest.approx(alone.log_loss, abs=0.15)


def test_a_large_problem_is_validated_on_one_fold(monkeypatch):
    tried = []
    features, labels = draw(100)
    monkeypatch.setattr(linear_head, "_ONE_FOLD_WORK", features.size * NUM_CLASSES - 1)
    validate = linear_head._validate
    monkeypatch.setattr(linear_head, "_validate", lambda *given: tried.append(given[4]) or validate(*given))
    solve(features, labels)
    assert tried == [[0]] * 3


def test_heads_without_a_fold_are_those_of_the_other_images(monkeypatch):
    """Solved in the axes of all images, they are the minimum that the other images alone have."""
    monkeypatch.setattr(linear_head, "_POWERS", (1.0,))
    monkeypatch.setattr(linear_head, "_DECAYS", (0.03, 0.03))
    monkeypatch.setattr(linear_head, "_TOLERANCE", 1e-6)
    monkeypatch.setattr(linear_head, "_FINAL_STEPS", 5000)
    features, labels = draw(120)
    views = [draw(120, seed=1)[0]]
    groups, weights = np.arange(120) // 2, np.array([3, 1, 0.5], np.float32)
    head = solve_head(features, views, labels, groups, weights, seed=0, num_folds=4)
    assert sorted(np.bincount(head.folds).tolist()) == [30] * 4
    assert (head.folds[::2] == head.folds[1::2]).all()
    found = head.predict_out_of_fold(features)
    mean, deviations = features.mean(axis=0), features.std(axis=0)
    scaled, augmented = (features - mean) / deviations, (views[0] - mean) / deviations
    for fold in range(4):
        rest = head.folds != fold
        row_weights = np.tile(weights[labels[rest]], 2)
        other = LogisticRegression(C=1 / (0.03 * row_weights.sum()), tol=1e-8, max_iter=5000)
        stacked, targets = np.concatenate([scaled[rest], augmented[rest]]), np.tile(labels[rest], 2)
        other.fit(stacked, targets, sample_weight=row_weights)
        np.testing.assert_allclose(found[~rest], other.predict_proba(scaled[~rest]), atol=1e-3)


def test_heads_without_a_fold_are_solved_only_if_asked_for():
    assert solve(*draw(60)).without == []


def test_fewer_settings_are_spread_over_the_same_range(monkeypatch):
    tried = []
    validate = linear_head._validate
    monkeypatch.setattr(linear_head, "_validate", lambda *given: tried.append(given[-1]) or validate(*given))
    features, labels = draw(90)
    weights = np.ones(3, np.float32)
    chosen = [solve_head(features, [], labels, np.arange(90), weights, 0, num_settings=count) for count in (30, 7)]
    assert [len(decays) for decays in tried] == [10] * 3 + [2] * 3
    assert tried[0][::9] == pytest.approx(tried[3])
    assert chosen[1].decay in tried[3]
