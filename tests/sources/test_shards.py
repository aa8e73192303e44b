"""Labelled images in archives and tables, as people pack them."""

import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.errors import DataError, FetchError
from tlray.sources.labelled import scan

MAX_BYTES = 1000


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def write_table(path, images, labels, names=None, *, columns=("image", "label"), row_group_size=2):
    schema = pa.schema(
        [(columns[0], pa.struct([("bytes", pa.binary()), ("path", pa.string())])), (columns[1], labels.type)]
    )
    if names is not None:
        features = {columns[1]: {"names": names, "_type": "ClassLabel"}}
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    structs = pa.array([{"bytes": data, "path": "x.jpg"} for data in images], schema.field(0).type)
    pq.write_table(pa.table([structs, labels], schema=schema), path, row_group_size=row_group_size)
    return str(path)


def read(images, rows=None):
    rows = range(len(images.places)) if rows is None else rows
    return list(images.places.fetch(rows, MAX_BYTES))


def list_labels(images):
    return [images.classes[label] for label in images.table["label"].to_pylist()]


def test_folders_in_an_archive_are_classes(tmp_path):
    members = [("set/cat/1.jpg", b"c1"), ("set/dog/1.jpg", b"d1"), ("set/cat/2.jpg", b"c2"), ("set/README", b"x"),
               ("set/notes.txt", b"n"), ("set/dog/._1.jpg", b"f")]  # fmt: skip
    images = scan(write_tar(tmp_path / "set.tar", [member for member in members if member[0] != "set/README"]))
    assert images.classes == ("cat", "dog")
    assert list_labels(images) == ["cat", "dog", "cat"]  # in the archive's order
    assert images.table["uri"].to_pylist()[0] == f"{tmp_path}/set.tar#set/cat/1.jpg"
    assert read(images) == [b"c1", b"d1", b"c2"]
    assert read(images, [2, 0, 0, 1]) == [b"c2", b"c1", b"c1", b"d1"]


def test_a_zip_is_read_like_a_tar(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/1.png", "b/1.png", "a/2.png"):
            archive.writestr(name, name * 9)
    images = scan(str(tmp_path / "set.zip"))
    assert list_labels(images) == ["a", "b", "a"]
    assert read(images, [1, 0]) == [b"b/1.png" * 9, b"a/1.png" * 9]


def test_sidecars_tell_the_label_before_folders_do(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    write_tar(shards / "0.tar", [("x/1.jpg", b"i1"), ("x/1.cls", b"7\n"), ("x/2.jpg", b"i2"), ("x/2.cls", b"10")])
    record = json.dumps({"caption": "c", "label": "7"}).encode()
    write_tar(shards / "1.tar", [("3.jpg", b"i3"), ("3.json", record), ("4.jpg", b"i4"), ("4.json", b'{"cls": 10}')])
    images = scan(str(shards))
    assert images.classes == ("7", "10")
    assert list_labels(images) == ["7", "10", "7", "10"]
    assert read(images) == [b"i1", b"i2", b"i3", b"i4"]


def test_a_table_of_images_has_the_names_of_its_schema(tmp_path):
    labels = pa.array([1, 0, 1, 0, 1], pa.int64())
    path = write_table(tmp_path / "train.parquet", [b"0", b"1", b"2", b"3", b"4"], labels, ["ant", "bee"])
    images = scan(path)
    assert images.classes == ("ant", "bee")
    assert list_labels(images) == ["bee", "ant", "bee", "ant", "bee"]
    assert read(images, [4, 1, 1]) == [b"4", b"1", b"1"]
    assert images.places.list_files([0, 3]) == [(path, None)]


def test_tables_of_a_folder_may_have_text_labels_in_another_column(tmp_path):
    for number in range(2):
        labels = pa.array(["x", "y"])
        write_table(tmp_path / f"{number}.parquet", [b"a", b"b"], labels, columns=("photo", "kind"))
    images = scan(str(tmp_path), label_column="kind")
    assert list_labels(images) == ["x", "y", "x", "y"]
    assert images.places.image_column == "photo"
    with pytest.raises(DataError, match=r"has no column label of labels \(its other columns: kind\)"):
        scan(str(tmp_path))
    write_table(tmp_path / "2.parquet", [b"a"], pa.array(["x"]), columns=("picture", "kind"))
    with pytest.raises(DataError, match=r"in different columns .*; rename them alike"):
        scan(str(tmp_path), label_column="kind")


def test_images_without_a_label_are_named(tmp_path):
    write_table(tmp_path / "train.parquet", [b"0", b"1", b"2"], pa.array([1, -1, 0], pa.int64()), ["ant", "bee"])
    with pytest.raises(DataError, match=r"1 images without a label \(.*train.parquet#1\)"):
        scan(str(tmp_path / "train.parquet"))
    with pytest.raises(DataError, match=r"got 2 images without a label \(.*set.tar#1.jpg, .*#2.jpg\)"):
        scan(write_tar(tmp_path / "set.tar", [("1.jpg", b"i"), ("2.jpg", b"i"), ("a/3.jpg", b"i"), ("b/4.jpg", b"i")]))


def test_a_packed_archive_is_refused_with_the_way_out(tmp_path):
    path = write_tar(tmp_path / "set.tar.gz", [("a/1.jpg", b"i"), ("b/2.jpg", b"i")], "w:gz")
    with pytest.raises(DataError, match=r"a packed archive .*unpack them to \.tar or \.zip"):
        scan(path)


def test_a_folder_with_images_is_one_of_class_folders(tmp_path, write_digits):
    write_digits(tmp_path, 2, 2)
    write_tar(tmp_path / "more.tar", [("a/1.jpg", b"i"), ("b/2.jpg", b"i")])
    assert scan(str(tmp_path)).table.num_rows == 4


def test_lists_may_name_members_of_archives(tmp_path):
    write_tar(tmp_path / "set.tar", [("1.jpg", b"i1"), ("2.jpg", b"i2")])
    (tmp_path / "photo.jpg").write_bytes(b"p")
    (tmp_path / "list.csv").write_text("uri,label\nset.tar#2.jpg,b\nphoto.jpg,a\nset.tar#1.jpg,a\n")
    images = scan(str(tmp_path / "list.csv"))
    assert list_labels(images) == ["a", "a", "b"]
    assert read(images) == [b"p", b"i1", b"i2"]
    write_tar(tmp_path / "packed.tar.gz", [("1.jpg", b"i1")], "w:gz")
    (tmp_path / "list.csv").write_text("uri,label\nset.tar#none.jpg,b\nphoto.jpg,a\npacked.tar.gz#1.jpg,a\n")
    with pytest.raises(
        DataError, match=r"1 line in packed archives; .* 1 line naming no file in its archive \(set.tar#none.jpg\)"
    ):
        scan(str(tmp_path / "list.csv"))


def test_a_table_with_addresses_is_a_list(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    table = pa.table({"uri": ["a.jpg", "a.jpg"], "label": ["x", "x"], "mask": pa.array([b"1", b"2"])})
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"takes a manifest .* one class only \(x\)"):
        scan(str(tmp_path / "list.parquet"))


def test_an_image_larger_than_allowed_is_not_read(tmp_path):
    images = scan(write_tar(tmp_path / "set.tar", [("a/1.jpg", b"i" * (MAX_BYTES + 1)), ("b/2.jpg", b"i")]))
    first, second = read(images)
    assert isinstance(first, FetchError)
    assert (str(first.code), second) == ("TOO_LARGE", b"i")


def test_a_damaged_archive_is_named(tmp_path):
    path = write_tar(tmp_path / "set.tar", [(f"{name}/1.jpg", b"i" * 700) for name in "abcd"])
    whole = (tmp_path / "set.tar").read_bytes()
    (tmp_path / "set.tar").write_bytes(whole[:3600])
    with pytest.raises(DataError, match=r"got a damaged archive \(.*set\.tar: .*\); copy it again"):
        scan(path)
