import dataclasses
import json

import pytest

from tests.factories import make_receipt
from tlray.errors import OutputError
from tlray.output.parts import Part
from tlray.output.receipt import ProbeOutcome, UpdateRecord, count_failed, read_receipt, write_receipt

PARTS = [
    Part("part-000000000000-000000000003.parquet", 4, "a" * 64, {"TIMEOUT": 1, "EMPTY": 2}),
    Part("part-000000000004-000000000006.parquet", 3, "b" * 64, {"EMPTY": 1}),
]


def write_changed(output, change):
    """Write a receipt whose JSON a function has changed."""
    write_receipt(str(output), make_receipt(PARTS))
    path = output / "_receipt.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def read_fault(output):
    with pytest.raises(OutputError) as caught:
        read_receipt(str(output))
    text = str(caught.value)
    assert text.startswith(f"{output}/_receipt.json is damaged: ")
    assert "\n" not in text
    return text.partition("is damaged: ")[2].partition("; it was written by another tlray")[0]


def test_a_receipt_comes_back_as_it_was_written(tmp_path):
    receipt = make_receipt(
        PARTS,
        update=UpdateRecord("s3://bucket/old", 1, 2, 3, 4),
        config={"limit": None, "include": ["*.jpg"], "sample": 0.5},
        engines={"float32": 2},
        probe=ProbeOutcome(10.0, 12.5),
        first_label_s=None,
        needs_review=0,
    )
    write_receipt(str(tmp_path), receipt)
    assert read_receipt(str(tmp_path)) == receipt
    assert [path.name for path in tmp_path.iterdir()] == ["_receipt.json"]


def test_an_output_without_a_receipt_has_none(tmp_path):
    assert read_receipt(str(tmp_path)) is None


def test_fields_that_were_added_later_may_be_missing(tmp_path):
    write_changed(tmp_path, lambda record: [record.pop(name) for name in ("needs_review", "engines", "probe")])
    receipt = read_receipt(str(tmp_path))
    assert (receipt.needs_review, receipt.engines, receipt.probe) == (None, {}, None)


@pytest.mark.parametrize("name", ["format", "planned", "update", "parts", "first_label_s"])
def test_a_missing_field_is_named(tmp_path, name):
    write_changed(tmp_path, lambda record: record.pop(name))
    assert read_fault(tmp_path) == f"the record lacks {name}"


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("extra",), 1, "the record has an unknown field 'extra'"),
        (("parts", 1, "extra"), 1, "parts[1] has an unknown field 'extra'"),
        (("format",), 2, "format takes 1; got 2"),
        (("planned",), "7", 'planned takes int; got "7"'),
        (("planned",), True, "planned takes int; got true"),
        (("planned",), 7.0, "planned takes int; got 7.0"),
        (("failed_by_code",), [], "failed_by_code takes an object; got []"),
        (("failed_by_code", "EMPTY"), None, "failed_by_code.EMPTY takes int; got null"),
        (("parts", 0, "rows"), "4", 'parts[0].rows takes int; got "4"'),
        (("images_per_s",), float("nan"), "images_per_s takes a finite number; got NaN"),
        (("stages",), {"ray": float("inf")}, "stages.ray takes a finite number; got Infinity"),
        (("config",), {"sample": float("nan")}, "config.sample takes finite numbers; got nan"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(tmp_path, path, value, fault):
    def change(record):
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    write_changed(tmp_path, change)
    assert read_fault(tmp_path) == fault


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_another_text_is_damage(tmp_path, text):
    (tmp_path / "_receipt.json").write_text(text)
    assert read_fault(tmp_path)


def test_a_number_that_is_not_finite_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_receipt(str(tmp_path), dataclasses.replace(make_receipt(PARTS), images_per_s=float("nan")))
    assert not list(tmp_path.iterdir())


def test_failed_rows_are_added_up_in_the_order_of_codes():
    assert list(count_failed(PARTS).items()) == [("EMPTY", 3), ("TIMEOUT", 1)]
    assert count_failed([]) == {}


def test_an_update_is_told_in_one_line():
    assert str(UpdateRecord("x", new=1000, changed=2, kept=30_000)) == "30,000 kept, 1,000 new, 2 changed, 0 vanished"


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("../../../etc/passwd", 4),
        ("../labels/part-000000000000-000000000003.parquet", 4),
        ("part-000000000000-000000000003.parquet", 3),
        ("part-000000000003-000000000000.parquet", 0),
        ("/part-000000000000-000000000003.parquet", 4),
    ],
)
def test_a_part_has_the_name_of_its_rows(tmp_path, name, rows):
    write_changed(tmp_path, lambda record: record["parts"][0].update(name=name, rows=rows))
    assert read_fault(tmp_path) == f"{name!r} is no part of {rows} rows; it was edited"
