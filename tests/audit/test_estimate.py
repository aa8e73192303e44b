from dataclasses import replace

import pytest

from tests.audit.data import make_sample
from tlray.audit.estimate import find_corrections, summarize
from tlray.audit.measure import plan_round, plan_size, write_corrections

ROWS = [
    (1, "/a.jpg", "glass", False),
    (2, "/b.jpg", "glass", False),
    (3, "/c.tar#c.jpg", "glass", True),
    (4, "/d.jpg", "glass", False),
    (5, "s3://b/../e.jpg", "metal", False),
    (6, "/in/../f.jpg", "metal", False),
    (7, "/g.jpg", "paper", False),
]
SAMPLE = make_sample(ROWS, in_archive={"glass": 100, "metal": 60, "paper": 40})
ANSWERS = {1: "glass", 2: "metal", 3: "metal", 5: "metal", 6: None}


def list_confused(summary):
    return [(pair.true, pair.predicted, pair.images) for pair in summary.most_confused]


def test_a_summary_counts_each_class_and_the_classes_that_were_reviewed():
    summary = summarize("/audit", SAMPLE, ANSWERS)
    glass, metal, paper = summary.by_class.values()
    assert (glass.rows, glass.sampled, glass.reviewed, glass.right) == (100, 4, 3, 1)
    assert (metal.rows, metal.sampled, metal.reviewed, metal.right) == (60, 2, 2, 1)
    assert (paper.rows, paper.sampled, paper.reviewed, paper.right) == (40, 1, 0, 0)
    assert (paper.precision, paper.precision_low, paper.precision_high) == (None, 0.0, 1.0)
    assert (summary.labelled, summary.sampled, summary.reviewed, summary.right) == (200, 7, 5, 2)
    assert summary.none_of_them == 1
    assert summary.covered == 1  # of each class, fewer than 5 rows were drawn: they stand for each other
    assert list_confused(summary) == [("metal", "glass", 2)]
    assert (summary.corrections, summary.inside) == (3, 1)
    assert summary.widest in SAMPLE.classes
    one = summary.by_class[summary.widest]
    assert summary.width == pytest.approx(one.share_high - one.share_low)


def test_a_class_whose_drawn_rows_nobody_looked_at_is_unknown():
    rows = [(number, f"/{number}.jpg", "glass" if number < 8 else "metal", False) for number in range(16)]
    sample = make_sample(rows, in_archive={"glass": 100, "metal": 60})
    summary = summarize("/audit", sample, dict.fromkeys(range(8), "glass"))
    metal = summary.by_class["metal"]
    assert (metal.count, metal.share, metal.precision, metal.recall) == (None, None, None, None)
    assert summary.by_class["glass"].recall is None
    assert summary.covered == pytest.approx(100 / 160)
    assert plan_round(summary, sample, dict.fromkeys(range(8), "glass"), 0.9) == (
        None,
        "not reached; no row with these labels was reviewed: metal",
    )


def test_counts_are_shares_of_the_reviewed_classes():
    summary = summarize("/audit", SAMPLE, ANSWERS)
    for one in summary.by_class.values():
        assert one.count == round(one.share * 200)
        assert one.count_low <= one.count <= one.count_high <= 200
    assert sum(one.share for one in summary.by_class.values()) + summary.no_class == pytest.approx(
        1, abs=0.1
    )  # none is below 0


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


@pytest.mark.parametrize(
    ("width", "until", "expected"),
    [
        (0.02, 0.01, 200),  # 4 x 100 would do, at most twice as many at a time
        (0.012, 0.01, 144),
        (0.0101, 0.01, 120),  # 20 more at least
    ],
)
def test_the_next_round_is_as_large_as_the_width_asks(width, until, expected):
    assert plan_size(100, 100, width, until, 10**6) == expected


def test_a_round_never_exceeds_the_archive_or_the_limit():
    assert plan_size(100, 100, 0.5, 0.01, 150) == 150
    assert plan_size(9_000, 9_000, 0.5, 0.01, 10**6) == 10_000


def test_the_verdict_on_a_width_says_what_to_do():
    summary = summarize("/audit", SAMPLE, ANSWERS)
    assert plan_round(replace(summary, width=0.8), SAMPLE, ANSWERS, 0.9) == (
        None,
        "reached: no class's share has an interval wider than 0.9",
    )
    wanted, verdict = plan_round(summary, SAMPLE, ANSWERS, 0.01)
    assert wanted == 14
    assert verdict.startswith("not reached; about ")
    assert verdict.endswith(" reviewed rows would do, and 7 more were drawn")
    two = make_sample(ROWS, rounds=[1] * 5 + [2] * 2)
    wanted, verdict = plan_round(summarize("/audit", two, {1: "glass"}), two, {1: "glass"}, 0.01)
    assert wanted is None
    assert verdict == "not reached; review sample.csv first, and give all forms (1 of its 5 rows)"
    whole = make_sample(ROWS, in_archive={"glass": 4, "metal": 2, "paper": 1})
    assert plan_round(summarize("/audit", whole, ANSWERS), whole, ANSWERS, 0.0001)[1].startswith(
        "not reached; all rows"
    )


def test_an_estimate_lies_within_its_interval():
    rows = [(number, f"/{number}.jpg", f"class {number % 20}", False) for number in range(60)]
    sample = make_sample(
        rows,
        [f"class {number}" for number in range(20)],
        dict.fromkeys([f"class {number}" for number in range(20)], 50),
    )
    answers = {number: f"class {(number * number) % 20}" for number in range(60)}
    for one in summarize("/audit", sample, answers).by_class.values():
        assert one.count_low <= one.count <= one.count_high


def test_a_width_that_is_reached_asks_for_no_more():
    two = make_sample(ROWS, rounds=[1] * 5 + [2] * 2)
    summary = summarize("/audit", two, ANSWERS)
    assert plan_round(replace(summary, width=0.01), two, ANSWERS, 0.05)[1].startswith("reached: ")
