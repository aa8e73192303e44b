from dataclasses import replace

import pytest
import yaml

from tests.model.data import OPTIONS
from tests.report.data import make_manifest
from tlray.model.card import write_card
from tlray.model.manifest import KeptEpoch, Manifest, Metrics


def make_trained(classes=("cat", "owl"), **parts: bool) -> Manifest:
    manifest = make_manifest(classes, **parts)
    return replace(manifest, training=replace(manifest.training, config=OPTIONS, resolved={}))


def read_header(card):
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_the_header_is_what_the_hub_reads():
    manifest = make_trained()
    header = read_header(write_card(manifest))
    assert (header["library_name"], header["pipeline_tag"]) == ("keras", "image-classification")
    (model,) = header["model-index"]
    assert model["name"] == manifest.model_id[:12]
    values = {one["dataset"]["name"]: one["metrics"][0]["value"] for one in model["results"]}
    assert values == {
        f"{role} images": round(measured.accuracy, 4) for role, measured in manifest.metrics.list_measured()
    }


def test_a_model_without_held_out_images_has_no_metrics():
    card = write_card(make_trained(validation=False, test=False))
    assert "model-index" not in read_header(card)
    assert "None: there were no held-out images." in card


def test_the_facts_are_those_of_the_manifest():
    card = write_card(make_trained())
    for fact in (
        "# inception\\_v3, 2 classes",
        "dense 1024 -> 2, softmax",
        "RGB, 299 x 299 pixels",
        "calibrated (temperature 1.347)",
        "| images | 459 train, 81 validation, 179 test |",
        "| phase 2, fine-tuning | 7 epochs of sgd behind layer block_12_add |",
        "| kept | epoch 10 |",
        "Before calibration the ECE on the validation images was 0.0940.",
        "Of the labels above the bundle's thresholds, 78% of the validation images, at least 95% are right, with 90% "
        "confidence",
        "tlray 0.2.0, tensorflow 2.21.0, keras 3.15.1, ray 2.60.0",
    ):
        assert fact in card, fact
    assert card.endswith("\n")


@pytest.mark.parametrize(
    ("phase", "name", "told"),
    [
        ("head", "out-of-fold", "Out-of-fold images are the training images, each predicted by a head"),
        ("finetune", "held-out", "Held-out images are one fold of the training images, predicted by a trial"),
    ],
)
def test_out_of_fold_images_are_explained(phase, name, told):
    trained = make_trained()
    metrics = replace(trained.metrics, out_of_fold=True, kept=KeptEpoch(phase, 10))
    card = write_card(replace(trained, metrics=metrics))
    assert told in card
    assert f"78% of the {name} images" in card
    assert f"| {name} | 81 |" in card
    assert f"{name} images" in [one["dataset"]["name"] for one in read_header(card)["model-index"][0]["results"]]


def test_a_pipe_in_a_path_stays_in_its_cell():
    assert "| from | `/photos \\| mine` |" in write_card(make_trained())


def test_an_imported_model_has_no_training():
    card = write_card(replace(make_manifest(), training=None, metrics=Metrics(), thresholds=None))
    assert "Not known: the model was imported." in card
    assert "| kept |" not in card


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("<b>*bold*</b>", "\\<b\\>\\*bold\\*\\</b\\>"),
        ("[link](x)", "\\[link\\](x)"),
        ("two\n\n# lines", "two \\# lines"),
        ("a|b`c\\d", "a\\|b\\`c\\\\d"),
    ],
)
def test_class_names_are_plain_text(name, expected):
    assert f"\n{expected}, owl\n" in write_card(make_trained((name, "owl")))


def test_many_classes_are_cut():
    card = write_card(make_trained([f"c{index}" for index in range(1061)]))
    assert "c58, c59, and 1,001 more\n" in card
    assert "c60" not in card
    assert "c59, and" not in write_card(make_trained([f"c{index}" for index in range(60)]))
