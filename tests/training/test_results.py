import contextlib
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.factories import make_epoch
from tlray.config import TrainConfig
from tlray.metrics.classification import measure
from tlray.model.manifest import KeptEpoch, Metrics, PhaseBest, RoleCounts
from tlray.training.results import TrainSummary, advise, log_run

CONFIG = TrainConfig(data="d", output="o")


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
    best = [PhaseBest(*(getattr(one, field.name) for field in fields(PhaseBest))) for one in history]
    return Metrics(kept=KeptEpoch(phase, epoch), phases={"head": best[1], "finetune": best[2]})


def test_it_names_what_a_run_shows():
    history = make_history()
    metrics = make_metrics("head", 2, history)
    labels = np.array([0] * 90 + [1] * 20)
    text = "\n".join(advise(CONFIG, CONFIG.choose_recipe(), history, metrics, None, labels, 3))
    assert "phase 2 did not beat phase 1: try a lower --lr-finetune than 0.01" in text
    assert "--class-weights balanced" in text
    assert "the smallest class has 20 images" in text
    assert "3 images were left out" in text
    assert "far above" not in text


def test_it_asks_for_validation_where_there_is_none():
    history = make_history(validated=False)
    metrics = make_metrics("finetune", 3, history)
    sentences = advise(CONFIG, CONFIG.choose_recipe(), history, metrics, None, np.repeat([0, 1], 50), 0)
    assert "--val-fraction" in sentences[0]
    assert "still falling" in sentences[1]


def test_it_compares_with_what_was_measured_out_of_fold():
    history = make_history(validated=False)
    measured = measure(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 1]), ("a", "b"))
    metrics = replace(make_metrics("finetune", 3, history), out_of_fold=True, validation=measured)
    (sentence,) = advise(CONFIG, CONFIG.choose_recipe(), history, metrics, None, np.repeat([0, 1], 50), 0)
    assert sentence.startswith("training accuracy 0.95 is far above out-of-fold accuracy, 0.67: more images")


@pytest.mark.parametrize(("trials", "kept", "told"), [(1, 0.0, True), (2, 0.0, False), (1, 0.3, False)])
def test_it_names_more_trials_where_no_threshold_is_promised(trials, kept, told):
    history = make_history(validated=False)
    measured = measure(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]), ("a", "b"))
    metrics = replace(make_metrics("finetune", 3, history), out_of_fold=True, validation=measured)
    config, thresholds = replace(CONFIG, trials=trials), SimpleNamespace(kept=kept)
    sentences = advise(config, config.choose_recipe(), history, metrics, thresholds, np.repeat([0, 1], 50), 0)
    assert any("--trials 5" in sentence for sentence in sentences) == told


@pytest.fixture
def logged(monkeypatch):
    """Everything that MLflow is asked to log, in order."""
    calls = []
    names = ("set_tracking_uri", "set_experiment", "log_params", "log_metrics", "log_metric", "set_tags")
    server = {name: lambda *args, name=name, **values: calls.append((name, *args, *values.values())) for name in names}
    start_run = lambda run_name: contextlib.nullcontext(calls.append(("start_run", run_name)))  # noqa: E731
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(**server, start_run=start_run))
    return calls


def test_every_epoch_is_one_step_of_its_numbers(logged):
    history = [make_epoch(1), make_epoch(2, val_loss=None, val_accuracy=None)]
    config = TrainConfig(data="photos", output="bundle", mlflow_uri="http://server")
    summary = TrainSummary(
        "bundle", "f" * 64, ("a", "b"), RoleCounts(9, 0, 0), [], history, Metrics(), seconds={"saving": 2.0}
    )
    log_run(config, summary)
    assert logged[0] == ("set_tracking_uri", "http://server")
    assert ("start_run", "f" * 12) in logged
    first, second, seconds = [call for call in logged if call[0] == "log_metrics"]
    assert (first[1]["val_loss"], first[2]) == (0.6, 1)
    assert second[2] == 2
    assert "val_loss" not in second[1]
    assert not {"epoch", "phase"} & first[1].keys()
    assert seconds[1] == {"seconds saving": 2.0}
    assert logged[-1] == ("set_tags", {"model_id": "f" * 64, "bundle": "bundle"})
