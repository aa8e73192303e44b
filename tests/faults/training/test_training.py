"""Faults 36 to 49: what a training survives, and what it refuses with one sentence."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.entry.conftest import read_manifest, run_tlray
from tests.faults.conftest import (
    BASE_OPTIONS,
    LONG_OPTIONS,
    LOSS_TOLERANCE,
    check_same_history,
    read_history,
)
from tests.faults.processes import Watched, kill

TWO_WORKERS = ["--num-workers", "2", "--batch-size", "4"]
GOLDEN_TOLERANCE = 1e-5


def train(data, output, *options, expect=0):
    return run_tlray("train", "--data", str(data), "--output", str(output), *options, expect=expect)


def test_36_uneven(tmp_path, write_digits):
    data = write_digits(tmp_path / "data", 3, 11)
    train(
        data, tmp_path / "bundle", *BASE_OPTIONS, "--num-workers", "2", "--batch-size", "8", "--val-fraction", "0",
        "--head-epochs", "2", "--finetune-epochs", "1",
    )  # fmt: skip
    history = read_history(tmp_path / "bundle")
    assert [(record["images"], record["steps"]) for record in history] == [(33, 3)] * 3
    assert all(0 <= record["accuracy"] <= 1 for record in history)


def test_37_tiny(tmp_path, write_digits):
    data = write_digits(tmp_path / "data", 2, 1)
    options = [*BASE_OPTIONS, "--num-workers", "3", "--head-epochs", "1", "--finetune-epochs", "1"]
    train(data, tmp_path / "bundle", *options)
    assert [record["images"] for record in read_history(tmp_path / "bundle")] == [2, 2]
    assert read_manifest(tmp_path / "bundle")["training"]["counts"] == {"train": 2, "validation": 0, "test": 0}


def test_38_bad_folder(tmp_path, write_digits):
    (tmp_path / "flat").mkdir()
    for path in write_digits(tmp_path / "source", 1, 2).glob("*/*"):
        shutil.copy(path, tmp_path / "flat")
    empty = write_digits(tmp_path / "empty", 2, 2)
    (empty / "nothing").mkdir()
    nested = write_digits(tmp_path / "nested" / "0", 2, 2).parent
    write_digits(tmp_path / "nested", 2, 2)
    cases = {
        "no class folders": (tmp_path / "flat", ["got no class folders", "2 images beside the class folders"]),
        "one class": (tmp_path / "source", ["one class only"]),
        "empty class": (empty, ["nothing"]),
        "nested folders": (nested, ["0/0/digit_", "nested"]),
    }
    for name, (folder, expected) in cases.items():
        output = train(folder, tmp_path / "bundle", expect=2)
        for text in [*expected, f"({folder}/CLASS/image.jpg)"]:
            assert text in output, (name, output)
        assert "starting Ray" not in output, name


def test_39_test_classes_differ(tmp_path, small, write_digits):
    other = write_digits(tmp_path / "other", 4, 1)
    output = train(small, tmp_path / "bundle", *BASE_OPTIONS, "--test-data", str(other), expect=2)
    assert "here: 0, 1, 2, 3; trained: 0, 1, 2" in output
    assert "starting Ray" not in output


def test_40_corrupt_training_image(tmp_path, small):
    data = tmp_path / "data"
    shutil.copytree(small, data)
    damaged = sorted((data / "1").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:90])
    refused = train(data, tmp_path / "bundle", *BASE_OPTIONS, "--max-failed", "0.01", expect=1)
    assert f"left out: {damaged} (TRUNCATED" in refused
    assert "1 of 48 images cannot be decoded, --max-failed allows 0" in refused
    assert "starting Ray" not in refused
    output = train(data, tmp_path / "bundle", *BASE_OPTIONS, "--head-epochs", "1", "--finetune-epochs", "0")
    assert f"left out: {damaged} (TRUNCATED" in output
    assert "1 images that cannot be decoded" in output
    counts = read_manifest(tmp_path / "bundle")["training"]["counts"]
    assert counts["train"] + counts["validation"] == 47


def test_41_workers_killed_and_stopped_dead(tmp_path, small, undisturbed):
    """A killed worker, and one that is there but answers nothing: training goes on without a hand, as undisturbed."""
    watched = Watched(
        "train", "--data", str(small), "--output", str(tmp_path / "bundle"), *LONG_OPTIONS, *TWO_WORKERS,
        "--collective-timeout", "10",
    )  # fmt: skip
    watched.wait_for("epoch 1/10 (head)")
    kill(watched.find_workers()[0])
    watched.wait_for("epoch 6/10 (finetune)")
    watched.stop(watched.find_workers()[-1])
    output = watched.finish()
    assert output.count("workers were lost; 2 new ones go on after epoch") == 2
    check_same_history(read_history(tmp_path / "bundle"), read_history(undisturbed))
    ours, theirs = read_manifest(tmp_path / "bundle"), read_manifest(undisturbed)
    assert ours["metrics"]["validation"]["accuracy"] == theirs["metrics"]["validation"]["accuracy"]


def test_42_44_driver_killed_and_fewer_workers(tmp_path, small, undisturbed):
    """Killed in each phase, the same command goes on: once with one worker of twice the batch, then with two again."""
    output = tmp_path / "bundle"
    options = ["--data", str(small), "--output", str(output), *LONG_OPTIONS]
    watched = Watched("train", *options, *TWO_WORKERS)
    watched.wait_for("epoch 3/10 (head)")
    watched.kill_driver()
    watched = Watched("train", *options, "--num-workers", "1", "--batch-size", "8")
    watched.wait_for("epoch 7/10 (finetune)")
    watched.kill_driver()
    assert "with 1 workers" in watched.output
    assert not output.exists()
    last = run_tlray("train", *options, *TWO_WORKERS)
    for told in (watched.output, last):
        assert "an earlier run was stopped; going on after epoch" in told
        assert "epoch 1/10" not in told
    check_same_history(read_history(output), read_history(undisturbed))
    assert not (tmp_path / "bundle-checkpoints").exists()


WRITE_STATES = """
import sys, numpy as np
from tests.factories import make_epoch
from tlray.training.checkpoint import TrainingState, save_state
for epoch in range(1, 1000):
    state = TrainingState(history=[make_epoch(number + 1) for number in range(epoch)])
    state.weights = {"head/a/kernel": np.full(6_000_000, epoch, np.float32)}
    save_state(sys.argv[1], state)
    print(epoch, flush=True)
"""


def test_43_killed_while_saving(tmp_path):
    from tlray.training.checkpoint import load_state

    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE_STATES, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
        )
        done = [int(writer.stdout.readline()) for _ in range(3)][-1]
        while not list((tmp_path / "run").glob("*/.*.partial")):
            time.sleep(0.001)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        state = load_state(str(tmp_path / "run"))
        assert state.epoch >= done
        np.testing.assert_array_equal(state.weights["head/a/kernel"], np.full(6_000_000, state.epoch, np.float32))
        shutil.rmtree(tmp_path / "run")


def test_45_diverged(tmp_path, small):
    options = [*BASE_OPTIONS, *TWO_WORKERS, "--head-epochs", "2", "--finetune-epochs", "2", "--lr-finetune", "1e30"]
    output = train(small, tmp_path / "bundle", *options, expect=1)
    assert "the loss is not finite in phase finetune, epoch " in output
    assert ", step " in output
    assert "workers were lost" not in output
    states = list((tmp_path / "bundle-checkpoints").glob("run-*/epoch-*/state.npz"))
    assert states
    with np.load(max(states)) as state:
        assert all(np.isfinite(state[name]).all() for name in state.files)


@pytest.mark.parametrize(("workers", "batch"), [(1, 8), pytest.param(4, 2, marks=pytest.mark.chaos)])
def test_46_parity(tmp_path, small, undisturbed, workers, batch):
    output = tmp_path / "bundle"
    told = train(small, output, *LONG_OPTIONS, "--num-workers", str(workers), "--batch-size", str(batch))
    assert "are cached from an earlier run" in told
    assert "frozen base:" not in told
    check_same_history(read_history(output), read_history(undisturbed))


def test_47_batchnorm(undisturbed):
    import keras

    from tests.entry.conftest import PRETRAINED, WEIGHTS
    from tlray.model.network import BASE, build_base, list_batchnorm

    weights = WEIGHTS.read_bytes() if PRETRAINED else None
    before = list_batchnorm(build_base("mobilenet_v2", 48, weights=weights, seed=0))
    model = keras.saving.load_model(undisturbed / "model.keras")
    after = list_batchnorm(model.get_layer(BASE))
    assert len(before) == len(after) > 50
    for one, two in zip(before, after, strict=True):
        for name in ("moving_mean", "moving_variance"):
            np.testing.assert_array_equal(getattr(one, name).numpy(), getattr(two, name).numpy())


def test_48_train_equals_serve(undisturbed):
    import keras
    import tensorflow as tf

    import tlray
    from tlray.images.decode import decode
    from tlray.model.engine import Engine

    bundle = tlray.load_bundle(str(undisturbed))
    golden = bundle.load_golden()
    pixels = np.stack([decode(image.data, bundle.image_size_px).pixels for image in golden])
    expected = np.stack([image.probabilities for image in golden])
    answers = {
        "keras": keras.saving.load_model(undisturbed / "model.keras").predict(pixels.astype(np.float32), verbose=0),
        "saved model": tf.saved_model.load(str(undisturbed / "saved_model")).serve(tf.constant(pixels)).numpy(),
        "engine": Engine(undisturbed / "saved_model", bundle.image_size_px, 4).predict(pixels).probabilities,
    }
    for name, answer in answers.items():
        np.testing.assert_allclose(answer, expected, atol=GOLDEN_TOLERANCE, err_msg=name)


def test_48_the_saved_weights_are_those_that_validation_saw(undisturbed, small):
    """The live network's validation figures, measured again with the saved model on the same images."""
    import hashlib

    import keras

    from tlray.images.decode import decode
    from tlray.metrics.calibration import apply_temperature, compute_log_loss
    from tlray.training.dataset import choose_validation

    paths = sorted(small.glob("*/*"), key=lambda path: path.relative_to(small).as_posix())
    labels = np.array([int(path.parent.name) for path in paths], np.int32)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    chosen = np.flatnonzero(choose_validation(digests, labels, 0.2))
    pixels = np.stack([decode(paths[row].read_bytes(), 48).pixels for row in chosen]).astype(np.float32)
    answers = keras.saving.load_model(undisturbed / "model.keras").predict(pixels, verbose=0)
    manifest = read_manifest(undisturbed)
    metrics = manifest["metrics"]["validation"]
    assert metrics["images"] == len(chosen)
    assert compute_log_loss(answers, labels[chosen]) == pytest.approx(metrics["log_loss"], rel=LOSS_TOLERANCE)
    trained = apply_temperature(answers, 1 / manifest["calibration"]["temperature"])
    assert compute_log_loss(trained, labels[chosen]) == pytest.approx(metrics["loss"], rel=LOSS_TOLERANCE)
    assert (answers.argmax(1) == labels[chosen]).mean() == pytest.approx(metrics["accuracy"])


@pytest.mark.parametrize("kind", ["page", "pointer", "architecture", "no network"])
def test_49_bad_weights_file(tmp_path, small, kind, monkeypatch):
    path = tmp_path / "weights.h5"
    if kind == "page":
        path.write_text("<!DOCTYPE html><html>Not found</html>")
        expected = ["is not a weights file but an HTML page", str(path), "give the .h5 of a mobilenet_v2"]
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        expected = ["a Git LFS pointer (run git lfs pull)", str(path)]
    elif kind == "architecture":
        import h5py

        with h5py.File(path, "w") as file:
            file.create_dataset("layers/conv2d/vars/0", data=np.zeros((3, 3, 3, 32), np.float32))
        expected = ["is not of a mobilenet_v2 without its top", str(path), "another --backbone"]
    else:
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "empty"))
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        expected = ["the ImageNet weights of mobilenet_v2 cannot be fetched", "--weights PATH", "--weights none"]
    weights = "imagenet" if kind == "no network" else str(path)
    output = train(small, tmp_path / "bundle", "--backbone", "mobilenet_v2", "--weights", weights, expect=2)
    for text in expected:
        assert text in output, output
    assert "starting Ray" not in output
