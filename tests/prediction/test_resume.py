import pyarrow.parquet as pq
import pytest

from tests.factories import make_receipt
from tests.output.data import BUNDLE, SCHEMA, make_predictions, plan_images, write_images, write_run
from tlray.config import PredictConfig
from tlray.output.parts import PartWriter
from tlray.output.receipt import UpdateRecord, write_receipt
from tlray.output.rowset import RowSet
from tlray.prediction.job import Job
from tlray.prediction.resume import resume


@pytest.fixture
def plan(tmp_path):
    return plan_images(tmp_path / "out", write_images(tmp_path / "in"))


def resume_run(tmp_path, plan, *, update_from=None, **options):
    config = PredictConfig(model="bundle", input=("/in",), **({"rows_per_part": 4} | options))
    job = Job("run", "2025-01-01T00:00:00Z", {}, update_from)
    return resume(config, str(tmp_path / "out"), plan, job, SCHEMA, BUNDLE.model_id)


def write(tmp_path, plan, *predictions, rows_per_part=4):
    writer = PartWriter(str(tmp_path / "out"), plan, SCHEMA, rows_per_part, RowSet(10))
    for table in predictions:
        list(writer.add(table))
    writer.save_waiting()


def find_missing(rows):
    return rows.find_missing(0, 10).tolist()


def test_a_new_run_has_everything_to_do(tmp_path, plan):
    state = resume_run(tmp_path, plan)
    assert find_missing(state.settled) == list(range(10))
    assert (state.resumed_rows, state.parts, state.unreachable, state.update) == (0, {}, [], None)


def test_written_parts_and_waiting_predictions_are_settled(tmp_path, plan):
    write(tmp_path, plan, make_predictions([0, 1, 2, 3, 5, 9]))
    state = resume_run(tmp_path, plan)
    assert find_missing(state.settled) == [4, 6, 7, 8]
    assert state.resumed_rows == 6
    assert list(state.parts) == ["part-000000000000-000000000003.parquet"]
    assert state.num_failed == 1
    state.add(make_predictions([4, 6, 7, 8]), ["ok"] * 4)
    assert sum(part.rows for part in state.parts.values()) == 10
    assert pq.read_table(tmp_path / "out" / "labels").num_rows == 10


def test_parts_of_another_size_do_not_count(tmp_path, plan):
    write(tmp_path, plan, make_predictions(range(10)))
    state = resume_run(tmp_path, plan, rows_per_part=8)
    assert find_missing(state.settled) == list(range(8))  # the last part has rows 8 and 9 either way
    assert list(state.parts) == ["part-000000000008-000000000009.parquet"]


def test_unreachable_rows_are_settled_for_now_and_tried_again_at_the_end(tmp_path, plan):
    write(tmp_path, plan, make_predictions([0, 1, 2]), make_predictions([3], status="TIMEOUT", bad=None))
    state = resume_run(tmp_path, plan)
    assert state.unreachable == [3]
    assert find_missing(state.settled) == [4, 5, 6, 7, 8, 9]
    assert state.num_failed == 0
    state.add(make_predictions([4, 5], status="DENIED"), ["DENIED", "DENIED"])
    assert state.unreachable == [3, 4, 5]


def test_failed_rows_are_predicted_again_by_code_or_all(tmp_path, plan):
    for codes, missing, num_failed in ((("CORRUPT",), [], 1), (("EMPTY",), [3], 0), ((), [3], 0)):
        write(tmp_path, plan, make_predictions(range(10)))
        (tmp_path / "out" / "_receipt.json").write_text("{}")
        state = resume_run(tmp_path, plan, retry_failed=codes)
        assert find_missing(state.settled) == missing
        assert state.num_failed == num_failed
        assert not (tmp_path / "out" / "_receipt.json").exists()


def test_waiting_failures_are_predicted_again_too(tmp_path, plan):
    write(tmp_path, plan, make_predictions([2, 3]))
    assert find_missing(resume_run(tmp_path, plan, retry_failed=("EMPTY",)).settled) == [0, 1, *range(3, 10)]


def test_an_update_settles_the_rows_it_copies_and_writes_whole_parts_of_them(tmp_path):
    write_run(tmp_path / "old", tmp_path / "in")
    (tmp_path / "in" / "9.jpg").write_bytes(b"changed")
    plan = plan_images(tmp_path / "out", tmp_path / "in")
    state = resume_run(tmp_path, plan, update_from=str(tmp_path / "old"))
    assert find_missing(state.settled) == [9]
    assert sorted(state.parts) == ["part-000000000000-000000000003.parquet", "part-000000000004-000000000007.parquet"]
    assert state.update == UpdateRecord(str(tmp_path / "old"), new=0, changed=1, kept=9, vanished=0)
    assert state.resumed_rows == 0
    state.add(make_predictions([9]), ["ok"])
    assert pq.read_table(tmp_path / "out" / "labels").num_rows == 10


def test_the_second_pass_takes_only_unreachable_rows(tmp_path, plan):
    state = resume_run(tmp_path, plan)
    state.add(make_predictions([4, 5], status="DENIED"), ["DENIED", "DENIED"])
    settled = RowSet(10)
    state.take_unreachable(PartWriter(str(tmp_path / "out"), plan, SCHEMA, 4, settled), settled)
    assert state.unreachable == []
    assert state.settled is settled


def test_a_receipt_stays_unless_failed_rows_are_retried(tmp_path, plan):
    write_receipt(str(tmp_path / "out"), make_receipt())
    resume_run(tmp_path, plan)
    assert (tmp_path / "out" / "_receipt.json").exists()


def test_failures_in_waiting_count_as_those_in_parts(tmp_path, plan):
    """Three attempts, each stopped before its part was full, fail once in all."""
    for row in (5, 6, 9):
        state = resume_run(tmp_path, plan)
        list(state.writer.add(make_predictions([row], bad=row)))
        state.writer.save_waiting()
    assert resume_run(tmp_path, plan).num_failed == 3
    assert resume_run(tmp_path, plan, retry_failed=("EMPTY",)).num_failed == 0


def test_a_row_that_an_earlier_run_could_read_is_remembered(tmp_path, plan):
    assert resume_run(tmp_path, plan).read_row is None
    write(tmp_path, plan, make_predictions(range(4), "TIMEOUT"))
    assert resume_run(tmp_path, plan).read_row is None
    write(tmp_path, plan, make_predictions(range(4, 8)))
    assert resume_run(tmp_path, plan).read_row == 4
