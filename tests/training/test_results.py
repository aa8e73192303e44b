import numpy as np

from tests.factories import make_epoch
from tlray.config import TrainConfig
from tlray.model.manifest import KeptEpoch, Metrics, PhaseBest
from tlray.training.results import advise


def make_history(validated=True):
    values = [("head", 1.0, 0.6, 0.5), ("head", 0.8, 0.7, 0.6), ("finetune", 0.4, 0.95, 0.55)]
    return [
        make_epoch(
            index + 1, phase=phase, loss=loss, accuracy=accuracy,
            val_loss=loss + 0.2 if validated else None, val_accuracy=val if validated else None,
        )
        for index, (phase, loss, accuracy, val) in enumerate(values)
    ]  # fmt: skip


def make_metrics(phase, epoch, history):
    best = [PhaseBest(one.epoch, one.loss, one.accuracy, one.val_loss, one.val_accuracy) for one in history]
    return Metrics(kept=KeptEpoch(phase, epoch), phases={"head": best[1], "finetune": best[2]})


def test_it_names_what_a_run_shows():
    history = make_history()
    metrics = make_metrics("head", 2, history)
    labels = np.array([0] * 90 + [1] * 20)
    text = "\n".join(advise(TrainConfig(data="d", output="o"), history, metrics, labels, 3))
    assert "phase 2 did not beat phase 1: try a lower --lr-finetune than 0.001" in text
    assert "--class-weights balanced" in text
    assert "the smallest class has 20 images" in text
    assert "3 images were left out" in text
    assert "far above" not in text


def test_it_asks_for_validation_where_there_is_none():
    history = make_history(validated=False)
    metrics = make_metrics("finetune", 3, history)
    sentences = advise(TrainConfig(data="d", output="o"), history, metrics, np.repeat([0, 1], 50), 0)
    assert "--val-fraction" in sentences[0]
    assert "still falling" in sentences[1]
