import pytest
from scipy.stats import binomtest

from tlray.metrics.intervals import Z_95, wilson


# Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_published_values(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("level", "z"), [(0.95, Z_95), (0.99, 2.5758293035489004)])
def test_wilson_agrees_with_scipy(level, z):
    for total in (1, 2, 7, 50, 1000):
        for right in {0, 1, total // 3, total - 1, total}:
            theirs = binomtest(right, total).proportion_ci(level, "wilson")
            assert wilson(right, total, z) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_without_examples_the_interval_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_stays_between_zero_and_one():
    assert wilson(0, 1)[0] == 0.0
    assert wilson(1, 1)[1] == 1.0
    assert wilson(2.5, 5.0)[0] == pytest.approx(1 - wilson(2.5, 5.0)[1])
