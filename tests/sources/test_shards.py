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
from tlray.sources.places import join_places
from tlray.sources.reading import read_rows

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
    images = scan(write_tar(tmp_path / "set.tar", members))
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
    with pytest.raises(DataError, match=r"has no one column label of labels \(its columns: photo .*, kind string\)"):
        scan(str(tmp_path))
    write_table(tmp_path / "2.parquet", [b"a"], pa.array(["x"]), columns=("picture", "kind"))
    with pytest.raises(DataError, match=r"tables with their images in different columns \(.*0.parquet, .*2.parquet\)"):
        scan(str(tmp_path), label_column="kind")


def test_images_without_a_label_are_named(tmp_path):
    write_table(tmp_path / "train.parquet", [b"0", b"1", b"2"], pa.array([1, -1, 0], pa.int64()), ["ant", "bee"])
    with pytest.raises(DataError, match=r"1 images without a label \(.*train.parquet#1\)"):
        scan(str(tmp_path / "train.parquet"))
    with pytest.raises(
        DataError, match=r"got 2 images without a label \(.*set.tar#1.jpg, .*#2.jpg\); images in folders of"
    ):
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


def test_an_image_without_its_sidecar_does_not_take_its_folder_for_a_class(tmp_path):
    members = [(f"train/{number}.jpg", b"i") for number in range(1, 5)] + [("train/1.cls", b"a")]
    members += [("train/3.json", b'{"label": null}'), ("train/4.json", b"[" * 60_000)]
    with pytest.raises(DataError, match=r"3 images without a label \(.*train/2.jpg, .*train/3.jpg, .*train/4.jpg\)"):
        scan(write_tar(tmp_path / "set.tar", members))


def test_folders_of_different_depths_are_refused(tmp_path):
    members = [("d/cat/1.jpg", b"1"), ("d/cat/2020/2.jpg", b"2"), ("d/dog/3.jpg", b"3")]
    with pytest.raises(DataError, match=r"folders of different depths, .* \(.*d/cat/1.jpg, .*d/cat/2020/2.jpg\)"):
        scan(write_tar(tmp_path / "set.tar", members))


def test_a_label_column_that_is_asked_for_is_the_only_key(tmp_path):
    members = [("1.jpg", b"1"), ("1.cls", b"0"), ("1.json", b'{"species": "bee", "label": "x"}'),
               ("2.jpg", b"2"), ("2.json", b'{"species": "ant", "label": "x"}')]  # fmt: skip
    path = write_tar(tmp_path / "set.tar", [(f"x/{name}", data) for name, data in members])
    assert scan(path, label_column="species").classes == ("ant", "bee")
    with pytest.raises(DataError, match="2 images without a label"):  # not x, their folder
        scan(path, label_column="kind")


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (pa.array([0.0, 1.0, None], pa.float64()), ["ant", "bee"], None),
        (pa.array([0.0, 1.0, float("nan")], pa.float64()), None, None),
        (pa.array([0.0, 1.0, 1.0], pa.float64()), ["ant", "bee"], ["ant", "bee", "bee"]),
        (pa.array([0, 1, 1], pa.uint64()), ["ant", "bee"], ["ant", "bee", "bee"]),
        (pa.array([False, True, True]), None, ["False", "True", "True"]),
        (pa.array([0, 1, 7], pa.int32()), ["ant", "bee"], None),
        (pa.array(["x", "y", " y "]).dictionary_encode(), None, ["x", "y", "y"]),
    ],
)
def test_labels_of_any_type_are_what_they_mean(tmp_path, labels, names, expected):
    path = write_table(tmp_path / "t.parquet", [b"0", b"1", b"2"], labels, names)
    if expected is None:
        with pytest.raises(DataError, match=r"1 images without a label \(.*t.parquet#2\)"):
            scan(path)
    else:
        assert list_labels(scan(path)) == expected


def test_tables_with_and_without_names_are_refused_together(tmp_path):
    write_table(tmp_path / "0.parquet", [b"0", b"1"], pa.array([0, 1]), ["ant", "bee"])
    write_table(tmp_path / "1.parquet", [b"0", b"1"], pa.array([0, 1]))
    with pytest.raises(DataError, match="tables with and without names"):
        scan(str(tmp_path))


def test_other_images_of_a_sample_and_other_files_are_passed_over_and_counted(tmp_path, capsys):
    members = [("1.jpg", b"1"), ("1.mask.png", b"m"), ("1.cls", b"a"), ("2.jpg", b"2"), ("2.cls", b"b")]
    shards = tmp_path / "shards"
    shards.mkdir()
    write_tar(shards / "set.tar", members)
    (shards / "README.md").write_text("x")
    assert read(scan(str(shards))) == [b"1", b"2"]
    printed = capsys.readouterr().out
    assert "1 one of several images of its sample" in printed
    assert "1 beside the archives and tables" in printed


def test_members_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"1 names of several members \(.*set.tar#a/1.jpg\); pack them under"):
        scan(write_tar(tmp_path / "set.tar", [("a/1.jpg", b"old"), ("b/2.jpg", b"b"), ("a/1.jpg", b"new")]))


def test_archives_and_tables_without_images_are_named(tmp_path):
    with pytest.raises(DataError, match="got no images"):
        scan(write_tar(tmp_path / "set.tar", [("a/notes.txt", b"x")]))
    with pytest.raises(DataError, match="got no images"):
        scan(write_table(tmp_path / "t.parquet", [], pa.array([], pa.int64())))


def test_class_folders_of_images_without_extensions_are_not_taken_for_shards(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0").write_bytes(b"x")
    write_tar(tmp_path / "backup.tar", [("a/1.jpg", b"i"), ("b/2.jpg", b"i")])
    assert scan(str(tmp_path)).classes == ("cat", "dog")
    assert "1 archives and tables beside class folders" in capsys.readouterr().out


def test_the_listing_changes_with_a_table_and_not_with_its_folder(tmp_path):
    listed = []
    for folder, images in (("a", [b"0", b"1"]), ("b", [b"0", b"1"]), ("c", [b"0", b"12345"])):
        (tmp_path / folder).mkdir()
        found = scan(write_table(tmp_path / folder / "t.parquet", images, pa.array(["x", "y"])))
        listed.append((found.table["name"].to_pylist(), found.table["size"].to_pylist()))
    assert listed[0] == listed[1] != listed[2]


def test_the_same_table_twice_is_read_right_across_the_border(tmp_path):
    path = write_table(tmp_path / "t.parquet", [b"0", b"1", b"2", b"3"], pa.array(["x", "y", "x", "y"]))
    images = scan(path)
    both = join_places([images.places, images.places])
    rows = [2, 3, 4, 5, 7, 0]
    assert list(both.fetch(rows, MAX_BYTES)) == [b"2", b"3", b"0", b"1", b"3", b"0"]
    border = both.table.slice(2, 4)
    assert [fetched.data for fetched in read_rows(border, MAX_BYTES, "image")] == [b"2", b"3", b"0", b"1"]
    assert list(both.fetch_all(MAX_BYTES)) == [b"0", b"1", b"2", b"3"] * 2


def test_places_of_tables_with_other_image_columns_are_not_joined(tmp_path):
    tables = [
        write_table(tmp_path / f"{name}.parquet", [b"0", b"1"], pa.array(["x", "y"]), columns=(name, "label"))
        for name in ("image", "photo")
    ]
    with pytest.raises(DataError, match=r"different columns \(image, photo\)"):
        join_places([scan(path).places for path in tables])


def test_shards_of_several_roots_keep_their_order(tmp_path):
    first = write_tar(tmp_path / "b.tar", [("x/1.jpg", b"b1"), ("y/2.jpg", b"b2")])
    second = write_tar(tmp_path / "a.tar", [("y/1.jpg", b"a1"), ("x/2.jpg", b"a2")])
    images = scan([first, second])
    assert read(images) == [b"b1", b"b2", b"a1", b"a2"]
    assert list_labels(images) == ["x", "y", "y", "x"]


def test_a_sample_of_several_images_needs_one_that_is_clear(tmp_path):
    members = [("1.jpg", b"1"), ("1.png", b"m"), ("1.cls", b"a"), ("2.jpg", b"2"), ("2.cls", b"b")]
    with pytest.raises(DataError, match=r"1 samples of several images \(.*set.tar#1.jpg\); keep one of each"):
        scan(write_tar(tmp_path / "set.tar", members))
    alone = [("1.left.jpg", b"1"), ("1.cls", b"a"), ("2.jpg", b"2"), ("2.cls", b"b")]
    assert read(scan(write_tar(tmp_path / "alone.tar", alone))) == [b"1", b"2"]


def test_sidecars_and_folders_are_not_mixed(tmp_path):
    names = ("train/1.jpg", "train/1.cls", "train/2.jpg", "train/2.cls")
    first = write_tar(tmp_path / "0.tar", [(name, str(place).encode()) for place, name in enumerate(names)])
    write_tar(tmp_path / "1.tar", [("train/3.jpg", b"3")])
    with pytest.raises(DataError, match=r"1 images without a label \(.*1.tar#train/3.jpg\)"):
        scan(str(tmp_path))
    other = write_tar(tmp_path / "2.tar", [("a/1.jpg", b"1"), ("b/2.jpg", b"2")])
    mixed = r"labels both in sidecars and by folders \(.*0.tar#train/1.jpg, .*2.tar#a/1.jpg\)"
    with pytest.raises(DataError, match=mixed):
        scan([first, other])


def test_descriptions_beside_images_of_class_folders_are_no_labels(tmp_path):
    members = [("cat/1.jpg", b"1"), ("cat/1.json", b'{"width": 3}'), ("dog/2.jpg", b"2"), ("dog/2.json", b"{}")]
    assert list_labels(scan(write_tar(tmp_path / "set.tar", members))) == ["cat", "dog"]


def test_a_sidecar_that_is_too_large_leaves_its_image_without_a_label(tmp_path):
    members = [("x/1.jpg", b"1"), ("x/1.json", b'{"label": "a", "more": "' + b"m" * 70_000 + b'"}')]
    members += [("x/2.jpg", b"2"), ("x/2.cls", b"a"), ("x/3.jpg", b"3"), ("x/3.cls", b"-1")]
    with pytest.raises(DataError, match=r"2 images without a label \(.*#x/1.jpg, .*#x/3.jpg\)"):
        scan(write_tar(tmp_path / "set.tar", members))


def test_files_of_other_tools_do_not_hide_shards(tmp_path):
    (tmp_path / "train").mkdir()
    write_tar(tmp_path / "train" / "0.tar", [("a/1.jpg", b"1"), ("b/2.jpg", b"2")])
    (tmp_path / "train" / "_SUCCESS").write_bytes(b"")
    assert scan(str(tmp_path)).classes == ("a", "b")


def test_a_shard_that_cannot_be_read_is_a_fault(tmp_path):
    write_tar(tmp_path / "0.tar", [("a/1.jpg", b"1"), ("b/2.jpg", b"2")])
    (tmp_path / "1.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(DataError, match=r"1 files or folders that cannot be read \(.*1.tar: "):
        scan(str(tmp_path))


def test_a_list_that_names_one_of_several_members_is_refused(tmp_path):
    write_tar(tmp_path / "set.tar", [("1.jpg", b"old"), ("2.jpg", b"2"), ("1.jpg", b"new")])
    (tmp_path / "list.csv").write_text("uri,label\nset.tar#1.jpg,a\nset.tar#./2.jpg,b\nset.tar#2.jpg,c\n")
    with pytest.raises(DataError) as caught:
        scan(str(tmp_path / "list.csv"))
    assert "naming one of several members of that name (set.tar#1.jpg)" in str(caught.value)
    assert "under two labels (set.tar#2.jpg: b, c)" in str(caught.value)


def test_what_one_root_refuses_several_do_too(tmp_path):
    first = write_table(tmp_path / "0.parquet", [b"0", b"1"], pa.array([0, 1]), ["ant", "bee"])
    second = write_table(tmp_path / "1.parquet", [b"0", b"1"], pa.array([0, 1]))
    with pytest.raises(DataError, match="tables with and without names"):
        scan([first, second])
