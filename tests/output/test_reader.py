import numpy as np
import pytest

from tests.output.data import BUNDLE, write_all, write_run
from tlray.errors import OutputError
from tlray.output.parts import get_row_ids
from tlray.output.reader import LabelsReader, find_parts, read_part


def test_only_valid_parts_count_as_done(tmp_path):
    write_all(tmp_path, np.arange(10))
    parts = sorted((tmp_path / "labels").iterdir())
    parts[0].write_bytes(parts[0].read_bytes()[:-20])
    (tmp_path / "labels" / ".part.partial").write_bytes(b"x")
    found = [found.part for found in find_parts(str(tmp_path), BUNDLE.model_id)]
    assert [list(get_row_ids(part.name)) for part in found] == [[4, 5, 6, 7], [8, 9]]
    assert list(find_parts(str(tmp_path), "n" * 64)) == []


def test_found_parts_carry_their_failures_and_statuses(tmp_path):
    write_all(tmp_path, np.arange(10))
    found = {found.part.name: found for found in find_parts(str(tmp_path), BUNDLE.model_id)}
    first = found["part-000000000000-000000000003.parquet"]
    assert (first.part.rows, first.part.failed_by_code) == (4, {"EMPTY": 1})
    assert first.read_statuses() == ["ok", "ok", "ok", "EMPTY"]


def test_an_output_without_labels_has_no_parts(tmp_path):
    assert list(find_parts(str(tmp_path / "none"), BUNDLE.model_id)) == []


def test_a_part_under_the_name_of_other_rows_does_not_count(tmp_path):
    write_all(tmp_path, np.arange(10))
    labels = tmp_path / "labels"
    (labels / "part-000000000004-000000000007.parquet").rename(labels / "part-000000000005-000000000008.parquet")
    names = {found.part.name for found in find_parts(str(tmp_path), BUNDLE.model_id)}
    assert names == {"part-000000000000-000000000003.parquet", "part-000000000008-000000000009.parquet"}


@pytest.fixture
def reader(tmp_path):
    _, receipt = write_run(tmp_path / "out", tmp_path / "in")
    return LabelsReader.open(str(tmp_path / "out"), receipt)


def test_all_parts_are_read_in_order(reader):
    tables = list(reader.read(["row_id", "status"]))
    assert [table.num_rows for table in tables] == [4, 4, 2]
    assert tables[0].column_names == ["row_id", "status"]
    assert [row for table in tables for row in table["row_id"].to_pylist()] == list(range(10))


def test_rows_come_in_the_order_asked_for_with_repeats(reader):
    rows = reader.take(np.array([9, 0, 5, 4, 9]), ["row_id"])
    assert rows["row_id"].to_pylist() == [9, 0, 5, 4, 9]
    none = reader.take(np.array([], np.int64))
    assert none.num_rows == 0
    assert "probability" in none.column_names


def test_class_names_come_from_the_files(reader):
    assert reader.classes == ["a", "b"]


def test_a_damaged_part_is_an_error_that_names_it(tmp_path, reader):
    path = tmp_path / "out" / "labels" / reader.names[1]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OutputError, match=rf"{reader.names[1]} of .* cannot be read: .*; check with tlray verify"):
        list(reader.read(["row_id"]))
    with pytest.raises(OutputError, match=f"{reader.names[1]} cannot be read"):
        read_part(str(tmp_path / "out"), reader.names[1])
    with pytest.raises(OutputError, match="part-none cannot be read"):
        read_part(str(tmp_path / "out"), "part-none")
