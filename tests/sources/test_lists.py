import csv
import datetime
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tlray.errors import DataError
from tlray.sources import lists
from tlray.sources.lists import is_list, open_list, shorten


def read(path, address="uri", as_text=()):
    opened = open_list(str(path), address, as_text=as_text)
    return opened, [values if values is None else list(values) for _, values in opened.lines]


def write(folder, name, content, encoding="utf-8"):
    data = content if isinstance(content, bytes) else content.encode(encoding)
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.csv.gz", "s3://b/a.jsonl", "a.ndjson.gz", "a.Parquet"])
def test_lists_are_known_by_their_names(name):
    assert is_list(name)
    assert not is_list(name + ".txt")


# ---- delimiters, encodings, line ends


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends_are_found(tmp_path, delimiter, name, end):
    lines = [["uri", "label"], ["a.jpg", "x, y; z\tw"], ["b\n.jpg", 'say "no"']]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(lines)
    opened, values = read(write(tmp_path, name, text.getvalue()))
    assert opened.names == ("uri", "label")
    assert values == lines[1:]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding, name):
    text = "uri\nCafé 写真.jpg\n" if name == "a.csv" else '{"uri": "Café 写真.jpg"}\n'
    assert read(write(tmp_path, name, text, encoding))[1] == [["Café 写真.jpg"]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("uri\na.jpg\nCafé.jpg\n".encode("latin-1"), r"line 3: the byte 0xE9 is not UTF-8"),
        ("uri\na.jpg\n".encode("utf-16-le"), "line 1: a zero byte"),
        (b"uri\na\0.jpg\n", "line 2: a zero byte"),
        (b"\xff\xfeu", "cannot be read"),
    ],
)
def test_other_encodings_are_named_with_their_line(tmp_path, data, expected):
    with pytest.raises(DataError, match=expected):
        read(write(tmp_path, "a.csv", data))


def test_blanks_behind_delimiters_are_dropped_where_the_header_has_them(tmp_path):
    text = 'uri, label\na.jpg, cat\nb.jpg, "x, y"\n'
    opened, values = read(write(tmp_path, "a.csv", text))
    assert opened.names == ("uri", "label")
    assert values == [["a.jpg", "cat"], ["b.jpg", "x, y"]]
    assert read(write(tmp_path, "b.csv", "uri,label\na.jpg, cat\n"))[1] == [["a.jpg", " cat"]]


def test_empty_lines_are_lines_without_values(tmp_path):
    opened = open_list(str(write(tmp_path, "a.csv", "\nuri,n\n\na.jpg,1\n   \n,\n")), "uri")
    assert list(opened.lines) == [(3, None), (4, ["a.jpg", "1"]), (5, None), (6, ["", ""])]


def test_delimiters_at_the_end_are_no_values(tmp_path):
    assert read(write(tmp_path, "a.csv", "uri,n\na.jpg,1,,\n"))[1] == [["a.jpg", "1"]]


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg,1,2"])
def test_a_line_with_other_columns_is_named(tmp_path, line):
    with pytest.raises(DataError, match=rf"line 3: {line.count(',') + 1} values, where the header names 2 columns"):
        read(write(tmp_path, "a.csv", f"uri,n\nb.jpg,1\n{line}\n"))


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;"])
def test_excels_word_on_the_delimiter_is_taken(tmp_path, first):
    opened, values = read(write(tmp_path, "a.csv", f"{first}\nuri;n\na,1.jpg;1,5\n"))
    assert (opened.names, values) == (("uri", "n"), [["a,1.jpg", "1,5"]])


@pytest.mark.parametrize("data", [b"", b"\n\n", b"sep=;\n"])
def test_a_list_without_a_header_is_refused(tmp_path, data):
    with pytest.raises(DataError, match="no header"):
        read(write(tmp_path, "a.csv", data))


# ---- quotation marks


@pytest.mark.parametrize("count", [4, 1000, 50_000])
@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_a_quotation_mark_that_is_never_closed_is_named(tmp_path, count, where):
    lines = [f"{index}.jpg,cat" for index in range(count)]
    index = int(where * (count - 1))
    lines[index] = lines[index].replace("cat", '"cat')
    with pytest.raises(DataError, match=rf"line {index + 2:,}: a quotation mark opens here that is never closed"):
        read(write(tmp_path, "a.csv", "\n".join(["uri,label", *lines, ""])))


def test_an_opening_behind_a_value_of_several_lines_is_found(tmp_path):
    text = 'uri,a,b\n1.jpg,"two\nli""nes","open\n2.jpg,x,y\n'
    with pytest.raises(DataError, match="line 3: a quotation mark opens here that is never closed"):
        read(write(tmp_path, "a.csv", text))


@pytest.mark.parametrize(
    ("one", "two"), [('1.jpg,"cat', '5.jpg,"dog'), ('1.jpg,"cat', '5.jpg,dog"'), ('"1.jpg,cat', '5.jpg",dog')]
)
@pytest.mark.parametrize("apart", [1, 5, 500])
def test_two_stray_marks_swallow_nothing(tmp_path, one, two, apart):
    between = [f"{index}.jpg,cow" for index in range(100, 99 + apart)]
    text = "\n".join(["uri,label", "0.jpg,cat", one, *between, two, "9.jpg,dog", ""])
    with pytest.raises(DataError, match="line 3: a quotation mark opens here"):
        read(write(tmp_path, "a.csv", text))


def test_a_mark_inside_a_value_is_a_character(tmp_path):
    assert read(write(tmp_path, "a.csv", 'uri,label\na.jpg,19" rack\n'))[1] == [["a.jpg", '19" rack']]


def test_captions_of_many_lines_are_kept(tmp_path):
    caption = "first, second\r\n\r\nthird\n" + "z" * 300_000
    text = io.StringIO()
    csv.writer(text).writerows([["uri", "caption"], ["a.jpg", caption]])
    assert read(write(tmp_path, "a.csv", text.getvalue()))[1] == [["a.jpg", caption]]


def test_messages_quote_no_more_than_200_characters(tmp_path, monkeypatch):
    assert shorten("x" * 200) == "x" * 200
    assert len(shorten("x" * 10_000)) == 203
    monkeypatch.setattr(lists, "_MAX_LINE_CHARACTERS", 1000)
    with pytest.raises(DataError, match="line 2: longer than 1,000 characters") as caught:
        read(write(tmp_path, "a.csv", "uri\n" + "x" * 5000))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


# ---- JSON lines


def write_json(folder, records, name="a.jsonl"):
    return write(folder, name, "".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([None, "x"], "string", [None, "x"]),
        ([1, 2.5], "double", [1, 2.5]),
        ([1, "n/a"], "string", ["1", "n/a"]),
        ([1, None], "int64", [1, None]),
        ([2**53 + 1, 0.5], "string", ["9007199254740993", "0.5"]),
        ([2**63, 1], "string", ["9223372036854775808", "1"]),
        ([True, False], "bool", [True, False]),
        ([True, 1], "string", ["true", "1"]),
        (["2024-05-01", "unknown"], "string", ["2024-05-01", "unknown"]),
        ([[], ["é"]], "string", ["[]", '["é"]']),
        ([{"a": 1}, {"b": None}], "string", ['{"a": 1}', '{"b": null}']),
        ([None, None], "string", [None, None]),
        (["\ud800", "x"], "string", ["\ufffd", "x"]),
    ],
)
def test_columns_whose_values_drift_become_text(tmp_path, values, kind, expected):
    opened, lines = read(write_json(tmp_path, [{"uri": "a.jpg", "x": value} for value in values]))
    assert (opened.names, [str(kind) for kind in opened.types]) == (("uri", "x"), ["string", kind])
    assert lines == [["a.jpg", value] for value in expected]
    types = {"big" if value == 2**63 else type(value) for value in values if value is not None}
    assert opened.drifting == (("x",) if len(types) > 1 and kind == "string" else ())


def test_a_key_may_come_late_or_be_missing(tmp_path):
    records = [{"uri": f"{index}.jpg"} for index in range(3000)]
    records[2999]["camera"] = "x"
    opened, lines = read(write_json(tmp_path, records))
    assert opened.names == ("uri", "camera")
    assert lines == [[f"{index}.jpg", None] for index in range(2999)] + [["2999.jpg", "x"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"uri": "a.jpg"}]', "line 1: a JSON array; write each object on a line of its own"),
        ('{\n  "uri": "a.jpg"\n}\n', "line 1: a part of a JSON value; write each object on one line"),
        ('{"uri": "a.jpg"}\n\n{"uri": \n', "line 3: not JSON"),
        ('{"uri": "a.jpg"}\n7\n', "line 2: no JSON object"),
        ('{"uri": 1.5}\n', r"line 1: uri is 1\.5, neither text nor a whole number"),
        ("[" * 100_000, "line 1: "),
    ],
)
def test_what_is_no_object_a_line_is_named(tmp_path, text, expected):
    with pytest.raises(DataError, match=expected):
        read(write(tmp_path, "a.jsonl", text))


def test_labels_may_be_numbers_in_some_lines(tmp_path):
    records = [{"uri": "a.jpg", "label": 3}, {"uri": "b.jpg", "label": "three"}]
    opened, lines = read(write_json(tmp_path, records), as_text=("label",))
    assert lines == [["a.jpg", "3"], ["b.jpg", "three"]]
    assert opened.drifting == ()


# ---- Parquet


def test_own_columns_come_in_types_that_every_reader_knows(tmp_path):
    moment = datetime.datetime(2024, 5, 1, 12, 0, 0, 123456)
    table = pa.table(
        {
            "uri": pa.array([b"a.jpg", b"b.jpg"]),
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "big": pa.array(["x", None], pa.large_string()),
            "at": pa.array([moment, None], pa.timestamp("ns")),
            "count": pa.array([2**64 - 1, None], pa.uint64()),
            "small": pa.array([255, None], pa.uint8()),
            "time": pa.array([datetime.time(1, 2, 3), None]),
            "tags": pa.array([["x"], None], pa.large_list(pa.large_string())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    opened, lines = read(tmp_path / "a.parquet")
    assert [str(kind) for kind in opened.types] == [
        "string", "string", "string", "timestamp[us]", "decimal128(20, 0)", "int16", "string", "list<item: string>"
    ]  # fmt: skip
    microseconds = (moment - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1)
    assert lines[0] == ["a.jpg", "x", "x", microseconds, 2**64 - 1, 255, "01:02:03.000000", ["x"]]
    assert lines[1] == ["b.jpg", "y", *[None] * 6]


def test_binary_addresses_must_be_utf8(tmp_path):
    pq.write_table(pa.table({"uri": pa.array([b"\xff.jpg"])}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_column_of_addresses_that_occurs_twice_is_refused(tmp_path, name):
    if name == "a.csv":
        write(tmp_path, name, "uri,n,uri\na,1,b\n")
    else:
        table = pa.table([pa.array(["a"]), pa.array([1]), pa.array(["b"])], names=["uri", "n", "uri"])
        pq.write_table(table, tmp_path / name)
    with pytest.raises(DataError, match="has 2 columns 'uri'; rename all but one"):
        read(tmp_path / name)


# ---- any list that Python's own modules write

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8).map(str.strip).filter(bool)
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(data=st.data())
def test_what_pythons_csv_module_writes_is_read_back_or_refused_with_its_line(tmp_path_factory, data):
    own = data.draw(st.lists(NAMES.filter(lambda name: name != "uri" and '"' not in name), max_size=3))
    rows = data.draw(st.lists(st.tuples(*[TEXTS] * (len(own) + 1)), max_size=8))
    delimiter = data.draw(st.sampled_from([",", ";", "\t"]))
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    # with "\r" alone, Python leaves a "\n" inside a value without quotation marks, and could not read it either
    quoting = data.draw(st.sampled_from([csv.QUOTE_ALL] if end == "\r" else [csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    assume("uri" not in [part for name in own for part in name.replace("\t", ",").replace(";", ",").split(",")])
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([["uri", *own], *rows])
    path = write(tmp_path_factory.mktemp("list"), "a.csv", text.getvalue(), encoding)
    try:
        opened, lines = read(path)
    except DataError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert "line " in refused
        return
    assert opened.names == ("uri", *own)
    expected = [None if len(row) == 1 and not row[0].strip() else list(row) for row in rows]
    assert [line for line in lines if line is not None] == [row for row in expected if row is not None]


JSON_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
JSON_VALUES |= st.lists(JSON_VALUES, max_size=2) | st.dictionaries(NAMES, JSON_VALUES, max_size=2)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(records=st.lists(st.dictionaries(st.sampled_from("abcd"), JSON_VALUES), max_size=8))
def test_what_pythons_json_module_writes_is_read_back(tmp_path_factory, records):
    records = [{"uri": f"{index}.jpg", **record} for index, record in enumerate(records)]
    opened, lines = read(write_json(tmp_path_factory.mktemp("list"), records))
    assert len(lines) == len(records)
    for record, values in zip(records, lines, strict=True):
        for name, kind, value in zip(opened.names, opened.types, values, strict=True):
            expected = record.get(name)
            if kind == pa.string() and not isinstance(expected, str | None):
                expected = json.dumps(expected, ensure_ascii=False)
            assert value == expected


def test_times_beyond_pythons_are_kept(tmp_path):
    """The year 9999 as "never", of which no zone may be a second later, and dates before the year 1."""
    types = {"never": pa.timestamp("us", "Asia/Tokyo"), "day": pa.date32(), "zone": pa.timestamp("us", "Mars/Phobos")}
    table = pa.table({"uri": ["a.jpg"]} | {name: pa.array([2**31 - 1], kind) for name, kind in types.items()})
    table = table.set_column(1, "never", pa.array([253402300799999999], types["never"]))
    pq.write_table(table, tmp_path / "a.parquet")
    opened, (line,) = read(tmp_path / "a.parquet")
    back = [pa.array([value], kind) for value, kind in zip(line[1:], opened.types[1:], strict=True)]
    assert [one.equals(two.combine_chunks()) for one, two in zip(back, table.columns[1:], strict=True)] == [True] * 3


def test_keys_of_json_are_text_that_can_be_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"uri": "a.jpg", "\\ud83d": 1}\n')
    opened, lines = read(path)
    assert opened.names == ("uri", "\ufffd")
    assert lines == [["a.jpg", 1]]
