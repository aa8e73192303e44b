from dataclasses import replace

import pytest

from tests.report import data
from tests.report.pages import parse, read_jpegs, read_nothing
from tlray.metrics.intervals import LossGain
from tlray.model.manifest import KeptEpoch
from tlray.report.training import render_training


def test_the_page_shows_the_numbers_of_the_training():
    manifest = data.make_manifest()
    label_errors = data.make_label_errors([f"/photos/{index}.jpg" for index in range(100)], data.CLASSES)
    asked = []

    def read(keys):
        asked.extend(keys)
        return read_jpegs(keys)

    page = render_training(manifest, data.make_history(), label_errors, read, finished="2026-11-23T06:03:35Z")
    parser, text = parse(page)
    test = manifest.metrics.test
    assert f"{test.accuracy:.1%} of 179 test images were classified correctly" in text
    assert f"95% interval {test.accuracy_low:.1%} to {test.accuracy_high:.1%}" in text
    assert "Measured on test images, which were not used in training." in text
    assert (
        "Keep labels above the thresholds of their classes, 78.0% of them: with 90% confidence, at least 95% are "
        "correct" in text
    )
    assert "before calibration by 9.4 points" in text
    assert "459 train, 81 validation, 179 test, 1 left out" in text
    assert "Left out of training: 1 image that could not be used." in text
    assert "50 labels are contradicted by the most similar images and 50 pairs of images" in text
    assert "10 more are not shown" in text
    assert "Epoch 10 was kept, of fine-tuning. The phases' validation accuracy was 82.7% in the" in text
    assert "2026-11-23 06:03 UTC" in text
    assert data.MODEL_ID in text
    assert len(asked) == len(set(asked))
    assert parser.tags.count("img") == 40 + 40
    assert parser.tags.count("svg") == 5


@pytest.mark.parametrize(
    ("kept", "gain", "told"),
    [
        (KeptEpoch("finetune", 10), LossGain(0.045, -0.01, 0.1), "by trials that were trained without them"),
        (KeptEpoch("head", 5), LossGain(-0.02, -0.1, 0.06), "each by a head that was solved without its fold"),
        (KeptEpoch("head", 5), None, "each by a head that was solved without its fold"),
    ],
)
def test_a_page_says_what_was_measured_out_of_fold(kept, gain, told):
    manifest = data.make_manifest(test=False)
    metrics = replace(manifest.metrics, out_of_fold=True, kept=kept, finetune_gain=gain)
    _, text = parse(render_training(replace(manifest, metrics=metrics), data.make_history(), None, read_nothing))
    name = "held-out" if kept.phase == "finetune" else "out-of-fold"
    assert f"of 81 {name} images were classified correctly" in text
    assert told in text
    assert f"of the {name} images)" in text
    trial = {0.045: "saved 0.045 of log-loss there", -0.02: "added 0.020 of log-loss there", None: "Validation figures"}
    assert trial[gain.mean if gain else None] in text
    assert ("left out, and its epochs are those of the trial" in text) == (gain is not None and gain.mean < 0)


def test_resolved_options_are_shown_by_phase():
    _, text = parse(render_training(data.make_manifest(), data.make_history(4, 1), None, read_nothing))
    assert "Phase 1the head, solved before; 4 epochs, rmsprop at 0.001" in text
    assert "Phase 2from mixed8 on; 1 epoch, sgd at 0.001" in text
    _, text = parse(render_training(data.make_manifest(), data.make_history(2, 0), None, read_nothing))
    assert "Phase 1" in text
    assert "Phase 2" not in text


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("validation", [False, True])
def test_a_page_leaves_out_what_was_not_measured(validation, test):
    manifest = data.make_manifest(validation=validation, test=test)
    history = data.make_history(0, 3, validation=validation)
    _, text = parse(render_training(manifest, history, None, read_nothing))
    assert ("Nothing was measured" in text) == (not validation and not test)
    assert ("slightly optimistic" in text) == (validation and not test)
    assert ("Probability thresholds" in text) == validation


def test_hostile_names_stay_text():
    manifest = data.make_manifest(data.HOSTILE)
    training = replace(manifest.training, config={**manifest.training.config, "data": data.HOSTILE_URI})
    label_errors = data.make_label_errors([f"{data.HOSTILE_URI}{index}" for index in range(40)], data.HOSTILE)
    page = render_training(replace(manifest, training=training), data.make_history(), label_errors, read_nothing)
    _, text = parse(page)
    assert "script>" in text
    assert "no image" in text


def test_many_classes_have_a_page():
    manifest = data.make_manifest([f"class {index}" for index in range(400)])
    _, text = parse(render_training(manifest, data.make_history(), None, read_nothing))
    assert "370 more are not shown" in text
