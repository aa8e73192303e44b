import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.output.data import BUNDLE, SCHEMA, MemoryPlan, make_predictions, make_writer, read_labels, write_all
from tlray import storage
from tlray.errors import Code, FetchError, OutputError
from tlray.output import parts
from tlray.output.parts import PartWriter, get_row_ids, make_name
from tlray.output.rowset import RowSet


def test_predictions_in_any_order_give_the_same_parts(tmp_path):
    one = write_all(tmp_path / "one", np.arange(10))
    two = write_all(tmp_path / "two", np.random.default_rng(0).permutation(10))
    assert {(part.name, part.sha256) for part in one} == {(part.name, part.sha256) for part in two}
    table = read_labels(tmp_path / "one")
    assert table["row_id"].to_pylist() == list(range(10))
    assert table["uri"].to_pylist() == [f"/x/{index}.jpg" for index in range(10)]
    assert sum(part.failed_by_code.get("EMPTY", 0) for part in one) == 1
    assert "retries" not in table.column_names


def test_a_second_prediction_is_dropped(tmp_path):
    writer = make_writer(tmp_path)
    assert not list(writer.add(make_predictions([0, 1, 1])))
    assert not list(writer.add(make_predictions([1, 0, 2], status="CORRUPT")))
    (part,) = writer.add(make_predictions([3, 2, 3]))
    assert read_labels(tmp_path)["status"].to_pylist() == ["ok", "ok", "CORRUPT", "EMPTY"]
    assert part.rows == 4
    # and so are all predictions of a part that is whole
    done = RowSet(10)
    done.add(np.arange(4))
    assert not list(make_writer(tmp_path, done).add(make_predictions([0, 1, 2, 3], status="CORRUPT")))


def test_file_metadata_names_the_model(tmp_path):
    write_all(tmp_path, np.arange(10))
    path = next((tmp_path / "labels").iterdir())
    metadata = pq.read_schema(path).metadata
    assert metadata[b"tlray.model_id"] == BUNDLE.model_id.encode()
    assert b'["a", "b"]' in metadata[b"tlray.classes"]


def test_rows_are_replaced_inside_a_whole_part(tmp_path):
    write_all(tmp_path, np.arange(10))
    done = RowSet(10)
    done.add(np.array([0, 1, 2, 4, 5, 6, 7, 8, 9]))
    (part,) = make_writer(tmp_path, done).add(make_predictions([3], bad=None))
    assert part.failed_by_code == {}
    assert read_labels(tmp_path)["status"].to_pylist() == ["ok"] * 10


class Kept:
    """An earlier output with a prediction for every row, recognizable by its status."""

    def __init__(self):
        self.asked = []

    def take(self, rows):
        self.asked += rows["row_id"].to_pylist()
        return make_predictions(rows["row_id"].to_pylist(), status="CORRUPT", bad=None)


def test_kept_rows_are_fetched_when_their_part_is_written(tmp_path):
    kept, done, earlier = RowSet(10), RowSet(10), Kept()
    kept.add(np.array([0, 2, 3, 4, 5, 6, 7, 9]))
    writer = PartWriter(str(tmp_path), MemoryPlan(10), SCHEMA, 4, done, kept, earlier)
    (whole,) = writer.write_kept()
    assert list(get_row_ids(whole.name)) == [4, 5, 6, 7]
    assert earlier.asked == [4, 5, 6, 7]
    assert len(list(writer.add(make_predictions([1, 8], bad=None)))) == 2
    assert earlier.asked == [4, 5, 6, 7, 0, 2, 3, 9]
    assert not writer.count_waiting()
    status = read_labels(tmp_path)["status"].to_pylist()
    assert [row for row, code in enumerate(status) if code == "ok"] == [1, 8]


def list_waiting(output):
    return sorted(path.name[:25] for path in (output / "_waiting").iterdir())


def load_waiting(writer):
    return sorted(row for table in writer.load_waiting() for row in table["row_id"].to_pylist())


def test_waiting_predictions_survive(tmp_path):
    writer = make_writer(tmp_path)
    assert not list(writer.add(make_predictions([0, 1, 5])))
    assert not list(writer.add(make_predictions([9], status="TIMEOUT")))
    writer.save_waiting()
    assert list_waiting(tmp_path) == [f"{first:012d}-{last:012d}" for first, last in ((0, 3), (4, 7), (8, 9))]
    again = make_writer(tmp_path)
    for waiting in again.load_waiting():
        assert not list(again.add(waiting))
    assert again.count_waiting() == {"ok": 3}  # what could not be reached is tried again
    assert len(list(again.add(make_predictions([2, 3])))) == 1
    again.save_waiting()
    assert load_waiting(make_writer(tmp_path)) == [5]
    done = RowSet(10)
    done.add(np.arange(10))
    assert not list(make_writer(tmp_path, done).add(make_predictions([5])))  # what is kept too long is dropped


def test_each_waiting_prediction_is_saved_once_and_removed_with_its_part(tmp_path):
    writer = make_writer(tmp_path)
    for rows in ([0], [1, 8], [2]):
        assert not list(writer.add(make_predictions(rows)))
        writer.save_waiting()
        writer.save_waiting()
    tables = [pq.read_table(path)["row_id"].to_pylist() for path in (tmp_path / "_waiting").iterdir()]
    assert sorted(tables) == [[0], [1], [2], [8]]
    assert len(list(writer.add(make_predictions([3])))) == 1
    assert list_waiting(tmp_path) == ["000000000008-000000000009"]


def test_waiting_predictions_leave_memory_where_it_is_short(tmp_path, monkeypatch):
    whole = [(part.name, part.sha256) for part in write_all(tmp_path / "whole", np.arange(10))]
    monkeypatch.setattr(parts, "_MAX_HELD_BYTES", 0)
    writer = make_writer(tmp_path / "short")
    written = [part for row in (0, 4, 8, 1, 5, 9, 2, 6, 3, 7) for part in writer.add(make_predictions([row]))]
    assert sorted((part.name, part.sha256) for part in written) == whole
    assert not list_waiting(tmp_path / "short")


def test_a_waiting_file_that_is_gone_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_MAX_HELD_BYTES", 0)
    writer = make_writer(tmp_path)
    assert not list(writer.add(make_predictions([8])))
    (file,) = (tmp_path / "_waiting").iterdir()
    file.unlink()
    with pytest.raises(OutputError, match="cannot be read back: "):
        list(writer.add(make_predictions([9])))


def test_the_newest_waiting_prediction_of_a_row_counts(tmp_path):
    for driver, status in (("20250101T000000Z-00000000", "EMPTY"), ("20250102T000000Z-00000000", "ok")):
        writer = make_writer(tmp_path)
        writer._waiting._driver = driver
        assert not list(writer.add(make_predictions([5], status=status)))
        writer.save_waiting()
    again = make_writer(tmp_path)
    for waiting in again.load_waiting():
        assert not list(again.add(waiting))
    assert again.count_waiting() == {"ok": 1}
    again.save_waiting()
    assert len(list_waiting(tmp_path)) == 1  # those of stopped runs are replaced


@pytest.mark.parametrize("damage", ["cut", "model", "columns", "rows", "beyond", "name"])
def test_a_waiting_file_is_not_believed(tmp_path, damage):
    writer = make_writer(tmp_path)
    rows = [9] if damage == "beyond" else [5, 6]
    assert not list(writer.add(make_predictions(rows)))
    writer.save_waiting()
    (file,) = (tmp_path / "_waiting").iterdir()
    table = pq.read_table(file)
    num_rows = 10
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "model":
        pq.write_table(table.replace_schema_metadata({b"tlray.model_id": b"another"}), file)
    elif damage == "columns":
        pq.write_table(table.drop_columns(["probability"]), file)
    elif damage == "rows":
        pq.write_table(table.set_column(0, table.field(0), pa.array([3, 10**9])), file)
    elif damage == "beyond":
        num_rows = 9
    else:
        file.rename(file.with_name(f"x{file.name}"))
    assert load_waiting(make_writer(tmp_path, count=num_rows)) == []


def test_reading_a_part_leaves_no_thread_of_arrows_behind(tmp_path):
    """Such a thread may let go of Python's bytes while Python is ending, which aborts the process."""
    pq.write_table(pa.table({f"c{number}": [1.0] * 20 for number in range(12)}), tmp_path / "part.parquet")
    code = (
        "import os, sys; from pathlib import Path; from tlray.output.schema import from_parquet\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "data, before = Path(sys.argv[1]).read_bytes(), count()\n"
        "from_parquet(data); sys.exit(count() != before)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "part.parquet"], check=True)


def test_the_name_of_a_part_gives_its_rows():
    assert make_name(8192, 3) == "part-000000008192-000000008194.parquet"
    assert get_row_ids("part-000000008192-000000008194.parquet") == range(8192, 8195)
    for name in ("part-1-2.parquet", "part-000000000000-000000000001.parquet.partial", "_waiting.parquet"):
        assert not get_row_ids(name)


def test_waiting_predictions_that_are_out_of_reach_are_not_removed(tmp_path, monkeypatch):
    writer = make_writer(tmp_path)
    assert not list(writer.add(make_predictions([5, 9])))
    writer.save_waiting()
    again = make_writer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "get_many", lambda uris: (FetchError(Code.TIMEOUT, "away") for _ in uris))
        assert load_waiting(again) == []
    assert not list(again.add(make_predictions([4])))
    again.save_waiting()
    assert load_waiting(make_writer(tmp_path)) == [4, 5, 9]
