"""Faults 36 to 40 and 45 to 49: what a training takes, what it refuses with one sentence, and what it must yield."""

import os
import shutil

import numpy as np
import pytest

from tests.entry.conftest import read_manifest, run_tlray
from tests.faults.conftest import (
    BASE_OPTIONS,
    LONG_OPTIONS,
    LOSS_TOLERANCE,
    TWO_WORKERS,
    check_same_history,
    read_history,
)

pytestmark = pytest.mark.usefixtures("notebook")

GOLDEN_TOLERANCE = 1e-4  # 1e-5 with AVX-512; kernels for AVX2 add up in another order for another batch size


@pytest.fixture
def cached():
    """Options that cache features where trainings without a cluster do."""
    return ["--cache", "on", "--cache-dir", f"{os.environ['XDG_CACHE_HOME']}/tlray/features"]


def train(data, output, *options, expect=0):
    return run_tlray("train", "--data", str(data), "--output", str(output), *options, expect=expect)


def refuse(data, output, *options, expect=2):
    """Return what a training says that ends before it starts a Ray of its own."""
    arguments = ["--data", str(data), "--output", str(output), *options]
    printed = run_tlray("train", *arguments, expect=expect, alone=True)
    assert "starting Ray" not in printed
    return printed


def test_36_40_uneven_with_a_corrupt_image(tmp_path, write_digits, cached):
    data = write_digits(tmp_path / "data", 3, 11)
    damaged = data / "1" / "cut.png"
    damaged.write_bytes(sorted((data / "1").iterdir())[0].read_bytes()[:90])
    options = [*BASE_OPTIONS, *cached, "--num-workers", "2", "--batch-size", "8", "--val-fraction", "0"]
    refused = refuse(data, tmp_path / "bundle", *options, "--max-failed", "0.01", expect=1)
    assert f"left out: {damaged} (TRUNCATED" in refused
    assert "1 of 34 images cannot be used, --max-failed allows 0" in refused
    output = train(data, tmp_path / "bundle", *options, "--head-epochs", "2", "--finetune-epochs", "1")
    assert f"left out: {damaged} (TRUNCATED" in output
    assert "1 images that cannot be used" in output
    assert read_manifest(tmp_path / "bundle")["training"]["counts"]["train"] == 33
    history = read_history(tmp_path / "bundle")
    assert [(record["images"], record["steps"]) for record in history] == [(33, 3)] * 3
    assert all(0 <= record["accuracy"] <= 1 for record in history)


def test_37_tiny(tmp_path, write_digits, cached):
    data = write_digits(tmp_path / "data", 2, 1)
    options = [*BASE_OPTIONS, *cached, "--num-workers", "3", "--head-epochs", "1", "--finetune-epochs", "0"]
    train(data, tmp_path / "bundle", *options)
    assert [record["images"] for record in read_history(tmp_path / "bundle")] == [2]
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
        output = refuse(folder, tmp_path / "bundle")
        for text in [*expected, f"({folder}/CLASS/image.jpg)"]:
            assert text in output, (name, output)


def test_39_test_classes_differ(tmp_path, small, write_digits):
    other = write_digits(tmp_path / "other", 4, 1)
    output = refuse(small, tmp_path / "bundle", *BASE_OPTIONS, "--test-data", str(other))
    assert "here: 0, 1, 2, 3; trained: 0, 1, 2" in output


def test_45_diverged(tmp_path, small, cached):
    options = [*LONG_OPTIONS, *cached, *TWO_WORKERS]
    options += ["--head-epochs", "2", "--finetune-epochs", "2", "--lr-finetune", "3e38", "--clip-norm", "0"]
    output = train(small, tmp_path / "bundle", *options, expect=1)
    assert "the loss is not finite in phase finetune, epoch " in output
    assert ", step " in output
    assert "workers were lost" not in output
    states = list((tmp_path / "bundle-checkpoints").glob("run-*/epoch-*/state.npz"))
    assert states
    with np.load(max(states)) as state:
        assert all(np.isfinite(state[name]).all() for name in state.files)


def test_46_parity(tmp_path, small, undisturbed, cached):
    output = tmp_path / "bundle"
    told = train(small, output, *LONG_OPTIONS, *cached, "--num-workers", "1", "--batch-size", "8")
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
    from tlray.model.engine import open_engine

    bundle = tlray.load_bundle(str(undisturbed))
    golden = bundle.load_golden()
    pixels = np.stack([decode(image.data, bundle.image_size_px).pixels for image in golden])
    expected = np.stack([image.probabilities for image in golden])
    answers = {
        "keras": keras.saving.load_model(undisturbed / "model.keras").predict(pixels.astype(np.float32), verbose=0),
        "saved model": tf.saved_model.load(str(undisturbed / "saved_model")).serve(tf.constant(pixels)).numpy(),
        "engine": open_engine(bundle, 4, precision="float32").predict(pixels).probabilities,
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
    history = read_history(undisturbed)
    kept = history[manifest["metrics"]["kept"]["epoch"] - 1]
    assert (kept["val_loss"], kept["val_macro_f1"]) == pytest.approx((metrics["loss"], metrics["macro_f1"]))
    assert kept["val_weighted_loss"] == pytest.approx(kept["val_loss"])  # all classes weigh the same
    best = min((record for record in history if record["phase"] == "head"), key=lambda record: record["val_loss"])
    assert kept == (history[-1] if history[-1]["val_loss"] < best["val_loss"] else best)


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
    output = refuse(small, tmp_path / "bundle", "--backbone", "mobilenet_v2", "--weights", weights)
    for text in expected:
        assert text in output, output
