"""A training with folds that is killed in its first trial and after it goes on as if undisturbed."""

import pytest

from tests.entry.conftest import read_manifest, run_tlray
from tests.faults.conftest import NETWORK, TWO_WORKERS, check_same_history, read_history
from tests.faults.processes import Watched, kill

OPTIONS = [*NETWORK, "--head-epochs", "2", "--finetune-epochs", "2", "--cache", "on", "--views", "2", "--folds", "3"]
OPTIONS += ["--lr-finetune", "1e-3", "--trials", "2"]

ONE_WORKER = ["--num-workers", "1", "--batch-size", "8"]


def test_killed_in_the_trial_and_after_it(tmp_path, small, notebook):
    """The worker killed in a trial, then the command in what follows; two workers of half the batch go on."""
    peace = tmp_path / "peace"
    run_tlray("train", "--data", str(small), "--output", str(peace), *OPTIONS, *ONE_WORKER)
    output = tmp_path / "bundle"
    options = ["--data", str(small), "--output", str(output), *OPTIONS]
    watched = Watched("train", *options, *ONE_WORKER)
    watched.wait_for("trial 1, epoch 3/4 (finetune)")
    kill(watched.find_workers()[0])
    watched.wait_for("workers were lost; 1 new ones go on after epoch")
    assert "of trial 1" in watched.output.splitlines()[-1]
    watched.wait_for("trial: phase 2 ")
    watched.wait_for("epoch 1/")
    watched.kill_driver()
    assert watched.output.count("trial 1, epoch 1/4 (head)") == 1
    told = Watched("train", *options, *TWO_WORKERS).finish()
    assert "an earlier run was stopped; going on after epoch 4 of trial 1 with 2 workers" in told
    assert "an earlier run was stopped; going on after epoch" in told.split("trial: phase 2")[1]
    assert "trial 1, epoch" not in told
    ours, theirs = (read_manifest(bundle)["metrics"] for bundle in (output, peace))
    assert ours["finetune_gain"]["mean"] == pytest.approx(theirs["finetune_gain"]["mean"], abs=1e-3)
    if theirs["finetune_gain"]["mean"] > 0:  # two of three folds were predicted by trials
        assert theirs["validation"]["images"] > 0.6 * read_manifest(peace)["training"]["counts"]["train"]
    same = abs(theirs["finetune_gain"]["mean"]) > 1e-3  # else rounding may decide on phase 2
    check_same_history(read_history(output)[: None if same else 2], read_history(peace)[: None if same else 2])
    if same:
        for name in ("images", "log_loss"):
            assert ours["validation"][name] == pytest.approx(theirs["validation"][name], rel=1e-3)
    assert not (tmp_path / "bundle-checkpoints").exists()
