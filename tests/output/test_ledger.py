import dataclasses
import json

import pytest

from tests.output.data import BUNDLE, SCHEMA, MemoryPlan, make_predictions
from tlray import storage
from tlray.errors import OutageError
from tlray.output import ledger as ledgers
from tlray.output import reader
from tlray.output.ledger import Ledger, LedgerLine, find_line, name_precisions, read_ledger
from tlray.output.parts import PartWriter
from tlray.output.reader import find_parts
from tlray.output.rowset import RowSet

FIRST = "part-000000000000-000000000003.parquet"


def write(output, ledger, order=range(10)):
    writer = PartWriter(str(output), MemoryPlan(10), SCHEMA, 4, RowSet(10), on_written=ledger.add)
    return list(writer.add(make_predictions(list(order))))


@pytest.fixture
def written(tmp_path):
    """Parts of 4, 4 and 2 rows, row 3 EMPTY, and their ledger."""
    ledger = Ledger(str(tmp_path), BUNDLE.model_id, "bfloat16")
    parts = write(tmp_path, ledger)
    ledger.flush()
    return tmp_path, parts


@pytest.fixture
def reads(monkeypatch):
    """The parts that are read."""
    names = []
    real = reader.read_part

    def read_part(output, name, columns=None):
        names.append(name)
        return real(output, name, columns)

    monkeypatch.setattr(reader, "read_part", read_part)
    return names


def find(output):
    return sorted((found.part for found in find_parts(str(output), BUNDLE.model_id)), key=lambda part: part.name)


def test_parts_in_the_ledger_are_not_read(written, reads):
    output, parts = written
    assert find(output) == parts
    assert reads == []
    (first, *_) = find_parts(str(output), BUNDLE.model_id)
    assert first.read_statuses() == ["ok", "ok", "ok", "EMPTY"]


def test_a_line_tells_all_of_a_part(written):
    output, parts = written
    (file,) = (output / "_ledger").iterdir()
    line = json.loads(file.read_text().splitlines()[0])
    path = output / "labels" / FIRST
    assert line == {
        "part": FIRST, "rows": 4, "bytes": path.stat().st_size, "etag": None, "mtime_ns": path.stat().st_mtime_ns,
        "sha256": parts[0].sha256, "counts": {"ok": 3, "EMPTY": 1}, "needs_review": 0, "model_id": BUNDLE.model_id,
        "precision": "bfloat16",
    }  # fmt: skip


def test_a_part_that_was_written_again_without_a_line_is_read(written, reads):
    output, _ = written
    path = output / "labels" / FIRST
    storage.put(str(path), path.read_bytes())
    assert len(find(output)) == 3
    assert reads == [FIRST]


def test_of_several_lines_the_one_that_fits_counts(written, reads):
    output, parts = written
    again = Ledger(str(output), BUNDLE.model_id)
    write(output, again)
    again.flush()
    assert len(list((output / "_ledger").iterdir())) == 2
    assert {len(lines) for lines in read_ledger(str(output)).values()} == {2}
    assert find(output) == parts
    assert reads == []


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": 1}, {"mtime_ns": 1}, {"etag": "x", "mtime_ns": None}, {"rows": 3}, {"counts": {"ok": 3}},
        {"model_id": "n" * 64}, {"part": "../../part-000000000000-000000000003.parquet"},
    ],
)  # fmt: skip
def test_a_line_that_does_not_fit_is_not_followed(written, reads, change):
    output, parts = written
    (file,) = (output / "_ledger").iterdir()
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(first), **change}), *others]))
    assert find(output) == parts
    assert reads == [FIRST]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"part": 1}'])
def test_damaged_lines_cost_a_reading(written, reads, text):
    output, parts = written
    (file,) = (output / "_ledger").iterdir()
    file.write_text("\n".join([text, *file.read_text().splitlines()[1:]]))
    (output / "_ledger" / "notes.txt").write_text("x")
    assert find(output) == parts
    assert reads == [FIRST]


def test_lines_are_written_every_ten_seconds(tmp_path, monkeypatch):
    times = {"now": 100.0}
    monkeypatch.setattr(ledgers.time, "monotonic", lambda: times["now"])
    ledger = Ledger(str(tmp_path), BUNDLE.model_id)
    write(tmp_path, ledger)
    assert read_ledger(str(tmp_path)) == {}
    times["now"] = 111.0
    write(tmp_path, ledger, range(4))
    assert len(read_ledger(str(tmp_path))) == 3
    ledger.flush()
    assert [path.name[-13:] for path in (tmp_path / "_ledger").iterdir()] == ["-000000.jsonl"]


def test_what_could_not_be_written_is_written_with_the_next_flush(tmp_path, monkeypatch):
    ledger = Ledger(str(tmp_path), BUNDLE.model_id)
    write(tmp_path, ledger)

    def put(address, data):
        raise OutageError("away")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", put)
        ledger.flush()
    ledger.flush()
    assert len(read_ledger(str(tmp_path))) == 3


def test_an_object_is_known_by_its_etag():
    entry = storage.Entry("s3://b/labels/" + FIRST, FIRST, 9, "tag", 5)
    line = LedgerLine(FIRST, 4, 9, "tag", None, "a" * 64, {"ok": 4}, 0, "m", "")
    assert find_line({FIRST: [line]}, entry, "m") is line
    assert find_line({FIRST: [dataclasses.replace(line, etag="other")]}, entry, "m") is None


def test_compute_types_are_named_once():
    forms = ["bfloat16 on 1 thread", "bfloat16 on 1 thread (a note)", "float16, XLA on a GPU"]
    assert name_precisions(forms) == "bfloat16+float16"
    assert name_precisions([]) == ""
