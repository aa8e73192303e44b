"""Simulated audits, from the draw to the intervals. `pytest -m chaos -s` prints the table of the benchmarks."""

import numpy as np
import pytest

from tests.audit import stratified
from tests.audit.archive import Archive
from tlray.audit.measure import plan_size

SURE = 1e-9
"""Tolerance of intervals without width."""


def holds(estimate, truth):
    return estimate.low - SURE <= truth <= estimate.high + SURE


def simulate(archive, audits, reviewed=300):
    """Coverage and mean width of each estimate, and the variance of shares beside a simple random sample's."""
    rng = np.random.default_rng(1)
    names = ("share", "precision", "recall")
    held = {name: np.full((audits, archive.num_classes), np.nan) for name in names}
    widths = {name: np.full((audits, archive.num_classes), np.nan) for name in names}
    shares = np.zeros((audits, archive.num_classes))
    accuracy = np.zeros((audits, 4))
    plain, accuracies = np.zeros(audits), np.zeros(audits)
    present = archive.totals.counts > 0
    for seed in range(audits):
        census = archive.review(archive.draw(reviewed, seed))
        accuracies[seed] = census.accuracy.value
        for label, one in enumerate(census.classes):
            shares[seed, label] = one.share.value
            for name in names:
                estimate, truth = getattr(one, name), getattr(archive, name)[label]
                if estimate is not None and np.isfinite(truth):
                    held[name][seed, label] = holds(estimate, truth)
                    widths[name][seed, label] = estimate.width
        (low, high), precisions = stratified.review(
            rng, archive.totals.counts[present], archive.right[present], reviewed
        )
        accuracy[seed] = (
            holds(census.accuracy, archive.accuracy),
            census.accuracy.width,
            high - low,
            low <= archive.accuracy <= high,
        )
        plain[seed] = np.mean([high - low for low, high in precisions])
    return {
        "covered": {name: np.nanmean(held[name], axis=0) for name in names},
        "width": {name: np.nanmean(widths[name]) for name in names},
        "accuracy": accuracy.mean(axis=0),
        "plain precision": plain.mean(),
        "variance": shares.var(axis=0) / (archive.share * (1 - archive.share) / reviewed),
        "bias": np.abs(shares.mean(axis=0) - archive.share).max(),
        "accuracy bias": np.mean(accuracies) - archive.accuracy,
    }


SIX = [1] * 6
LONG = [1 / (place + 1) ** 1.5 for place in range(20)]
DOUBTFUL = ((8.0, 0.6), (3.0, 0.25), (1.5, 0.15))
FLAT = ((5.2, 1.0),)
CASES = {
    "6 classes": Archive(SIX),
    "2 classes, 1 to 8": Archive([8, 1]),
    "20 classes, long tail": Archive(LONG),
    "6 classes, doubtful": Archive(SIX, DOUBTFUL),
    "6 classes, equally sure": Archive(SIX, FLAT),
    "6 classes, overconfident": Archive(SIX, power=0.5),
    "20 classes, overconfident": Archive(LONG, DOUBTFUL, power=0.6),
    "300 classes, doubtful": Archive([1] * 300, DOUBTFUL),
}


def check(name, archive, found, audits):
    """What must hold; three standard errors are allowed for the number of audits."""
    least = 0.93 - 3 * (0.93 * 0.07 / audits) ** 0.5 * (audits < 2000)
    assert found["covered"]["share"].min() >= least, name
    assert found["covered"]["precision"].mean() >= least, name
    assert found["covered"]["recall"].mean() >= least, name
    assert found["accuracy"][0] >= least, name
    assert np.nanmin(found["covered"]["precision"]) >= least - 0.05, name
    assert found["bias"] < 0.01, name
    assert abs(found["accuracy bias"]) < 0.01, name
    if "overconfident" not in name and archive.num_classes < 100:
        large = archive.share >= 0.01
        assert found["variance"][large].max() <= 0.5, name
        assert found["accuracy"][1] <= found["accuracy"][2], name
        assert found["width"]["precision"] <= found["plain precision"], name


@pytest.mark.parametrize("name", ["6 classes", "20 classes, overconfident", "300 classes, doubtful"])
def test_intervals_of_an_audit_hold_what_they_promise(name):
    check(name, CASES[name], simulate(CASES[name], 100), 100)


@pytest.mark.chaos
@pytest.mark.parametrize("name", CASES)
def test_intervals_of_many_audits_hold_what_they_promise(name):
    archive = CASES[name]
    found = simulate(archive, 2000)
    rare = (archive.share < 0.01) & (archive.share > 0)
    row = [
        f"{name} ({archive.accuracy:.2f})",
        f"{found['covered']['share'].min():.3f}",
        f"{found['variance'][~rare].mean():.2f}" if (~rare).any() else "",
        f"{found['variance'][rare].mean():.2f}" if rare.any() else "",
        f"{found['accuracy'][0]:.3f}",
        f"{found['accuracy'][1]:.3f} ({found['accuracy'][2]:.3f})",
        f"{found['covered']['precision'].mean():.3f}",
        f"{found['width']['precision']:.2f} ({found['plain precision']:.2f})",
        f"{found['covered']['recall'].mean():.3f}",
    ]
    print("\n| " + " | ".join(row) + " |")
    check(name, archive, found, 2000)


@pytest.mark.chaos
def test_classes_below_a_hundredth_need_a_quarter_of_the_labels():
    archive = Archive([100, 60, 40, 20, 10, 5, 1, 0.7, 0.5], ((9.0, 0.85), (3.0, 0.11), (1.5, 0.04)))
    assert 0.93 < archive.accuracy < 0.96
    found = simulate(archive, 2000)
    rare = archive.share < 0.01
    assert rare.sum() >= 2
    print(f"\naccuracy {archive.accuracy:.3f}: {found['variance'][rare]} of a simple random sample's labels")
    assert found["variance"][rare].max() <= 0.25
    assert found["variance"][~rare].max() <= 0.5
    assert found["covered"]["share"].min() >= 0.93


def stop_at(archive, until, seed, first=100):
    """Review in rounds until no share's interval is wider, as `--until` does; the census and its reviewed rows."""
    wanted = first
    while True:
        census = archive.review(archive.draw(wanted, seed, first))
        width = max(one.share.width for one in census.classes)
        more = plan_size(wanted, wanted, width, until, archive.num_rows)
        if width <= until or more <= wanted:
            return census, wanted
        wanted = more


@pytest.mark.parametrize(
    ("name", "audits"),
    [("6 classes", 30), pytest.param("6 classes", 1000, marks=pytest.mark.chaos)]
    + [pytest.param(name, 1000, marks=pytest.mark.chaos) for name in ("20 classes, long tail", "6 classes, doubtful")],
)
def test_intervals_hold_where_rounds_end_by_their_widths(name, audits):
    archive = CASES[name]
    held, reviewed = [], []
    for seed in range(audits):
        census, wanted = stop_at(archive, 0.02, seed)
        reviewed.append(wanted)
        held.append([holds(one.share, truth) for one, truth in zip(census.classes, archive.share, strict=True)])
    covered = np.mean(held, axis=0)
    print(f"\n{name}: {np.mean(reviewed):.0f} rows, covered {covered.min():.3f} to {covered.max():.3f}")
    assert np.mean(held) >= 0.93
    assert covered.min() >= 0.93 - 3 * (0.93 * 0.07 / audits) ** 0.5
    assert max(reviewed) > 100


def test_a_class_that_the_model_never_says_is_found_once_enough_is_reviewed():
    archive = Archive([1] * 6 + [0.005], hidden=0.01)
    held = [holds(archive.review(archive.draw(1500, seed)).classes[-1].share, archive.share[-1]) for seed in range(40)]
    assert np.mean(held) >= 0.8


def test_all_rows_reviewed_leave_nothing_open():
    archive = Archive(SIX, rows=200)
    census = archive.review(archive.draw(500, 0))
    assert [one.share.value for one in census.classes] == pytest.approx(archive.share.tolist())
    assert [one.recall.value for one in census.classes] == pytest.approx(archive.recall.tolist())
    assert max(one.share.width for one in census.classes) == pytest.approx(0)
    assert census.accuracy.value == pytest.approx(archive.accuracy)
    assert census.accuracy.width == pytest.approx(0, abs=1e-6)
