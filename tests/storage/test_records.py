"""Records are read back as they were written, and nothing else is taken for one."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from tlray.storage.records import Json, RecordError, dump_record, parse_record, parse_records


@dataclass(frozen=True)
class Inner:
    name: str
    share: float


@dataclass(frozen=True)
class Record:
    format: Literal[2]
    count: int
    ready: bool
    inner: Inner | None
    rows: list[Inner]
    units: tuple[int, ...]
    by_name: dict[str, float | None]
    extra: Json
    note: str | None = None
    options: dict[str, Json] = field(default_factory=dict)


WHOLE = Record(2, 3, True, Inner("a", 0.5), [Inner("b", 1.0)], (64, 32), {"x": 0.25, "y": None}, {"k": [1, "z"]}, "ü")


def change(**values):
    plain = json.loads(dump_record(WHOLE))
    for name, value in values.items():
        if value is ...:
            del plain[name]
        else:
            plain[name] = value
    return json.dumps(plain)


def test_a_record_comes_back_as_it_was_written():
    assert parse_record(Record, dump_record(WHOLE)) == WHOLE
    assert parse_records(Inner, dump_record([Inner("a", 1.0), Inner("b", 0.0)])) == [Inner("a", 1.0), Inner("b", 0.0)]
    assert "ü" in dump_record(WHOLE).decode()


def test_fields_with_a_default_may_be_missing():
    assert parse_record(Record, change(note=...)).note is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": ...}, "the record lacks count"),
        ({"count": ..., "ready": ...}, "the record lacks count; the record lacks ready"),
        ({"counts": 1}, "the record has an unknown field 'counts'"),
        ({"count": "3"}, 'count takes int; got "3"'),
        ({"count": 3.0}, "count takes int; got 3.0"),
        ({"count": True}, "count takes int; got true"),
        ({"count": None}, "count takes int; got null"),
        ({"ready": 1}, "ready takes bool; got 1"),
        ({"format": 1}, "format takes 2; got 1"),
        ({"inner": {"name": "a"}}, "inner lacks share"),
        ({"inner": {"name": "a", "share": "0.5"}}, 'inner.share takes a finite number; got "0.5"'),
        ({"inner": {"name": "a", "share": float("nan")}}, "inner.share takes a finite number; got NaN"),
        ({"inner": []}, "inner takes an object; got []"),
        ({"rows": [{"name": 1, "share": 1}]}, "rows[0].name takes str; got 1"),
        ({"rows": {}}, "rows takes a list; got {}"),
        ({"units": [1, "2"]}, 'units[1] takes int; got "2"'),
        ({"by_name": {"x": float("inf")}}, "by_name.x takes a finite number; got Infinity"),
        ({"extra": {"k": [float("nan")]}}, "extra takes finite numbers; got nan"),
    ],
)
def test_what_is_not_the_record_is_one_clear_error(values, message):
    with pytest.raises(RecordError) as caught:
        parse_record(Record, change(**values))
    assert str(caught.value) == message


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "the record takes an object; got []")])
def test_a_text_that_is_no_object_is_refused(text, message):
    with pytest.raises(RecordError, match=message.replace("[", r"\[")):
        parse_record(Record, text)


def test_whole_numbers_stand_for_floats():
    assert parse_record(Inner, '{"name": "a", "share": 1}').share == 1.0


def test_numbers_that_are_not_finite_are_never_written():
    with pytest.raises(ValueError, match="JSON"):
        dump_record(Inner("a", float("nan")))


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(RecordError) as caught:
        parse_record(Inner, json.dumps({"name": ["x" * 500], "share": 1.0}))
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("found", [1, 2.0, "2", True])
def test_a_literal_is_not_converted(found):
    with pytest.raises(RecordError, match="format takes 2; got"):
        parse_record(Record, change(format=found))


def test_json_that_is_nested_too_deep_is_damaged():
    with pytest.raises(RecordError, match="not JSON"):
        parse_record(Record, "[" * 100_000 + "]" * 100_000)
