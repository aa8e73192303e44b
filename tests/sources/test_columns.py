import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.sources.columns import convert, make_portable, make_text, name_columns


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ["input_a", "input_b"]),
        (["a", "a", "a"], ["input_a", "input_a_2", "input_a_3"]),
        (["Label", "label"], ["input_Label", "input_label_2"]),
        (["a", "a_2", "a"], ["input_a", "input_a_2", "input_a_3"]),
        (["a b", "a;b", "a(b)"], ["input_a_b", "input_a_b_2", "input_a_b_"]),
        (["größe", "写"], ["input_größe", "input_写"]),
    ],
)
def test_names_differ_in_more_than_case(names, expected):
    assert name_columns(names) == expected


DELTA = datetime.timedelta(seconds=1)
COLUMNS = [
    (pa.array([1], pa.int8()), "int8", 1),
    (pa.array([2**32 - 1], pa.uint32()), "int64", 2**32 - 1),
    (pa.array([1.5], pa.float16()), "float", 1.5),
    (pa.array([1.5], pa.float64()), "double", 1.5),
    (pa.array(["x"], pa.string_view()), "string", "x"),
    (pa.array([b"x"], pa.large_binary()), "binary", b"x"),
    (pa.array(["x"]).dictionary_encode(), "string", "x"),
    (pa.array([None]), "string", None),
    (pa.array([1], pa.timestamp("s")), "timestamp[us]", datetime.datetime(1970, 1, 1, 0, 0, 1)),
    (pa.array([1999], pa.timestamp("ns")), "timestamp[us]", datetime.datetime(1970, 1, 1, 0, 0, 0, 1)),
    (pa.array([1], pa.date32()), "date32[day]", datetime.date(1970, 1, 2)),
    (pa.array([86_400_000], pa.date64()), "date32[day]", datetime.date(1970, 1, 2)),
    (pa.array([datetime.time(1, 2)]), "string", "01:02:00.000000"),
    (pa.array([1], pa.decimal256(50)), "string", "1"),
    (pa.array([[1, 2]], pa.list_(pa.uint8(), 2)), "list<item: int16>", [1, 2]),
    (pa.array([[datetime.time(1, 2)]]), "string", '["01:02:00"]'),
    (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())), "string", '[["a", 1]]'),
    (pa.array([{"a": 1}], pa.struct([("a", pa.uint16())])), "struct<a: int32>", {"a": 1}),
    (pa.array([{"a": DELTA}]), "string", '{"a": "0:00:01"}'),
    (pa.array([{}], pa.struct([])), "string", "{}"),
]


@pytest.mark.parametrize(("column", "kind", "value"), COLUMNS, ids=lambda value: str(getattr(value, "type", "")))
def test_types_become_those_that_every_reader_knows(tmp_path, column, kind, value):
    portable = make_portable(column.type)
    assert str(portable) == kind
    written = convert(column, portable)
    assert written.to_pylist() == [value]
    pq.write_table(pa.table({"x": written}), tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet")["x"].to_pylist() == [value]
    assert make_portable(portable) == portable


def test_text_stays_and_other_values_become_json():
    assert [make_text(value) for value in (None, "é", 1, ["é"])] == [None, "é", "1", '["é"]']
