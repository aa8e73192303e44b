import numpy as np
import pytest

from tlray.output.rowset import RowSet


def test_a_row_set_knows_what_is_missing():
    rng = np.random.default_rng(0)
    rows = RowSet(1003)
    there = np.unique(rng.integers(0, 1003, 500))
    rows.add(there)
    rows.add(there[:7])
    assert len(rows) == len(there)
    gone = np.setdiff1d(np.arange(1003), there)
    assert np.array_equal(rows.find_missing(0, 5000), gone)
    for first, count in ((0, 1), (3, 9), (8, 8), (995, 8), (1002, 1)):
        expected = gone[(gone >= first) & (gone < first + count)]
        assert np.array_equal(rows.find_missing(first, count), expected)
    twin = rows.copy()
    twin.invert()
    assert (len(twin), len(rows)) == (1003 - len(there), len(there))
    assert np.array_equal(twin.find_missing(0, 1003), there)


def test_an_update_is_the_union():
    one, two = RowSet(20), RowSet(20)
    one.add(np.array([0, 7, 8]))
    two.add(np.array([8, 19]))
    one.update(two)
    assert one.find_missing(0, 20).tolist() == [row for row in range(20) if row not in (0, 7, 8, 19)]
    assert len(two) == 2


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16])
def test_the_complement_of_an_empty_set_holds_every_row_and_no_more(count):
    rows = RowSet(count)
    rows.invert()
    assert len(rows) == count
    assert rows.find_missing(0, count + 8).tolist() == []
    rows.invert()
    assert len(rows) == 0


def test_a_copy_does_not_change_with_its_original():
    rows = RowSet(9)
    twin = rows.copy()
    rows.add(np.array([8]))
    assert (len(rows), len(twin)) == (1, 0)
