"""The frozen base computed once: the same training, and features that later runs find."""

import hashlib
import json

import numpy as np
import pytest

from tests.entry.conftest import PRETRAINED, SEED, WEIGHTS, run_tlray

pytestmark = pytest.mark.usefixtures("notebook")

OPTIONS = ["--backbone", "mobilenet_v2", "--weights", str(WEIGHTS) if PRETRAINED else "none", "--image-size", "48"]
OPTIONS += [
    "--recipe",
    "seed",
    "--head-units",
    "16",
    "--head-epochs",
    "2",
    "--finetune-epochs",
    "2",
    "--views",
    "4",
    "--lr-head",
    "3e-4",
]
OPTIONS += ["--lr-finetune", "1e-4", "--num-workers", "2", "--batch-size", "8", "--precision", "float32"]
OPTIONS += ["--seed", SEED]
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def cached(digits, damaged, tmp_path_factory):
    """A training on features that engines computed, as for many images: its cache, its history, what it printed."""
    root = tmp_path_factory.mktemp("cached")
    options = ["--cache", "on", "--cache-dir", str(root / "cache")]
    output = train(digits, root / "bundle", *options, constants={"tlray.training.train:_BUILT_BY_WORKERS": -1})
    return root / "cache", read_history(root / "bundle"), output


def train(digits, bundle, *options, constants=None):
    arguments = ["--data", str(digits / "train"), "--output", str(bundle), *OPTIONS, *options]
    return run_tlray("train", *arguments, constants=constants)


def read_history(bundle):
    return json.loads((bundle / "training" / "history.json").read_text())


def check_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        for name in ("loss", "val_loss"):
            assert one[name] == pytest.approx(two[name], rel=TOLERANCE), (one, two)


def test_cached_equals_online_where_every_epoch_has_its_own_view(cached, digits, tmp_path):
    _, history, _ = cached
    output = train(digits, tmp_path / "online", "--cache", "off", "--dropout", "0")
    assert "feature cache: off, as asked for" in output
    check_equal(read_history(tmp_path / "online"), history)


def test_an_interrupted_build_goes_on_and_another_rate_reuses_it(cached, digits, tmp_path):
    root, history, first = cached
    assert "frozen base:" in first
    shards = sorted(root.rglob("pooled.npy"))
    shards[0].unlink()
    shards[-1].write_bytes(shards[-1].read_bytes()[:-8])
    options = ["--cache", "on", "--cache-dir", str(root), "--lr-finetune", "2e-4"]
    output = train(digits, tmp_path / "again", *options)
    assert "are cached already" in output
    assert "frozen base:" in output
    again = read_history(tmp_path / "again")
    check_equal(again[:2], history[:2])  # workers compute what engines do
    assert again[2]["loss"] != history[2]["loss"]


def test_features_of_another_seed_or_size_are_never_used(cached):
    from tlray.features.cache import FrozenBase, find_missing, plan_cache
    from tlray.images.augment import Augmentation
    from tlray.images.limits import Limits
    from tlray.model.precision import Precision

    def plan(**changes):
        values = {"seed": 0, "zoom": 0.2, "size": 48, "precision": "float32", "digest": "a", "boundary": "block_12_add"}
        values["on_gpus"] = False
        values |= changes
        precision = Precision(values["precision"], values["precision"])
        frozen = FrozenBase(
            "mobilenet_v2", values["size"], values["boundary"], None, "w", 0, precision, Limits(), values["on_gpus"]
        )
        rows = {"train": np.arange(4), "val": np.arange(4, 6), "test": np.arange(0)}
        augmentation = Augmentation(10.0, values["zoom"], True, values["seed"])
        digests = [hashlib.sha256(f"{values['digest']}{row}".encode()).hexdigest() for row in range(6)]
        needs = {0: ("pooled", "activations")}
        return plan_cache(str(cached[0]), frozen, rows, digests, augmentation, needs)[0]

    reference = plan()
    assert find_missing(reference).images == 6
    assert plan().sets["train"].uri == reference.sets["train"].uri
    for change in ({"seed": 1}, {"zoom": 0.3}):
        assert plan(**change).sets["train"].uri != reference.sets["train"].uri, change
    assert plan(digest="b").sets["train"].shards[0].name != reference.sets["train"].shards[0].name
    for change in ({"seed": 1}, {"zoom": 0.3}):  # validation images are not augmented
        assert plan(**change).sets["val"].uri == reference.sets["val"].uri, change
    for change in ({"size": 64}, {"precision": "bfloat16"}, {"boundary": "block_13_project_BN"}):
        assert plan(**change).uri != reference.uri, change
    assert plan(on_gpus=True).uri == reference.uri
    assert plan(precision="bfloat16", on_gpus=True).uri != plan(precision="bfloat16").uri
