import numpy as np
import pytest

from tests.audit.data import make_sample
from tlray.audit.measure import Stratum, estimate_share, find_corrections, summarize, write_corrections
from tlray.metrics.intervals import wilson

SAMPLE = make_sample(
    [
        (1, "/a.jpg", "glass", False),
        (2, "/b.jpg", "glass", False),
        (3, "/c.tar#c.jpg", "glass", True),
        (4, "/d.jpg", "glass", False),
        (5, "s3://b/../e.jpg", "metal", False),
        (6, "/in/../f.jpg", "metal", False),
        (7, "/g.jpg", "paper", False),
    ],
    in_archive={"glass": 100, "metal": 60, "paper": 40},
)
ANSWERS = {1: "glass", 2: "metal", 3: "metal", 5: "metal", 6: None}


def list_confused(summary):
    return [(pair.true, pair.predicted, pair.images) for pair in summary.most_confused]


def test_one_stratum_is_wilson_and_few_rows_stay_finite():
    share, low, high = estimate_share([(1000, 40, 33)])
    assert share == pytest.approx(33 / 40)
    # the effective size is the size itself
    assert (low, high) == pytest.approx(wilson(33, 40))
    share, low, high = estimate_share([(10, 5, 5), (990, 95, 95)])
    assert share == pytest.approx(1.0)
    assert 0.9 < low < 1.0
    assert high == 1.0
    assert estimate_share([(5, 1, 0)])[:2] == (0.0, 0.0)


def test_strata_are_weighted_by_their_rows():
    # by hand: weights 0.9 and 0.1; shares 0.8 and 0.2; smoothed 81/102 and 11/52
    share, low, high = estimate_share([(900, 100, 80), (100, 50, 10)])
    assert share == pytest.approx(0.74)
    variance = 0.81 * (81 / 102) * (21 / 102) / 100 + 0.01 * (11 / 52) * (41 / 52) / 50
    centre = 0.9 * 81 / 102 + 0.1 * 11 / 52
    size = centre * (1 - centre) / variance
    assert (low, high) == pytest.approx(wilson(0.74 * size, size))
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.05)


def test_intervals_hold_what_they_promise():
    random = np.random.default_rng(0)
    cases = [
        ([900, 50, 30, 20], [180, 10, 5, 5], [0.98, 0.7, 0.5, 0.4]),
        ([100] * 20, [5] * 20, [0.95] * 20),
        ([500, 500], [50, 50], [1.0, 0.3]),
        ([500, 300, 200], [100, 60, 40], [0.995, 0.99, 0.98]),
    ]
    for rows, reviewed, shares in cases:
        truth = np.average(shares, weights=rows)
        held = 0
        for _ in range(1000):
            right = random.binomial(reviewed, shares).tolist()
            _, low, high = estimate_share(list(zip(rows, reviewed, right, strict=True)))
            held += low <= truth <= high
        assert 0.92 <= held / 1000 <= 0.99, (rows, held)


def test_a_summary_counts_each_class_and_the_classes_that_were_reviewed():
    summary = summarize("/audit", SAMPLE, ANSWERS)
    assert summary.by_class == {
        "glass": Stratum(100, 4, 3, 1, 1 / 3, *wilson(1, 3)),
        "metal": Stratum(60, 2, 2, 1, 0.5, *wilson(1, 2)),
        "paper": Stratum(40, 1, 0, 0, None, 0.0, 1.0),
    }
    assert (summary.labelled, summary.sampled, summary.reviewed, summary.right) == (200, 7, 5, 2)
    assert summary.none_of_them == 1
    assert summary.covered == pytest.approx(160 / 200)
    assert summary.accuracy == pytest.approx((100 / 3 + 60 / 2) / 160)
    assert (summary.accuracy_low, summary.accuracy_high) == estimate_share([(100, 3, 1), (60, 2, 1)])[1:]
    assert list_confused(summary) == [("metal", "glass", 2)]
    assert (summary.corrections, summary.inside) == (3, 1)


def test_the_most_frequent_confusion_comes_first():
    answers = {1: "paper", 2: "metal", 3: "metal", 4: "glass", 5: "metal", 6: "glass", 7: None}
    told = list_confused(summarize("/audit", SAMPLE, answers))
    assert told[0] == ("metal", "glass", 2)
    assert sorted(told[1:]) == [("glass", "metal", 1), ("paper", "glass", 1)]


def test_corrections_are_the_reviewed_files_of_a_class():
    assert find_corrections(SAMPLE.rows, ANSWERS | {6: "paper"}) == {
        "/a.jpg": "glass",
        "/b.jpg": "metal",
        "s3://b/../e.jpg": "metal",  # a key's dots are no folders
        "/f.jpg": "paper",
    }


def test_corrections_are_plain_csv():
    assert write_corrections({'/=1,"x".jpg': "=SUM(1)"}) == b'uri,label\n"/=1,""x"".jpg",=SUM(1)\n'
    assert write_corrections({}) == b"uri,label\n"
