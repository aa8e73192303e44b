import numpy as np
import pytest

from tlray.metrics import near_duplicates
from tlray.metrics.near_duplicates import group_near_duplicates


def draw(count, size=64, seed=0):
    return np.abs(np.random.default_rng(seed).normal(size=(count, size))).astype(np.float32)


def list_groups(found):
    return [group.tolist() for group in found.groups]


def test_images_that_are_nearly_the_same_are_a_group():
    features = draw(100)
    rng = np.random.default_rng(1)
    for copy, original in ((10, 3), (50, 3), (70, 20)):
        features[copy] = 2 * features[original] + rng.normal(size=64) * 1e-3
    found = group_near_duplicates(features)
    assert list_groups(found) == [[3, 10, 50], [20, 70]]
    assert (found.compared, found.surplus) == (100, 3)


def test_other_images_are_no_group():
    assert list_groups(group_near_duplicates(draw(300))) == []


def test_many_copies_of_one_image_are_one_group(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_BLOCK_ROWS", 64)
    features = draw(400)
    copies = np.random.default_rng(2).choice(400, 150, replace=False)
    features[copies] = features[copies[0]]
    (group,) = list_groups(group_near_duplicates(features))
    assert group == sorted(copies.tolist())
    assert list_groups(group_near_duplicates(np.tile(features[:1], (90, 1)))) == [list(range(90))]


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_is_no_group(count):
    assert list_groups(group_near_duplicates(draw(count))) == []
    assert group_near_duplicates(draw(2)).groups == []
