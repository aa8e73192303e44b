import numpy as np
import pytest

from tlray.audit import draw
from tlray.audit.draw import Reservoirs, allocate


@pytest.mark.parametrize(
    ("counts", "wanted", "expected"),
    [
        ([240, 50, 7], 60, [46, 9, 5]),  # 5 are more than the last one's share, the rest is 55 x 240 / 290
        ([240, 50, 3], 60, [47, 10, 3]),
        ([100, 100, 100], 10, [4, 3, 3]),
        ([1000, 1, 1], 7, [5, 1, 1]),
        ([1000, 10, 10], 3, [1, 1, 1]),
        ([3, 4], 100, [3, 4]),
        ([7], 5, [5]),
        ([10**9, 10**6, 1], 1000, [994, 5, 1]),
    ],
)
def test_rows_are_shared_out_by_class_with_a_minimum(counts, wanted, expected):
    assert allocate(counts, wanted) == expected


def test_any_allocation_is_whole_and_possible():
    random = np.random.default_rng(0)
    for _ in range(300):
        counts = random.geometric(random.choice([0.5, 0.01, 0.0001]), random.integers(1, 40)).tolist()
        wanted = int(random.integers(len(counts), 400))
        given = allocate(counts, wanted)
        least = min(5, wanted // len(counts))
        assert sum(given) == min(wanted, sum(counts))
        assert all(min(least, have) <= got <= have for got, have in zip(given, counts, strict=True))


def test_every_row_of_a_class_is_as_likely():
    seen = np.zeros(400)
    for seed in range(1500):
        reservoirs = Reservoirs(2, 20, seed)
        for first in range(0, 400, 100):
            row_ids = np.arange(first, first + 100)
            reservoirs.add(row_ids, (row_ids % 4 == 0).astype(np.int64) * 2 - 1 + (row_ids % 4 == 1))
        assert reservoirs.counts.tolist() == [100, 100]
        seen[reservoirs.take(np.array([10, 20]))] += 1
    ones, zeros = seen[0::4], seen[1::4]
    assert seen[2::4].sum() == seen[3::4].sum() == 0
    # 1,500 draws of 20 and of 10 out of 100 rows: means of 300 and 150, chi-squared of 99 degrees of freedom
    for counts, share in ((ones, 0.2), (zeros, 0.1)):
        expected = 1500 * share
        assert 60 < ((counts - expected) ** 2 / (expected * (1 - share))).sum() < 150


def test_a_reservoir_keeps_the_same_rows_however_often_it_shrinks(monkeypatch):
    def run():
        reservoirs = Reservoirs(5, 30, 7)
        labels = np.random.default_rng(1).integers(-1, 5, 20_000)
        for first in range(0, 20_000, 500):
            reservoirs.add(np.arange(first, first + 500), labels[first : first + 500])
        return reservoirs.take(np.array([30, 0, 1, 5, 30])).tolist()

    before = run()
    monkeypatch.setattr(draw, "_SHRINK_ROWS", 10)
    assert run() == before
    assert len(before) == 66
