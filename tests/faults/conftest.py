"""Small trainings that are broken on purpose."""

import json
from pathlib import Path

import pytest

from tests.entry.conftest import PRETRAINED, SEED, WEIGHTS, run_tlray

NETWORK = ["--backbone", "mobilenet_v2", "--weights", str(WEIGHTS) if PRETRAINED else "none", "--image-size", "48"]
NETWORK += ["--precision", "float32", "--seed", SEED]

BASE_OPTIONS = [*NETWORK, "--recipe", "seed", "--head-units", "16"]

LONG_OPTIONS = [*NETWORK, "--head-epochs", "5", "--finetune-epochs", "5", "--cache", "on", "--views", "2"]
LONG_OPTIONS += ["--lr-head", "3e-4", "--lr-finetune", "1e-4", "--val-fraction", "0.2"]
# low rates: at high ones a rounding difference in one step has grown beyond the tolerance ten epochs later

TWO_WORKERS = ["--num-workers", "2", "--batch-size", "4"]

LOSS_TOLERANCE = 1e-3


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


def read_history(bundle):
    return json.loads((bundle / "training" / "history.json").read_text())


def check_same_history(ours, theirs, *, steps=True):
    """One record an epoch, without gap or double, with the losses of the other run."""
    assert [record["epoch"] for record in ours] == list(range(1, len(theirs) + 1))
    for one, two in zip(ours, theirs, strict=True):
        names = ("phase", "images", "steps") if steps else ("phase", "images")
        assert {name: one[name] for name in names} == {name: two[name] for name in names}
        for name in ("loss", "val_loss"):
            same = None if two[name] is None else pytest.approx(two[name], rel=LOSS_TOLERANCE)
            assert one[name] == same, (name, one, two)


@pytest.fixture(scope="session")
def small(tmp_path_factory, write_digits):
    """Three classes of 16 digits each."""
    return write_digits(tmp_path_factory.mktemp("small") / "train", 3, 16)


@pytest.fixture(scope="session")
def undisturbed(small, notebook, tmp_path_factory):
    """The bundle of `LONG_OPTIONS` with 2 workers of 4, trained in peace."""
    bundle = tmp_path_factory.mktemp("undisturbed") / "bundle"
    run_tlray("train", "--data", str(small), "--output", str(bundle), *LONG_OPTIONS, *TWO_WORKERS)
    return bundle
