import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.factories import make_receipt, make_table
from tlray.errors import StoppedError
from tlray.output.parts import PartWriter, get_row_ids, make_schema
from tlray.output.plan import write_plan
from tlray.output.reader import find_parts
from tlray.output.receipt import UpdateRecord, write_receipt
from tlray.output.rowset import RowSet
from tlray.prediction.monitor import Failures, Reach
from tlray.prediction.update import EarlierOutput
from tlray.sources.listing import Selection, find_candidates

BUNDLE = SimpleNamespace(model_id="m" * 64, classes=("a", "b"), preprocessing_fingerprint="f")
SCHEMA = make_schema(BUNDLE, "run", [])


class MemoryPlan:
    def __init__(self, count):
        self.num_rows = count

    def read(self, first, count):
        rows = range(first, min(first + count, self.num_rows))
        return pa.table({"row_id": list(rows), "uri": [f"/x/{row}.jpg" for row in rows]})


def make_answers(row_ids, status="ok", bad=3):
    count = len(row_ids)
    columns = {"class_name": ["a"] * count, "probability": [0.5] * count, "width": [1] * count, "height": [1] * count}
    status = ["EMPTY" if row == bad else status for row in row_ids]
    return make_table({"row_id": list(row_ids), "status": status, "predicted_index": [0] * count, **columns})


def make_writer(output, done=None, count=10, rows_per_part=4):
    return PartWriter(str(output), MemoryPlan(count), SCHEMA, rows_per_part, done or RowSet(count))


def write_all(output, order):
    writer = make_writer(output)
    return [part for start in range(0, 10, 3) for part in writer.add(make_answers(order[start : start + 3]))]


def read_labels(output):
    return pq.read_table(output / "labels").sort_by("row_id")


def test_answers_in_any_order_give_the_same_parts(tmp_path):
    one = write_all(tmp_path / "one", np.arange(10))
    two = write_all(tmp_path / "two", np.random.default_rng(0).permutation(10))
    assert {(part.name, part.sha256) for part in one} == {(part.name, part.sha256) for part in two}
    table = read_labels(tmp_path / "one")
    assert table["row_id"].to_pylist() == list(range(10))
    assert table["uri"].to_pylist() == [f"/x/{index}.jpg" for index in range(10)]
    assert sum(part.failed_by_code.get("EMPTY", 0) for part in one) == 1
    assert "retries" not in table.column_names


def test_a_second_answer_is_dropped(tmp_path):
    writer = make_writer(tmp_path)
    assert not list(writer.add(make_answers([0, 1, 1])))
    assert not list(writer.add(make_answers([1, 0, 2], status="CORRUPT")))
    (part,) = writer.add(make_answers([3, 2, 3]))
    assert read_labels(tmp_path)["status"].to_pylist() == ["ok", "ok", "CORRUPT", "EMPTY"]
    assert part.rows == 4
    # and so are all answers for a part that is whole
    done = RowSet(10)
    done.add(np.arange(4))
    assert not list(make_writer(tmp_path, done).add(make_answers([0, 1, 2, 3], status="CORRUPT")))


def test_file_metadata_names_the_model(tmp_path):
    write_all(tmp_path, np.arange(10))
    path = next((tmp_path / "labels").iterdir())
    metadata = pq.read_schema(path).metadata
    assert metadata[b"tlray.model_id"] == BUNDLE.model_id.encode()
    assert b'["a", "b"]' in metadata[b"tlray.classes"]


def test_only_valid_parts_count_as_done(tmp_path):
    write_all(tmp_path, np.arange(10))
    parts = sorted((tmp_path / "labels").iterdir())
    parts[0].write_bytes(parts[0].read_bytes()[:-20])
    (tmp_path / "labels" / ".part.partial").write_bytes(b"x")
    found = [part for part, _ in find_parts(str(tmp_path), BUNDLE.model_id)]
    assert [list(get_row_ids(part.name)) for part in found] == [[4, 5, 6, 7], [8, 9]]
    assert list(find_parts(str(tmp_path), "n" * 64)) == []


def test_rows_are_replaced_inside_a_whole_part(tmp_path):
    write_all(tmp_path, np.arange(10))
    done = RowSet(10)
    done.add(np.array([0, 1, 2, 4, 5, 6, 7, 8, 9]))
    (part,) = make_writer(tmp_path, done).add(make_answers([3], bad=None))
    assert part.failed_by_code == {}
    assert read_labels(tmp_path)["status"].to_pylist() == ["ok"] * 10


class Kept:
    """Has an answer for every row, told by its status."""

    def __init__(self):
        self.asked = []

    def take(self, rows):
        self.asked += rows["row_id"].to_pylist()
        return make_answers(rows["row_id"].to_pylist(), status="CORRUPT", bad=None)


def test_kept_answers_are_fetched_when_their_part_is_written(tmp_path):
    kept, done, earlier = RowSet(10), RowSet(10), Kept()
    kept.add(np.array([0, 2, 3, 4, 5, 6, 7, 9]))
    writer = PartWriter(str(tmp_path), MemoryPlan(10), SCHEMA, 4, done, kept, earlier)
    (whole,) = writer.write_kept()
    assert list(get_row_ids(whole.name)) == [4, 5, 6, 7]
    assert earlier.asked == [4, 5, 6, 7]
    assert len(list(writer.add(make_answers([1, 8], bad=None)))) == 2
    assert earlier.asked == [4, 5, 6, 7, 0, 2, 3, 9]
    assert writer.get_waiting() is None
    status = read_labels(tmp_path)["status"].to_pylist()
    assert [row for row, code in enumerate(status) if code == "ok"] == [1, 8]


def test_an_update_keeps_what_is_unchanged(tmp_path):
    folder, old, new = tmp_path / "in", str(tmp_path / "old"), str(tmp_path / "new")
    folder.mkdir()
    for index in range(10):
        (folder / f"{index}.jpg").write_bytes(b"x" * (index + 1))
    asked = {"model_id": BUNDLE.model_id, "top_k": 0, "max_bytes": 1, "max_pixels": 1, "image_column": None}
    plan = write_plan(old, find_candidates([str(folder)], Selection()), {}, None)
    writer = PartWriter(old, plan, SCHEMA, 4, RowSet(10))
    parts = list(writer.add(make_answers(range(9)))) + list(writer.add(make_answers([9], status="TIMEOUT")))
    write_receipt(old, make_receipt(parts, config=asked))
    (folder / "2.jpg").write_bytes(b"changed")
    (folder / "4.jpg").unlink()
    (folder / "a.jpg").write_bytes(b"new")
    plan = write_plan(new, find_candidates([str(folder)], Selection()), {}, None)
    earlier = EarlierOutput(old, asked)
    kept = earlier.compare(plan)
    assert earlier.comparison == UpdateRecord(
        old, new=1, changed=2, kept=7, vanished=1
    )  # 2.jpg, and 9.jpg, which was out of reach
    rows = plan.read(0, 10)
    assert [rows["uri"][row].as_py()[-5:] for row in kept.find_missing(0, 10)] == ["2.jpg", "9.jpg", "a.jpg"]
    answers = earlier.take(rows.take([6, 0, 3]))
    assert answers["row_id"].to_pylist() == [6, 0, 3]
    assert answers["status"].to_pylist() == ["ok", "ok", "EMPTY"]
    retried = EarlierOutput(old, asked).compare(plan, {"EMPTY"})  # row 3 there, 3.jpg
    assert len(kept) - len(retried) == 1
    assert rows["uri"][int(retried.find_missing(0, 10)[1])].as_py().endswith("3.jpg")
    other = EarlierOutput(old, {**asked, "model_id": "n"})
    assert len(other.compare(plan)) == 0
    assert other.comparison.changed == 9


def test_waiting_answers_survive(tmp_path):
    writer = make_writer(tmp_path)
    assert not list(writer.add(make_answers([0, 1, 5])))
    assert not list(writer.add(make_answers([9], status="TIMEOUT")))
    writer.save_waiting()
    again = make_writer(tmp_path)
    waiting = again.load_waiting()
    assert waiting["row_id"].to_pylist() == [0, 1, 5]  # what could not be reached is tried again
    assert not list(again.add(waiting))
    assert len(list(again.add(make_answers([2, 3])))) == 1
    again.save_waiting()
    assert make_writer(tmp_path).load_waiting()["row_id"].to_pylist() == [5]
    done = RowSet(10)
    done.add(np.arange(10))
    assert not list(make_writer(tmp_path, done).add(waiting))  # what is kept too long is dropped
    (tmp_path / "_waiting.parquet").write_bytes(b"cut")
    assert make_writer(tmp_path).load_waiting() is None


def test_inputs_out_of_reach_stop_the_run():
    Reach(1000).check(["ok", "TIMEOUT"] * 3 + ["EMPTY"] * 500)
    with pytest.raises(StoppedError, match="DENIED"):
        Reach(1000).check(["DENIED"] * 20)
    with pytest.raises(StoppedError, match="DENIED"):
        Reach(3).check(["DENIED"] * 3)
    with pytest.raises(StoppedError, match="THROTTLED"):
        Reach(2000).check((["ok"] * 49 + ["THROTTLED"]) * 20)


def test_too_many_failures_stop_the_run():
    share = Failures(0.1, 100, 0)
    share.check(["EMPTY"] * 10)
    share.check(["TIMEOUT"] * 5, final=False)
    with pytest.raises(StoppedError, match="EMPTY 11"):
        share.check(["EMPTY"])
    with pytest.raises(StoppedError, match="--max-failed 2"):
        Failures(2, 100, 3)
    Failures(1.0, 3, 0).check(["EMPTY"] * 3)


def test_a_row_set_knows_what_is_missing():
    rng = np.random.default_rng(0)
    rows = RowSet(1003)
    there = np.unique(rng.integers(0, 1003, 500))
    rows.add(there)
    rows.add(there[:7])
    assert len(rows) == len(there)
    gone = np.setdiff1d(np.arange(1003), there)
    assert np.array_equal(rows.find_missing(0, 5000), gone)
    for first, count in ((0, 1), (3, 9), (8, 8), (995, 8), (1002, 1)):
        expected = gone[(gone >= first) & (gone < first + count)]
        assert np.array_equal(rows.find_missing(first, count), expected)
    twin = rows.copy()
    twin.invert()
    assert (len(twin), len(rows)) == (1003 - len(there), len(there))
    assert np.array_equal(twin.find_missing(0, 1003), there)


def test_reading_a_part_leaves_no_thread_of_arrows_behind(tmp_path):
    """Such a thread may let go of Python's bytes while Python is ending, which aborts the process."""
    pq.write_table(pa.table({f"c{number}": [1.0] * 20 for number in range(12)}), tmp_path / "part.parquet")
    code = (
        "import os, sys; from pathlib import Path; from tlray.output.parts import from_parquet\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "data, before = Path(sys.argv[1]).read_bytes(), count()\n"
        "from_parquet(data); sys.exit(count() != before)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "part.parquet"], check=True)
