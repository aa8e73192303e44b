import numpy as np

from tlray.comparison.pairs import _number_repeats


def test_repeats_of_an_address_are_told_apart():
    hashes = np.array([5, -3, 5, 7, 5, -3], np.int64)
    numbered = _number_repeats(hashes)
    assert len(set(numbered.tolist())) == 6
    assert numbered[[0, 1, 3]].tolist() == [5, -3, 7]
    other = _number_repeats(np.array([5, 5], np.int64))
    assert other.tolist() == numbered[[0, 2]].tolist()
    assert len(_number_repeats(np.zeros(0, np.int64))) == 0
