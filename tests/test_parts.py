from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.errors import StoppedError
from tlray.prediction.parts import PartWriter, find_parts, get_row_ids
from tlray.prediction.run import _Watch
from tlray.prediction.schema import ANSWER_FIELDS

BUNDLE = SimpleNamespace(model_id="m" * 64, classes=("a", "b"), preprocessing_fingerprint="f")


def make_plan(count):
    return pa.table({"row_id": range(count), "uri": [f"/x/{index}.jpg" for index in range(count)]})


def make_answers(row_ids):
    count = len(row_ids)
    columns = {
        "row_id": list(row_ids),
        "status": ["EMPTY" if row == 3 else "ok" for row in row_ids],
        "error": [None] * count,
        "predicted_index": [0] * count,
        "class_name": ["a"] * count,
        "probability": [0.5] * count,
        "width": [1] * count,
        "height": [1] * count,
    }
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in ANSWER_FIELDS})


def write_all(output, order, rows_per_part=4, count=10):
    writer = PartWriter(str(output), make_plan(count), rows_per_part, BUNDLE, "run", top_k=0)
    parts = []
    for start in range(0, count, 3):
        parts += writer.add(make_answers(order[start : start + 3]))
    return parts


def test_answers_in_any_order_give_the_same_parts(tmp_path):
    one = write_all(tmp_path / "one", np.arange(10))
    two = write_all(tmp_path / "two", np.random.default_rng(0).permutation(10))
    assert {(part.name, part.sha256) for part in one} == {(part.name, part.sha256) for part in two}
    table = pq.read_table(tmp_path / "one" / "labels").sort_by("row_id")
    assert table["row_id"].to_pylist() == list(range(10))
    assert table["uri"].to_pylist() == [f"/x/{index}.jpg" for index in range(10)]
    assert sum(part.failed_by_code.get("EMPTY", 0) for part in one) == 1


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
    found = find_parts(str(tmp_path), BUNDLE)
    assert [list(get_row_ids(part)) for part in found] == [[4, 5, 6, 7], [8, 9]]
    other = SimpleNamespace(**{**vars(BUNDLE), "model_id": "n" * 64})
    assert find_parts(str(tmp_path), other) == []


def test_inputs_out_of_reach_stop_the_run():
    _Watch(1000).check(["ok", "TIMEOUT"] * 3 + ["EMPTY"] * 500)
    with pytest.raises(StoppedError, match="DENIED"):
        _Watch(1000).check(["DENIED"] * 20)
    with pytest.raises(StoppedError, match="DENIED"):
        _Watch(3).check(["DENIED"] * 3)
    with pytest.raises(StoppedError, match="THROTTLED"):
        _Watch(2000).check((["ok"] * 49 + ["THROTTLED"]) * 20)
