import csv
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import tlray
from tests.entry.conftest import PRETRAINED, SEED, TRAIN_OPTIONS, WEIGHTS, read_manifest, run_tlray

pytestmark = pytest.mark.usefixtures("notebook")


def test_the_bundle_holds_what_it_should(bundle):
    manifest = read_manifest(bundle)
    assert manifest["classes"] == ["0", "1", "2"]
    names = manifest["files"]
    assert {"model.keras", "saved_model/saved_model.pb", "golden/golden.json"} <= names.keys()
    assert "# mobilenet\\_v2, 3 classes" in (bundle / "README.md").read_text()
    assert len(manifest["model_id"]) == 64


def test_the_history_has_one_record_an_epoch(bundle):
    history = json.loads((bundle / "training" / "history.json").read_text())
    phases = ["head"] * 6 + ["finetune"] * 2
    assert [(record["phase"], record["epoch"]) for record in history] == list(zip(phases, range(1, 9), strict=True))
    train = read_manifest(bundle)["training"]["counts"]["train"]
    for record in history:
        assert record["images"] == train
        assert record["steps"] == -(-train // 8)
        assert record["loss"] > 0
        assert 0 <= record["val_accuracy"] <= 1
    assert history[5]["loss"] < history[0]["loss"]


@pytest.mark.skipif(not PRETRAINED, reason="TLRAY_TEST_DATA holds no weights to start from")
def test_it_learns(bundle):
    """By chance a third of the 15 test images would be right; what a seed and a CPU make of them varies."""
    history = json.loads((bundle / "training" / "history.json").read_text())
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert read_manifest(bundle)["metrics"]["test"]["accuracy"] > 0.5


def test_a_damaged_training_image_is_left_out_and_named(trained, damaged):
    bundle, output = trained
    assert f"left out: {damaged} (TRUNCATED" in output
    manifest = read_manifest(bundle)
    counts = manifest["training"]["counts"]
    assert counts["train"] + counts["validation"] == 59
    assert counts["test"] == 15
    assert manifest["metrics"]["test"]["images"] == 15


def test_the_bundle_tells_what_its_probabilities_are_worth(bundle):
    manifest = read_manifest(bundle)
    metrics, calibration = manifest["metrics"], manifest["calibration"]
    validation = manifest["training"]["counts"]["validation"]
    assert calibration["temperature"] == 1.0  # fewer than 20 images say nothing
    assert calibration["images"] == 0
    assert metrics["validation"]["images"] == metrics["uncalibrated"]["images"] == validation
    assert calibration["ood_score"]["references"] == manifest["training"]["counts"]["train"]
    assert 0 < metrics["ood_score"]["percentiles"]["50"] <= metrics["ood_score"]["percentiles"]["99"]
    assert (manifest["thresholds"]["by_class"], metrics["validation"]["confusion"]) == (
        {},
        [],
    )  # in tables of their own
    opened = tlray.load_bundle(str(bundle)).manifest
    assert list(opened.thresholds.by_class) == list(opened.metrics.test.by_class) == manifest["classes"]
    assert sum(images for _, _, images in opened.metrics.validation.confusion) == validation
    with (bundle / "training" / "label_errors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["uri"] for row in rows}) == len(rows) == 59
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    page = (bundle / "report.html").read_text()
    assert f"{metrics['test']['accuracy']:.1%}" in page
    assert manifest["model_id"] in page


def test_noise_of_tensorflow_and_ray_is_silenced(trained):
    _, output = trained
    for noise in ("oneDNN", "cuda", "absl", "WARNING", "INFO", "ray.data", "pid="):
        assert noise not in output, output


def test_the_summary_tells_how_long_steps_waited_for_input(trained):
    bundle, output = trained
    assert "waits for input" in output
    history = json.loads((bundle / "training" / "history.json").read_text())
    assert all(record["wait_seconds"] <= record["train_seconds"] for record in history)
    assert sum(record["wait_seconds"] for record in history) > 0


def test_the_same_command_again_does_nothing(bundle, digits):
    before = (bundle / "bundle.json").stat().st_mtime_ns
    options = ["--data", str(digits / "train"), "--test-data", str(digits / "test"), "--output", str(bundle)]
    assert "Already trained" in run_tlray("train", *options, *TRAIN_OPTIONS)
    assert (bundle / "bundle.json").stat().st_mtime_ns == before
    refused = run_tlray("train", *options, *TRAIN_OPTIONS, "--seed", str(int(SEED) + 1), expect=2)
    assert "differing: seed" in refused


def test_the_default_recipe_starts_from_a_solved_head_and_keeps_what_gains(digits, damaged, tmp_path):
    bundle = tmp_path / "bundle"
    printed = run_tlray(
        "train", "--data", str(digits / "train"), "--test-data", str(digits / "test"), "--output", str(bundle),
        "--backbone", "mobilenet_v2", "--weights", str(WEIGHTS) if PRETRAINED else "none", "--image-size", "96",
        "--finetune-epochs", "2", "--num-workers", "2", "--batch-size", "4", "--no-horizontal-flip", "--cache", "on",
        "--seed", SEED, "--precision", "float32",
    )  # fmt: skip
    assert "head: solved on " in printed
    config = yaml.safe_load((bundle / "training" / "config.yaml").read_text())
    assert (config["tune"], config["head_units"], config["mixup"], config["clip_norm"]) == ("auto", [], 0.2, 1.0)
    history = json.loads((bundle / "training" / "history.json").read_text())
    assert [record["phase"] for record in history] == ["head"] * 3 + ["finetune"] * 2
    manifest = read_manifest(bundle)
    assert (manifest["training"]["resolved"]["folds"], config["folds"]) == (5, None)
    metrics, counts = manifest["metrics"], manifest["training"]["counts"]
    gain, kept = metrics["finetune_gain"], metrics["kept"]
    usable = len(list((digits / "train").rglob("*.png"))) - 1  # one is damaged
    assert (counts["validation"], counts["train"]) == (0, usable)
    # out-of-fold figures are those of all epochs of the head, and phase 2 has none
    assert len({record["val_loss"] for record in history[:3]}) == 1
    assert {record["val_loss"] for record in history[3:]} == {None}
    wins = gain["mean"] > 0
    assert (kept["phase"], kept["epoch"]) == (("finetune", 5) if wins else ("head", 3))
    fold = counts["train"] / 5
    assert metrics["validation"]["images"] == pytest.approx(fold if wins else counts["train"], abs=3)
    assert [record["images"] for record in history[:3]] == [counts["train"]] * 3
    tuned = counts["train"] - (0 if wins else fold)  # epochs that are left out are those of the trial
    assert [record["images"] for record in history[3:]] == pytest.approx([tuned] * 2, abs=3)
    assert f"on the fold that its trial left out: {gain['mean']:+.3f}" in " ".join(printed.split())
    assert "trial, epoch 5/5 (finetune)" in printed
    if PRETRAINED:  # before the first epoch it knows these digits
        assert history[0]["accuracy"] > 0.8
        assert history[0]["val_loss"] < 0.9  # by chance 1.1


def test_archives_and_tables_are_trained_and_measured_on(write_digits, tmp_path):
    """A WebDataset shard to train on, a Hugging Face table of several row groups to test on."""
    train, test = write_digits(tmp_path / "train", 3, 8), write_digits(tmp_path / "test", 3, 4, 20)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for number, path in enumerate(sorted(train.rglob("*.png"))):
            tar.add(path, f"{number:03}.png")
            info = tarfile.TarInfo(f"{number:03}.cls")
            info.size = len(label := path.parent.name.encode())
            tar.addfile(info, io.BytesIO(label))
    paths = sorted(test.rglob("*.png"), key=lambda path: path.name)  # the classes mixed
    features = {"label": {"names": ["0", "1", "2"], "_type": "ClassLabel"}}
    images = pa.array([{"bytes": path.read_bytes(), "path": path.name} for path in paths])
    table = pa.table({"image": images, "label": [int(path.parent.name) for path in paths]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "test.parquet", row_group_size=5)
    bundle = tmp_path / "bundle"
    run_tlray(
        "train", "--data", str(tmp_path / "train.tar"), "--test-data", str(tmp_path / "test.parquet"),
        "--output", str(bundle), "--backbone", "mobilenet_v2", "--weights", str(WEIGHTS) if PRETRAINED else "none",
        "--image-size", "96", "--head-epochs", "1", "--finetune-epochs", "0", "--precision", "float32",
    )  # fmt: skip
    manifest = read_manifest(bundle)
    assert manifest["classes"] == ["0", "1", "2"]
    assert manifest["training"]["counts"] == {"train": 24, "validation": 0, "test": 12}
    measured = manifest["metrics"]["test"]
    assert measured["images"] == 12
    if PRETRAINED:
        assert measured["accuracy"] > 0.6  # by chance 0.33
    options = ["--model", str(bundle), "--precision", "float32", "--output"]
    run_tlray("evaluate", "--data", str(tmp_path / "test.parquet"), *options, str(tmp_path / "table"))
    run_tlray("evaluate", "--data", str(test), *options, str(tmp_path / "folders"))
    table, folders = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("table", "folders"))
    assert table["log_loss"] == pytest.approx(folders["log_loss"], rel=1e-4)
    assert table["log_loss"] == pytest.approx(measured["log_loss"], rel=1e-3)
    assert all("test.parquet#" in worst["uri"] for worst in table["worst"])


def test_held_out_images_choose_the_phase(digits, damaged, tmp_path):
    bundle = tmp_path / "bundle"
    printed = run_tlray(
        "train", "--data", str(digits / "train"), "--output", str(bundle), "--backbone", "mobilenet_v2",
        "--weights", "none", "--image-size", "48", "--finetune-epochs", "1", "--head-epochs", "1", "--num-workers", "2",
        "--batch-size", "4", "--cache", "on", "--val-fraction", "0.3", "--seed", SEED, "--precision", "float32",
    )  # fmt: skip
    history = json.loads((bundle / "training" / "history.json").read_text())
    metrics = read_manifest(bundle)["metrics"]
    gain, kept = metrics["finetune_gain"], metrics["kept"]
    assert gain["mean"] == pytest.approx(history[0]["val_loss"] - history[1]["val_loss"], abs=1e-4)
    assert kept["phase"] == ("finetune" if gain["mean"] > 0 else "head")
    assert metrics["validation"]["loss"] == pytest.approx(history[kept["epoch"] - 1]["val_loss"])
    assert f"log-loss saved against phase 1: {gain['mean']:+.3f}" in " ".join(printed.split())


def test_all_options_of_a_trainer_work_together(digits, damaged, tmp_path):
    bundle = tmp_path / "bundle"
    run_tlray(
        "train", "--data", str(digits / "train"), "--output", str(bundle), "--backbone", "mobilenet_v2",
        "--weights", "none", "--image-size", "48", "--head-units", "16", "--num-workers", "2", "--batch-size", "8",
        "--head-epochs", "6", "--finetune-epochs", "2", "--precision", "bfloat16", "--early-stopping", "1",
        "--class-weights", "balanced", "--schedule", "cosine", "--warmup-epochs", "0.5", "--label-smoothing", "0.1",
        "--dropout", "0.3", "--clip-norm", "1", "--cache", "on", "--select", "macro_f1", "--lr-head", "1e-12",
    )  # fmt: skip
    config = yaml.safe_load((bundle / "training" / "config.yaml").read_text())
    assert (config["precision"], config["class_weights"], config["dropout"]) == ("bfloat16", "balanced", 0.3)
    history = json.loads((bundle / "training" / "history.json").read_text())
    # at such a rate the second epoch is no better than the first: phase 1 is stopped early
    assert [record["phase"] for record in history] == ["head", "head", "finetune", "finetune"]
    assert history[3]["learning_rate"] < history[2]["learning_rate"] / 2  # the cosine has come down to its end
    assert all(0 < record["loss"] < 10 for record in history)
    metrics = read_manifest(bundle)["metrics"]
    kept = history[metrics["kept"]["epoch"] - 1]
    assert kept["val_macro_f1"] == max(record["val_macro_f1"] for record in history)
    assert kept["val_macro_f1"] == pytest.approx(metrics["validation"]["macro_f1"])
    assert kept["val_weighted_loss"] != kept["val_loss"]  # the classes have 19 and 20 images
    events = sorted(path.parent.name for path in (bundle / "training" / "tensorboard").rglob("events.*"))
    assert events == ["train", "validation"]


def test_show_prints_it_readably(bundle):
    output = run_tlray("show", str(bundle))
    for text in ("3: 0, 1, 2", "finetune", read_manifest(bundle)["model_id"], "test accuracy"):
        assert text in output


def test_a_test_set_of_other_classes_is_refused(digits, tmp_path, write_digits):
    write_digits(tmp_path / "other", 4, 1)
    output = run_tlray(
        "train", "--data", str(digits / "train"), "--test-data", str(tmp_path / "other"),
        "--output", str(tmp_path / "new"), *TRAIN_OPTIONS, expect=2,
    )  # fmt: skip
    assert "here: 0, 1, 2, 3; trained: 0, 1, 2" in output


@pytest.mark.parametrize("damage", ["weight", "missing", "classes", "extra class"])
def test_a_changed_bundle_is_refused_before_any_image_is_read(bundle, digits, tmp_path, damage):
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = read_manifest(copy)
    if damage == "weight":
        data = bytearray((copy / "saved_model" / "saved_model.pb").read_bytes())
        data[len(data) // 2] ^= 1
        (copy / "saved_model" / "saved_model.pb").write_bytes(data)
    elif damage == "missing":
        (copy / "model.keras").unlink()
    elif damage == "classes":
        manifest["classes"] = manifest["classes"][::-1]
    else:
        manifest["classes"].append("3")
    (copy / "bundle.json").write_text(json.dumps(manifest))
    output = run_tlray(
        "predict", "--model", str(copy), "--input", str(digits / "test"), "--output", str(tmp_path / "labels"), expect=2
    )
    assert "is not what was saved" in output
    assert not (tmp_path / "labels").exists()
