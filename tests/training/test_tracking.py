import contextlib
import sys
from types import SimpleNamespace

import pytest

from tests.factories import make_epoch
from tlray.config import TrainConfig
from tlray.model.manifest import Metrics, RoleCounts
from tlray.training.results import TrainSummary
from tlray.training.tracking import log_run


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
    summary = TrainSummary("bundle", "f" * 64, ("a", "b"), RoleCounts(9, 0, 0), [], history, Metrics(), {"saving": 2.0})
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
