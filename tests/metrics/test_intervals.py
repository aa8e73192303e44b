import pytest

from tlray.metrics.intervals import wilson


# Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_published_values(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest

    for total in (1, 2, 7, 50, 1000):
        for right in {0, 1, total // 3, total - 1, total}:
            theirs = binomtest(right, total).proportion_ci(0.95, "wilson")
            assert wilson(right, total) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_wilson_stays_inside_and_knows_nothing_of_none():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 1)[0] == 0.0
    assert wilson(1, 1)[1] == 1.0
    assert wilson(2.5, 5.0)[0] == pytest.approx(1 - wilson(2.5, 5.0)[1])
