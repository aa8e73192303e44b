from dataclasses import replace

import numpy as np

from tests.factories import make_epoch
from tlray.cli.print_train import print_demo, print_train
from tlray.demo import DemoSummary, Example
from tlray.metrics.classification import measure
from tlray.metrics.intervals import LossGain
from tlray.metrics.label_errors import DuplicatePair, LabelErrorSummary
from tlray.model.manifest import KeptEpoch, Metrics, PhaseBest, RoleCounts
from tlray.training.results import TrainSummary

HISTORY = [make_epoch(1), make_epoch(2, phase="finetune", val_accuracy=0.9, images=300, seconds=4.0)]
PHASES = {"head": PhaseBest(1, 0.5, 0.8, 0.6, 0.7), "finetune": PhaseBest(2, 0.5, 0.8, 0.6, 0.9)}


def make_summary(**values):
    metrics = Metrics(kept=KeptEpoch("finetune", 2), phases=PHASES)
    usual = {"seconds": {"start-up": 2.0, "phase 1": 2.0, "phase 2": 4.0}, "advice": ["more images", "less zoom"]}
    summary = TrainSummary("bundle", "f" * 64, ("a", "b"), RoleCounts(100, 20, 0), [], HISTORY, metrics)
    return replace(summary, **(usual | values))


def test_a_summary_says_where_and_how_good_the_model_is(lines):
    print_train(make_summary(left_out=[("x.png", "CORRUPT: no image")]))
    printed = lines()
    for line in (
        "bundle bundle",
        "report bundle/report.html",
        "classes 2: a, b",
        "images 100 train, 20 validation",
        "left out 1 images that cannot be used",
        "phase 1 head: validation loss 0.6000, accuracy 0.7000 in epoch 1",
        "phase 2 finetune: validation loss 0.6000, accuracy 0.9000 in epoch 2; phase 2 won",
        "kept epoch 2 (phase 2, finetune)",
        "try next more images",
        "less zoom",
    ):
        assert line in printed


def test_stages_have_their_share_rate_and_wait(lines):
    print_train(make_summary())
    printed = lines()
    assert "start-up 2.0 25%" in printed
    assert "phase 1 2.0 25% 50.0 6.7%" in printed
    assert "phase 2 4.0 50% 75.0 6.7%" in printed
    assert "all 8.0" in printed


def test_the_loss_by_class_weights_stands_beside_the_plain_one_where_they_differ(lines):
    weighted = {"head": replace(PHASES["head"], val_weighted_loss=0.6), "finetune": PHASES["finetune"]}
    weighted["finetune"] = replace(PHASES["finetune"], val_weighted_loss=0.71)
    print_train(make_summary(metrics=Metrics(kept=KeptEpoch("finetune", 2), phases=weighted)))
    printed = lines()
    assert any(line.startswith("phase 1 head: validation loss 0.6000, accuracy 0.7000 ") for line in printed)
    expected = "phase 2 finetune: validation loss 0.6000 (0.7100 by class weights), accuracy 0.9000 "
    assert any(line.startswith(expected) for line in printed)


def test_phase_1_may_win(lines):
    print_train(make_summary(metrics=Metrics(kept=KeptEpoch("head", 1), phases=PHASES)))
    printed = lines()
    assert "phase 2 finetune: validation loss 0.6000, accuracy 0.9000 in epoch 2; phase 1 won" in printed
    assert "kept epoch 1 (phase 1, head)" in printed


def test_folds_name_what_was_measured_and_what_the_trial_says(lines):
    phases = {"head": PHASES["head"], "finetune": replace(PHASES["finetune"], val_loss=None, val_accuracy=None)}
    gain = LossGain(-0.0312, -0.1, 0.04)
    kept = KeptEpoch("head", 1)
    metrics = Metrics(kept=kept, phases=phases, finetune_gain=gain, out_of_fold=True, validation=make_measurement())
    print_train(make_summary(metrics=metrics))
    printed = lines()
    assert "phase 1 head: out-of-fold loss 0.6000, accuracy 0.7000" in printed
    saved = (
        "log-loss saved against phase 1, on the fold that its trial left out: -0.031 (95% interval -0.100 to +0.040)"
    )
    assert f"phase 2 finetune: training accuracy 0.8000 in its last epoch; {saved}; phase 1 won" in printed
    assert "out-of-fold accuracy 0.6667 (3 images)" in printed


def make_measurement():
    return measure(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 1]), ("a", "b"))


def test_without_validation_no_phase_wins(lines):
    phases = {name: replace(best, val_loss=None, val_accuracy=None) for name, best in PHASES.items()}
    print_train(make_summary(metrics=Metrics(kept=KeptEpoch("finetune", 2), phases=phases)))
    assert "phase 2 finetune: training accuracy 0.8000 in its last epoch" in lines()


def test_test_images_add_a_table_of_classes(lines):
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    metrics = replace(make_summary().metrics, test=measure(probabilities, np.array([0, 1, 1]), ["a", "b"]))
    print_train(make_summary(metrics=metrics))
    printed = lines()
    assert "class precision recall F1 images" in printed
    assert "b 1.000 0.500 0.667 2" in printed
    assert "test accuracy 0.6667 (3 images)" in printed


def test_duplicates_are_pointed_out(lines):
    pairs = [DuplicatePair("1", "2", "a", "b", 1.0), DuplicatePair("3", "4", "a", "a", 1.0)]
    print_train(make_summary(label_errors=LabelErrorSummary(9, 0, [], pairs)))
    assert "look at 2 pairs of pictures that look the same, 1 of them under two labels" in lines()


def test_a_finished_training_says_that_nothing_was_done(lines):
    print_train(make_summary(already_done=True, seconds={}, advice=[]))
    printed = lines()
    assert printed[0] == "Already trained with this config on these images; nothing was done."
    assert not [line for line in printed if line.startswith("all ")]


def test_the_demo_marks_right_and_wrong(lines):
    examples = [Example("1/a.png", "1", "1", 0.98), Example("2/b.png", "2", "7", 0.5)]
    print_demo(DemoSummary("demo", 0.5, 2, "random", examples, 61.4))
    printed = lines()
    assert "1/a.png 1 1 0.980 right" in printed
    assert "2/b.png 2 7 0.500 wrong" in printed
    assert "accuracy 0.5000 on 2 images that training never saw" in printed
    assert "time 61 s" in printed
