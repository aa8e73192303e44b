"""Long runs: `make test-all` only."""

import os
import random
import shutil

import pytest

from tests.entry.conftest import read_manifest, run_tlray
from tests.faults.conftest import BASE_OPTIONS, LONG_OPTIONS, check_same_history, read_history
from tests.faults.processes import Watched, kill

KILLS = int(os.environ.get("TLRAY_TEST_KILLS", "10"))
MEMORY_IMAGES = (500, 4000)
MEMORY_GROWTH = 1.05


@pytest.mark.chaos
def test_a_training_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, small, undisturbed):
    """Workers and the driver are killed at random moments; one that ends before its kill is checked and begun anew."""
    moments = random.Random(7)
    bundle = tmp_path / "bundle"
    options = ["--data", str(small), "--output", str(bundle), *LONG_OPTIONS, "--num-workers", "2"]
    options += ["--batch-size", "4", "--max-failures", "-1"]
    kills = []
    while len(kills) < KILLS:
        watched = Watched("train", *options)
        line = moments.choice(["starting Ray", "training on", "(head)", "(finetune)"])
        pause_s = moments.uniform(0, 5)
        if not watched.wait_for_any([line, "bundle  "], pause_s):
            check_undisturbed(bundle, undisturbed)
            shutil.rmtree(bundle)
            continue
        workers = watched.find_workers()
        if workers and moments.random() < 0.6:
            kill(moments.choice(workers))
            kills.append(f"worker {pause_s:.1f} s behind {line!r}")
            watched.wait_for_any(["workers were lost", "bundle  "], moments.uniform(0, 4))
        watched.kill_driver()
        kills.append(f"driver {pause_s:.1f} s behind {line!r}")
    print("\n".join(kills))
    if not bundle.exists():
        run_tlray("train", *options)
    check_undisturbed(bundle, undisturbed)


def check_undisturbed(bundle, undisturbed):
    check_same_history(read_history(bundle), read_history(undisturbed))
    ours, theirs = (read_manifest(folder)["metrics"]["validation"] for folder in (bundle, undisturbed))
    assert ours["accuracy"] == theirs["accuracy"]


@pytest.mark.chaos
def test_46_four_workers_train_as_two(tmp_path, small, undisturbed):
    output = tmp_path / "bundle"
    options = [*LONG_OPTIONS, "--num-workers", "4", "--batch-size", "2"]
    run_tlray("train", "--data", str(small), "--output", str(output), *options)
    check_same_history(read_history(output), read_history(undisturbed))


@pytest.mark.chaos
def test_a_workers_memory_does_not_grow_with_the_images(tmp_path):
    """Peak of a worker's own memory in phase 2, at 500 and at 4,000 images."""
    import numpy as np
    from PIL import Image

    peaks = []
    for count in MEMORY_IMAGES:
        data = tmp_path / f"data-{count}"
        generator = np.random.default_rng(0)
        for index in range(count):
            path = data / str(index % 2) / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (96, 96, 3), np.uint8)).save(path)
        options = [*BASE_OPTIONS, "--image-size", "96", "--num-workers", "2", "--batch-size", "16", "--cache", "on"]
        options += ["--head-epochs", "1", "--finetune-epochs", "2", "--views", "1", "--val-fraction", "0"]
        options += ["--finetune-from", "block_2_add"]  # 221 MB of activations at 4,000 images
        watched = Watched("train", "--data", str(data), "--output", str(tmp_path / f"bundle-{count}"), *options)
        watched.wait_for("epoch 3/3 (finetune)", timeout_s=900)
        peaks.append(max(watched.read_peak_bytes(pid) for pid in watched.find_workers()))
        watched.finish()
    print(f"peak of a worker: {peaks[0] / 2**20:,.0f} MiB at 500 images, {peaks[1] / 2**20:,.0f} MiB at 4,000")
    assert peaks[1] <= MEMORY_GROWTH * peaks[0]
