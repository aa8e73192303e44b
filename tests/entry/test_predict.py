import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

import tlray
from tests.entry.conftest import run_tlray
from tlray.errors import Code, FetchError, StoppedError
from tlray.images.decode import decode
from tlray.model.bundle import GOLDEN

pytestmark = pytest.mark.usefixtures("notebook")

AWKWARD = {"empty.jpg": b"", "page.jpg": b"<!DOCTYPE html>", "cut.png": None}
GOLDEN_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def archive(digits, tmp_path_factory):
    """The test digits in one folder beside awkward files: 15 good ones, 3 that fail, 1 that is no image."""
    folder = tmp_path_factory.mktemp("archive")
    paths = sorted(digits.glob("test/*/*.png"))
    for path in paths:
        shutil.copy(path, folder / f"{path.parent.name}_{path.name}")
    for name, data in AWKWARD.items():
        (folder / name).write_bytes(paths[0].read_bytes()[:120] if data is None else data)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def labelled(bundle, archive, tmp_path_factory):
    """The archive's labels, made as on a laptop, on a Ray of the command's own."""
    output = tmp_path_factory.mktemp("labelled") / "labels"
    options = ["--model", str(bundle), "--input", str(archive), "--output", str(output), "--top-k", "2"]
    options += ["--rows-per-part", "7", "--precision", "float32"]
    printed = run_tlray("predict", *options, alone=True)
    return output, options, printed


def test_every_input_has_one_row(labelled):
    output, _, _ = labelled
    table = pq.read_table(output / "labels").sort_by("row_id")
    assert table["row_id"].to_pylist() == list(range(18))
    rows = {row["uri"].rpartition("/")[2]: row for row in table.to_pylist()}
    assert rows["empty.jpg"]["status"] == "EMPTY"
    assert rows["page.jpg"]["status"] == "UNSUPPORTED"
    assert rows["cut.png"]["status"] == "TRUNCATED"
    good = [row for row in rows.values() if row["status"] == "ok"]
    assert len(good) == 15
    for row in rows.values():
        assert (row["predicted_index"] is None) == (row["status"] != "ok")
        assert (row["error"] is None) == (row["status"] == "ok")
        assert row["model_id"]
    for row in good:
        assert (row["width"], row["height"]) == (48, 48)
        assert row["top_indices"][0] == row["predicted_index"]
        assert row["top_class_names"][0] == row["class_name"] == str(row["predicted_index"])
        assert row["top_probabilities"][0] == row["probability"] >= row["top_probabilities"][1]


def test_the_receipt_proves_it(labelled):
    output, _, _ = labelled
    receipt = json.loads((output / "_receipt.json").read_text())
    assert (receipt["planned"], receipt["labelled"], receipt["failed"], receipt["excluded"]) == (18, 15, 3, 1)
    assert receipt["failed_by_code"] == {"EMPTY": 1, "TRUNCATED": 1, "UNSUPPORTED": 1}
    assert [part["rows"] for part in receipt["parts"]] == [7, 7, 4]
    assert not (output / "_progress.json").exists()
    excluded = pq.read_table(output / "_plan" / "excluded-00000.parquet").to_pylist()
    assert [row["uri"].rpartition("/")[2] for row in excluded] == ["notes.txt"]


def test_a_single_file_prints_its_answer(bundle, archive, labelled):
    path = next(archive.glob("0_*.png"))
    printed = run_tlray("predict", "--model", str(bundle), "--input", str(path), timeout_s=60)
    row = next(row for row in pq.read_table(labelled[0] / "labels").to_pylist() if row["uri"] == str(path))
    assert f"{row['class_name']}  {row['probability']:.4f}" in printed


def test_predict_image_gives_what_the_job_gave(bundle, labelled):
    for row in pq.read_table(labelled[0] / "labels").to_pylist():
        if row["status"] == "ok":
            prediction = tlray.predict_image(row["uri"], str(bundle))
            assert (prediction.index, prediction.class_name) == (row["predicted_index"], row["class_name"])
            assert prediction.probability == pytest.approx(row["probability"], abs=GOLDEN_TOLERANCE)
    with pytest.raises(FetchError) as caught:
        tlray.predict_image(str(bundle / "none.jpg"), str(bundle))
    assert caught.value.code is Code.NOT_FOUND


def test_predict_image_loads_a_bundle_once(bundle, labelled, monkeypatch):
    from tlray.prediction import single_image as single

    uri = next(row["uri"] for row in pq.read_table(labelled[0] / "labels").to_pylist() if row["status"] == "ok")
    tlray.predict_image(uri, str(bundle))
    monkeypatch.setattr(single, "load_bundle", lambda uri: pytest.fail("loaded again"))
    for _ in range(179):
        tlray.predict_image(uri, str(bundle))
    opened = single._open_bundle(str(bundle))
    assert tlray.predict_image(uri, opened).class_name


def test_predict_image_refuses_a_bundle_that_does_not_repeat_its_golden_answers(bundle, archive, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    golden = json.loads((copy / GOLDEN).read_text())
    for image in golden["images"]:
        image["probabilities"] = [*image["probabilities"][1:], image["probabilities"][0]]
    (copy / GOLDEN).write_text(json.dumps(golden))
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["files"][GOLDEN] = hashlib.sha256((copy / GOLDEN).read_bytes()).hexdigest()
    (copy / "bundle.json").write_text(json.dumps(manifest))
    path = str(next(archive.glob("0_*.png")))
    with pytest.raises(StoppedError, match="does not repeat its golden predictions here"):
        tlray.predict_image(path, str(copy))
    printed = run_tlray("predict", "--model", str(copy), "--input", path, timeout_s=60, expect=1)
    assert "does not repeat its golden predictions here" in printed


def test_every_road_gives_the_golden_answers(bundle, tmp_path):
    import keras
    import tensorflow as tf

    opened = tlray.load_bundle(str(bundle))
    golden = opened.load_golden()
    assert golden
    pixels = np.stack([decode(entry.data, opened.image_size_px).pixels for entry in golden])
    expected = np.stack([entry.probabilities for entry in golden])
    # the answers of the live model, kept at the end of training
    loaded = keras.models.load_model(bundle / "model.keras")
    np.testing.assert_allclose(loaded(pixels.astype(np.float32), training=False), expected, atol=GOLDEN_TOLERANCE)
    served = tf.saved_model.load(str(bundle / "saved_model"))
    np.testing.assert_allclose(served.serve(pixels), expected, atol=GOLDEN_TOLERANCE)
    np.testing.assert_allclose(
        served.signatures["serving_default"](tf.constant(pixels))["probabilities"], expected, atol=GOLDEN_TOLERANCE
    )
    output = tmp_path / "labels"
    run_tlray(
        "predict", "--model", str(bundle), "--input", *(str(bundle / entry.file) for entry in golden),
        "--output", str(output), "--top-k", "3", "--precision", "float32",
    )  # fmt: skip
    rows = {row["uri"]: row for row in pq.read_table(output / "labels").to_pylist()}
    for entry in golden:
        row = rows[str(bundle / entry.file)]
        answered = dict(zip(row["top_indices"], row["top_probabilities"], strict=True))
        np.testing.assert_allclose([answered[index] for index in range(3)], entry.probabilities, atol=GOLDEN_TOLERANCE)


def test_evaluate_agrees_with_training_and_the_labels(bundle, digits, tmp_path):
    output = tmp_path / "evaluation"
    options = ["--data", str(digits / "test"), "--output", str(output), "--precision", "float32"]
    printed = run_tlray("evaluate", "--model", str(bundle), *options)
    result = json.loads((output / "evaluation.json").read_text())
    expected = tlray.load_bundle(str(bundle)).manifest.metrics.test
    assert result["accuracy"] == pytest.approx(expected.accuracy)
    assert result["confusion"] == expected.confusion
    assert f"{result['accuracy']:.4f}" in printed
    assert "<svg" in (output / "report.html").read_text()


def test_a_probe_tells_the_speed_and_labels_nothing(bundle, digits, tmp_path):
    output = tmp_path / "out"
    printed = run_tlray(
        "plan", "--input", str(digits / "test"), "--output", str(output),
        "--probe", "8", "--model", str(bundle), "--price-per-hour", "2",
    )  # fmt: skip
    assert "8 images, 0 of them without a label" in printed
    assert "hours for the whole plan" in printed
    probe = json.loads((output / "_plan" / "_probe.json").read_text())
    assert probe["images"] == 8
    cores_s = probe["fetch_cpu_s"] + probe["decode_cpu_s"] + probe["infer_s"]
    assert probe["images_per_s"] == pytest.approx(
        min(probe["cores"] / cores_s, probe["cores"] / probe["fetch_s"]), rel=0.01
    )
    assert probe["cost"] == pytest.approx(2 * probe["hours"])
    assert not (output / "labels").exists()
