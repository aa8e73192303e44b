import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.output.data import BUNDLE, SCHEMA, MemoryPlan, make_predictions, make_writer, read_labels, write_all
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
    assert writer.get_waiting() is None
    status = read_labels(tmp_path)["status"].to_pylist()
    assert [row for row, code in enumerate(status) if code == "ok"] == [1, 8]


def test_waiting_predictions_survive(tmp_path):
    writer = make_writer(tmp_path)
    assert not list(writer.add(make_predictions([0, 1, 5])))
    assert not list(writer.add(make_predictions([9], status="TIMEOUT")))
    writer.save_waiting()
    again = make_writer(tmp_path)
    waiting = again.load_waiting()
    assert waiting["row_id"].to_pylist() == [0, 1, 5]  # what could not be reached is tried again
    assert not list(again.add(waiting))
    assert len(list(again.add(make_predictions([2, 3])))) == 1
    again.save_waiting()
    assert make_writer(tmp_path).load_waiting()["row_id"].to_pylist() == [5]
    done = RowSet(10)
    done.add(np.arange(10))
    assert not list(make_writer(tmp_path, done).add(waiting))  # what is kept too long is dropped
    (tmp_path / "_waiting.parquet").write_bytes(b"cut")
    assert make_writer(tmp_path).load_waiting() is None


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


def test_the_name_of_a_part_gives_its_rows():
    assert make_name(8192, 3) == "part-000000008192-000000008194.parquet"
    assert get_row_ids("part-000000008192-000000008194.parquet") == range(8192, 8195)
    for name in ("part-1-2.parquet", "part-000000000000-000000000001.parquet.partial", "_waiting.parquet"):
        assert not get_row_ids(name)
