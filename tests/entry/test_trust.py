"""What tells whether to trust a label, through the real commands: thresholds, ood_score, audits, imported models."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest

import tlray
from tests.entry.conftest import TRAIN_OPTIONS, run_tlray
from tlray.images.decode import decode

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of Keras's own
    pytest.mark.usefixtures("notebook"),
]

HOSTILE = ["<script>alert(1)</script>.png", "x" * 5000 + ".png", "\u202egnp.\u05d0.png", 'a"b&c.png']


@pytest.fixture(scope="module")
def archive(digits, tmp_path_factory):
    """A tar of the test digits, among them names that nobody should have chosen."""
    path = tmp_path_factory.mktemp("archive") / "digits.tar"
    files = sorted(digits.glob("test/*/*.png"))
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for index, file in enumerate(files):
            name = HOSTILE[index] if index < len(HOSTILE) else f"{file.parent.name}/{file.name}"
            member = tarfile.TarInfo(name)
            data = file.read_bytes()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def labelled(bundle, archive, tmp_path_factory):
    output = tmp_path_factory.mktemp("labelled") / "labels"
    options = ["--min-probability", "0.5", "--embeddings", "--top-k", "3"]
    printed = run_tlray("predict", "--model", str(bundle), "--input", str(archive), "--output", str(output), *options)
    return output, printed


def test_labels_below_the_probability_need_a_review(labelled):
    output, printed = labelled
    rows = pq.read_table(output / "labels").to_pylist()
    assert len(rows) == 15
    assert [row["needs_review"] for row in rows] == [row["probability"] < 0.5 for row in rows]
    count = sum(row["needs_review"] for row in rows)
    assert json.loads((output / "_receipt.json").read_text())["needs_review"] == count
    assert f"needs review  {count:,}" in printed


def test_features_and_ood_scores_stand_beside_the_labels(labelled, bundle):
    output, _ = labelled
    table = pq.read_table(output / "labels")
    features = np.asarray(table["embedding"].combine_chunks().flatten()).reshape(table.num_rows, -1)
    assert features.shape == (15, tlray.load_bundle(str(bundle)).num_features)
    assert np.isfinite(features).all()
    assert (np.linalg.norm(features, axis=1) > 0).all()
    ood_score = table["ood_score"].to_numpy()
    assert ((ood_score > 0) & (ood_score < 5)).all()


def test_hostile_names_stay_text_in_the_report(labelled):
    output, _ = labelled
    page = (output / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "x" * 1000 not in page
    assert len(page) < 2**20


def test_thresholds_that_are_not_there_are_said_to_be_missing(digits, bundle, tmp_path):
    copy = tmp_path / "bundle"
    run_import(tmp_path, copy)
    options = ["--input", str(digits / "test"), "--output", str(tmp_path / "out"), "--min-probability", "auto"]
    printed = run_tlray("predict", "--model", str(copy), *options, expect=2)
    assert "give a probability from 0 to 1" in printed
    assert not (tmp_path / "out" / "labels").exists()


def test_evaluating_tells_what_to_trust(digits, bundle, tmp_path):
    output = tmp_path / "evaluation"
    run_tlray("evaluate", "--model", str(bundle), "--data", str(digits / "test"), "--output", str(output))
    result = json.loads((output / "evaluation.json").read_text())
    assert result["accuracy_low"] < result["accuracy"] <= result["accuracy_high"]
    assert sum(entry["images"] for entry in result["bins"]) == sum(result["confidences"]) == 15
    assert result["label_errors"]["checked"] == 15
    assert result["ood_score"]["median"] > 0
    wrong = 15 - round(result["accuracy"] * 15)
    assert len(result["worst"]) == wrong
    with (output / "label_errors.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 15
    assert f"{result['accuracy']:.1%}" in (output / "report.html").read_text()


def test_an_audit_ends_in_corrections_that_training_takes(digits, bundle, tmp_path):
    output = tmp_path / "labels"
    images = digits / "test"
    run_tlray("predict", "--model", str(bundle), "--input", str(images), "--output", str(output))
    run_tlray("audit", str(output), "--sample", "12")
    form = output / "audit" / "sample.csv"
    with form.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["correct_label"] = row["uri"].split("/")[-2]  # as somebody who looks would say
    with form.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    run_tlray("audit", str(output), "--answers", str(form))
    audited = json.loads((output / "audit" / "audit.json").read_text())
    right = sum(row["class_name"] == row["correct_label"] for row in rows)
    assert (audited["reviewed"], audited["right"]) == (12, right)
    assert audited["accuracy_low"] <= audited["accuracy"] <= audited["accuracy_high"]
    corrections = (output / "audit" / "corrections.csv").read_text().splitlines()
    names = {"0": 'ze"ro/<b>', "1": "=1+1", "2": "\u202eowt"}
    renamed = tmp_path / "renamed.csv"
    with renamed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label"])
        writer.writerows([uri, names[label]] for uri, label in csv.reader(corrections[1:]))
    trained = tmp_path / "bundle"
    options = ["--head-epochs", "1", "--finetune-epochs", "0", "--num-workers", "1", "--val-fraction", "0"]
    arguments = ["--data", str(renamed), "--output", str(trained), *TRAIN_OPTIONS, *options]
    run_tlray("train", *arguments)
    manifest = json.loads((trained / "bundle.json").read_text())
    assert manifest["training"]["counts"]["train"] == 12
    assert manifest["classes"] == sorted(names.values())
    assert manifest["calibration"]["temperature"] == 1.0  # nothing was held out
    page = (trained / "report.html").read_text()
    card = (trained / "README.md").read_text()
    assert "ro/<b>" not in page + card
    assert 'ze"ro/\\<b\\>' in card
    assert 'ze"ro/<b>' in run_tlray("show", str(trained))


def make_classifier(size=32, num_classes=3, last=None, plus=0.0):
    """A little network that gives logits unless `last` is another end, and never learnt anything."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((size, size, 3))
    features = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    features = keras.layers.GlobalAveragePooling2D()(features) + plus
    spread = keras.initializers.RandomNormal(stddev=3)
    activation = None if last == "lambda" else last
    outputs = keras.layers.Dense(num_classes, kernel_initializer=spread, activation=activation)(features)
    if last == "lambda":
        outputs = keras.layers.Lambda(lambda x: x)(outputs)
    return keras.Model(inputs, outputs)


def run_import(folder, output, *options, expect=0, **kinds):
    model = make_classifier(**kinds)
    model.save(folder / "theirs.keras")
    (folder / "classes.txt").write_text("0\n1\n2\n")
    arguments = [str(folder / "theirs.keras"), "--classes", str(folder / "classes.txt"), "--output", str(output)]
    return model, run_tlray("import", *arguments, "--scale", "0.00784313725", "--offset", "-1", *options, expect=expect)


def test_a_model_from_elsewhere_answers_as_it_did(digits, tmp_path):
    import keras

    model, printed = run_import(tmp_path, tmp_path / "bundle", plus=0.5)
    assert "a softmax is added" in printed
    paths = sorted(digits.glob("test/*/*.png"))
    pixels = np.stack([decode(path.read_bytes(), 32).pixels for path in paths]).astype(np.float32)
    expected = keras.ops.convert_to_numpy(keras.ops.softmax(model(pixels * 0.00784313725 - 1)))
    ours = keras.saving.load_model(tmp_path / "bundle" / "model.keras")(pixels).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    for path, row in zip(paths[::5], expected[::5], strict=True):
        answer = tlray.predict_image(str(path), str(tmp_path / "bundle"))
        assert answer.index == row.argmax()
        assert answer.probability == pytest.approx(row.max(), abs=1e-4)


def test_an_imported_model_is_calibrated_and_labels_archives(digits, tmp_path):
    output = tmp_path / "bundle"
    _, printed = run_import(tmp_path, output, "--val-data", str(digits / "train"), last="softmax")
    assert "a softmax is added" not in printed
    manifest = json.loads((output / "bundle.json").read_text())
    assert manifest["calibration"]["temperature"] > 1  # random answers with a wide spread are far too sure
    assert manifest["metrics"]["validation"]["log_loss"] < manifest["metrics"]["uncalibrated"]["log_loss"]
    labels = tmp_path / "labels"
    run_tlray("predict", "--model", str(output), "--input", str(digits / "test"), "--output", str(labels))
    rows = pq.read_table(labels / "labels").to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 15
    answer = tlray.predict_image(rows[0]["uri"], str(output))
    assert rows[0]["probability"] == pytest.approx(answer.probability, abs=2e-3)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"last": "lambda"}, "cannot be loaded safely"),
        ({"last": "sigmoid"}, "its outputs are sigmoids"),
        ({"num_classes": 4}, "as many names as the model has outputs, 4; got 3"),
    ],
)
def test_what_cannot_be_imported_is_refused_before_anything_is_written(tmp_path, kind, message):
    _, printed = run_import(tmp_path, tmp_path / "bundle", expect=2, **kind)
    assert message in printed
    assert not (tmp_path / "bundle").exists()


def test_datalab_takes_the_labels_as_they_are(labelled):
    """cleanlab's own look at labels, by features and by probabilities."""
    from cleanlab import Datalab

    output, _ = labelled
    table = pq.read_table(output / "labels").to_pandas()
    num_classes = len(table["top_indices"][0])
    probabilities = np.zeros((len(table), num_classes))
    for row, (indices, values) in enumerate(zip(table["top_indices"], table["top_probabilities"], strict=True)):
        probabilities[row, indices] = values
    # an image of each class more, since it cannot be known which classes the model says
    probabilities = np.concatenate([probabilities, 0.1 / num_classes + 0.9 * np.eye(num_classes)])
    given = np.concatenate([table["predicted_index"].to_numpy(), np.arange(num_classes)])
    given[0] = (given[0] + 1) % num_classes
    lab = Datalab(data={"label": given.tolist()}, label_name="label", verbosity=0)
    features = np.stack(table["embedding"].to_numpy())
    features = np.concatenate([features, features.mean(axis=0) + np.eye(num_classes, features.shape[1])])
    in_this_process = {"find_label_issues_kwargs": {"n_jobs": 1}}  # a fork beside TensorFlow's threads may never end
    issue_types = {"label": {"clean_learning_kwargs": in_this_process}, "near_duplicate": {}}
    lab.find_issues(pred_probs=probabilities, features=features, issue_types=issue_types)
    issues = lab.get_issues()
    assert len(issues) == len(table) + num_classes
    assert issues["label_score"].idxmin() == 0


def test_hugging_face_opens_the_labels_as_they_are(labelled, tmp_path):
    import datasets

    output, _ = labelled
    files = str(output / "labels" / "*.parquet")
    opened = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path), split="train")
    assert opened.num_rows == 15
    assert set(opened["status"]) == {"ok"}
    assert len(opened[0]["embedding"]) > 0
