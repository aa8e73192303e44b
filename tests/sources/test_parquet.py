import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray import storage
from tlray.errors import DataError
from tlray.sources.candidates import SourceKind
from tlray.sources.parquet import NotATableError, is_table, iter_images, read_table

IMAGES = [f"image {number}".encode() for number in range(200)]


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    (entry,) = storage.list_files(str(path))
    return entry


def test_tables_are_known_by_their_extension():
    assert is_table("s3://b/A.Parquet")
    assert not is_table("a.parquet.gz")


def test_each_row_is_a_candidate_with_its_other_plain_columns(tmp_path):
    entry = write(
        tmp_path / "t.parquet",
        {"tag": ["x", None, "z"], "image": IMAGES[:3], "n": [1, 2, 3], "box": [[1], [2], [3]], "mask": [b"1"] * 3},
    )
    fields, rows = read_table(entry, "image")
    assert [(field.name, str(field.type)) for field in fields] == [("input_tag", "string"), ("input_n", "int64")]
    found = list(rows)
    assert [row.inputs for row in found] == [
        {"input_tag": tag, "input_n": n} for tag, n in (("x", 1), (None, 2), ("z", 3))
    ]
    last = found[2]._replace(inputs=None)
    assert last.uri == f"{tmp_path}/t.parquet#2"
    assert (last.name, last.source, last.member, last.offset) == ("t.parquet#2", SourceKind.PARQUET, "2", 2)
    assert (last.length, last.size, last.mtime_ns, last.reason) == (None, None, entry.mtime_ns, None)


def test_a_table_of_images_alone_has_rows_without_inputs(tmp_path):
    fields, rows = read_table(write(tmp_path / "t.parquet", {"image": IMAGES[:3]}), "image")
    assert fields == []
    assert [(row.member, row.inputs) for row in rows] == [("0", None), ("1", None), ("2", None)]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.struct({"bytes": pa.binary(), "path": pa.string()})]
)
def test_images_are_binary_values_or_structs_with_them(tmp_path, kind):
    values = [{"bytes": b"x", "path": "p"} if pa.types.is_struct(kind) else b"x", None]
    entry = write(tmp_path / "t.parquet", {"image": pa.array(values, kind)})
    assert len(list(read_table(entry, "image")[1])) == 2
    assert list(iter_images(entry.uri, "image", np.array([0, 1]))) == [b"x", None]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.int64(), pa.list_(pa.binary()), pa.struct({"path": pa.string(), "bytes": pa.string()})]
)
def test_a_column_of_another_kind_is_not_one_of_images(tmp_path, kind):
    entry = write(tmp_path / "t.parquet", {"image": pa.array([None], kind), "n": [1]})
    with pytest.raises(NotATableError, match=r"got 'image', and .*t\.parquet has image .*, n int64"):
        read_table(entry, "image")


def test_a_column_that_is_missing_is_named(tmp_path):
    with pytest.raises(NotATableError, match=r"got 'picture', and .*t\.parquet has image binary"):
        read_table(write(tmp_path / "t.parquet", {"image": IMAGES[:1]}), "picture")


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"PAR1" * 10, None])
def test_a_file_of_another_format_is_not_a_table(tmp_path, data):
    entry = write(tmp_path / "t.parquet", {"image": IMAGES[:1]})
    (tmp_path / "t.parquet").unlink()
    if data is not None:
        (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(NotATableError, match=r"t\.parquet cannot be read"):
        read_table(entry, "image")


@pytest.mark.parametrize(
    "rows",
    [range(200), [0], [199], [63, 64, 65], [89, 90], [0, 91, 179, 180], [5, 150], []],
    ids=["all", "first", "last", "batches", "groups", "of every group", "a group between", "none"],
)
def test_images_come_in_the_order_of_their_rows(tmp_path, rows):
    # groups of 90, 90 and 20 rows, read in batches of 64
    entry = write(tmp_path / "t.parquet", {"n": list(range(200)), "image": IMAGES}, row_group_size=90)
    found = list(iter_images(entry.uri, "image", np.array(rows, np.int64)))
    assert found == [IMAGES[row] for row in rows]


def test_of_columns_of_one_name_the_first_is_taken_and_two_of_images_are_refused(tmp_path):
    arrays = [pa.array(["one"]), pa.array(["two"]), pa.array(IMAGES[:1])]
    pq.write_table(pa.Table.from_arrays(arrays, ["x", "x", "image"]), tmp_path / "t.parquet")
    (entry,) = storage.list_files(str(tmp_path / "t.parquet"))
    _, rows = read_table(entry, "image")
    assert [row.inputs for row in rows] == [{"input_x": "one"}]
    pq.write_table(
        pa.Table.from_arrays([pa.array([{"b": 1}]), pa.array([7]), arrays[2]], ["x", "x", "image"]),
        tmp_path / "t.parquet",
    )
    assert [row.inputs for row in read_table(entry, "image")[1]] == [None]
    pq.write_table(pa.Table.from_arrays([arrays[2], arrays[2]], ["image", "image"]), tmp_path / "t.parquet")
    with pytest.raises(NotATableError, match="2 columns 'image'; rename all but one"):
        read_table(entry, "image")


def test_text_that_is_not_utf8_is_mended_and_damage_is_one_sentence(tmp_path):
    text = pa.array([b"caf\xe9"]).view(pa.string())
    large = pa.array([b"caf\xe9"], pa.large_binary()).view(pa.large_string())
    columns = {"x": text, "y": large}
    entry = write(tmp_path / "t.parquet", {**columns, "image": IMAGES[:1]})
    _, rows = read_table(entry, "image")
    assert [row.inputs for row in rows] == [{f"input_{name}": "caf\ufffd" for name in columns}]
    numbers = np.arange(5000)
    entry = write(tmp_path / "t.parquet", {"n": numbers, "image": [b"x"] * 5000}, use_dictionary=False)
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[100:1000] = bytes(900)
    (tmp_path / "t.parquet").write_bytes(data)
    _, rows = read_table(entry, "image")
    with pytest.raises(DataError, match=r"t\.parquet cannot be read to its end: .*; copy it again"):
        list(rows)
