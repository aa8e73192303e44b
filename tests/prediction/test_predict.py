from types import SimpleNamespace

import pyarrow as pa
import pytest

from tests.factories import make_receipt
from tlray.config import PredictConfig
from tlray.errors import ConfigError, OutputError
from tlray.output.parts import Part
from tlray.output.receipt import write_receipt
from tlray.prediction import predict as predictions
from tlray.prediction.predict import _load_finished, _save_regularly, predict
from tlray.prediction.summary import PredictSummary

PART = Part("part-000000000000-000000000009.parquet", 10, "a" * 64, {"EMPTY": 1, "TIMEOUT": 1})


def make_config(**options):
    return PredictConfig(model="bundle", input=("/in",), **options)


def test_an_output_is_needed_before_anything_is_read():
    with pytest.raises(ConfigError, match="--output is needed"):
        predict(make_config())


def test_a_run_without_a_single_label_fails():
    failed = make_receipt([Part(PART.name, 2, "a" * 64, {"EMPTY": 2})])
    assert PredictSummary("out", failed, 0, already_done=False).exit_code == 1
    assert PredictSummary("out", make_receipt([PART]), 0, already_done=False).exit_code == 0


def test_an_unfinished_run_is_not_loaded(tmp_path):
    assert _load_finished(str(tmp_path), make_config(), {}) is None


def test_a_finished_run_is_loaded_as_done(tmp_path):
    receipt = make_receipt([PART], config={"top_k": 0})
    write_receipt(str(tmp_path), receipt)
    summary = _load_finished(str(tmp_path), make_config(), {"top_k": 0})
    assert summary == PredictSummary(str(tmp_path), receipt, 10, already_done=True)
    with pytest.raises(OutputError, match="top_k: 0 there, 3 asked"):
        _load_finished(str(tmp_path), make_config(), {"top_k": 3})


@pytest.mark.parametrize(("codes", "done"), [(None, True), ((), False), (("EMPTY",), False), (("CORRUPT",), True)])
def test_a_finished_run_goes_on_only_to_retry_codes_that_it_has(tmp_path, codes, done):
    write_receipt(str(tmp_path), make_receipt([PART]))
    assert (_load_finished(str(tmp_path), make_config(retry_failed=codes), {}) is not None) == done


def test_retrying_a_run_without_failures_has_nothing_to_do(tmp_path):
    write_receipt(str(tmp_path), make_receipt([Part(PART.name, 10, "a" * 64, {})]))
    assert _load_finished(str(tmp_path), make_config(retry_failed=()), {}) is not None


def save_regularly(monkeypatch, num_rows, batches, save_s, *, received=False):
    """Return the times at which predictions are saved; each batch is `(seconds since the last one, rows)`."""
    times, saved = {"now": 0.0}, []
    monkeypatch.setattr(predictions.time, "monotonic", lambda: times["now"])

    def predict_batches():
        for seconds, rows in batches:
            times["now"] += seconds
            yield pa.table({"row_id": list(range(rows))})

    def save_waiting():
        saved.append(times["now"])
        times["now"] += save_s

    run, writer = SimpleNamespace(plan=SimpleNamespace(num_rows=num_rows)), SimpleNamespace(save_waiting=save_waiting)
    term = SimpleNamespace(received=received)
    assert sum(table.num_rows for table in _save_regularly(run, predict_batches(), writer, term)) == sum(
        rows for _, rows in batches
    )
    return saved


def test_a_long_run_saves_every_ten_seconds(monkeypatch):
    assert save_regularly(monkeypatch, 10**6, [(1.0, 1)] * 25, 0.0) == [10.0, 20.0]


def test_a_short_run_saves_after_a_64th_of_its_rows(monkeypatch):
    assert save_regularly(monkeypatch, 640, [(1.0, 5)] * 6, 0.0) == [2.0, 4.0, 6.0]


def test_after_sigterm_each_batch_is_saved(monkeypatch):
    assert save_regularly(monkeypatch, 10**6, [(1.0, 1)] * 3, 0.5, received=True) == [1.0, 2.5, 4.0]


def test_saving_takes_at_most_a_twentieth_of_the_time(monkeypatch):
    first, second = save_regularly(monkeypatch, 1, [(1.0, 1)] * 40, 1.0)
    assert first == 1.0
    assert second - (first + 1.0) == 20.0
