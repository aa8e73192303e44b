import json

import pytest

from tests.factories import make_receipt
from tests.output.data import SCHEMA, make_predictions, plan_images, write_images
from tests.prediction.test_probe import ONE
from tlray.errors import StoppedError
from tlray.output.ledger import Ledger
from tlray.output.parts import PartWriter
from tlray.output.receipt import ProbeOutcome, read_receipt
from tlray.output.rowset import RowSet
from tlray.prediction.finish import close_run
from tlray.prediction.finish import make_receipt as make_run_receipt
from tlray.prediction.job import Job
from tlray.prediction.monitor import RunClock
from tlray.prediction.probe import _conclude
from tlray.prediction.resume import RunState
from tlray.storage.records import dump_record


def make_state(tmp_path, row_ids=range(10)):
    plan = plan_images(tmp_path / "out", write_images(tmp_path / "in"))
    output = str(tmp_path / "out")
    state = RunState(PartWriter(output, plan, SCHEMA, 4, RowSet(10)), RowSet(10), 0, set(), Ledger(output, "m"))
    predictions = make_predictions(row_ids)
    state.add(predictions, predictions["status"].to_pylist())
    return plan, state


def make_job(**asked):
    return Job("run", "2025-01-01T00:00:00Z", {"min_probability": None, **asked}, None)


def test_a_receipt_adds_up_the_parts_in_their_order(tmp_path):
    plan, state = make_state(tmp_path, [8, 9, *range(8)])
    clock = RunClock()
    clock.num_retries = 4
    receipt = make_run_receipt(str(tmp_path / "out"), plan, make_job(), "m", state, clock)
    assert (receipt.planned, receipt.labelled, receipt.failed) == (10, 9, 1)
    assert receipt.failed_by_code == {"EMPTY": 1}
    assert [part.rows for part in receipt.parts] == [4, 4, 2]
    assert [part.name for part in receipt.parts] == sorted(state.parts)
    assert (receipt.retries, receipt.needs_review, receipt.first_label_s, receipt.probe) == (4, None, None, None)
    assert (receipt.run_id, receipt.model_id, receipt.started) == ("run", "m", "2025-01-01T00:00:00Z")


def test_reviews_are_counted_if_a_probability_was_asked_for(tmp_path):
    plan, state = make_state(tmp_path)
    receipt = make_run_receipt(str(tmp_path / "out"), plan, make_job(min_probability="0.5"), "m", state, RunClock())
    assert receipt.needs_review == 0


def test_a_missing_row_is_an_error_and_no_receipt(tmp_path):
    plan, state = make_state(tmp_path, range(9))
    with pytest.raises(StoppedError, match="8 of 10 rows were written; run the same command again"):
        make_run_receipt(str(tmp_path / "out"), plan, make_job(), "m", state, RunClock())


def test_the_estimate_of_a_probe_stands_beside_the_rate(tmp_path):
    plan, state = make_state(tmp_path)
    probe = _conclude([ONE], 2, 1e-6, 10, None)
    (tmp_path / "out" / "_plan" / "_probe.json").write_bytes(dump_record(probe))
    receipt = make_run_receipt(str(tmp_path / "out"), plan, make_job(), "m", state, RunClock())
    assert receipt.probe == ProbeOutcome(probe.images_per_s, 0.0)


@pytest.mark.parametrize("text", ["{", json.dumps({"images": 1})])
def test_a_damaged_probe_does_not_stop_a_finished_run(tmp_path, text):
    plan, state = make_state(tmp_path)
    (tmp_path / "out" / "_plan" / "_probe.json").write_text(text)
    assert make_run_receipt(str(tmp_path / "out"), plan, make_job(), "m", state, RunClock()).probe is None


def test_closing_a_run_leaves_its_receipt_and_no_files_of_an_unfinished_one(tmp_path):
    (tmp_path / "_waiting").mkdir()
    for name in ("_progress.json", "_waiting/rows.parquet"):
        (tmp_path / name).write_bytes(b"x")
    close_run(str(tmp_path), make_receipt())
    assert [path.name for path in tmp_path.iterdir()] == ["_receipt.json"]
    assert read_receipt(str(tmp_path)) == make_receipt()
    close_run(str(tmp_path), make_receipt())  # again, with nothing to remove
