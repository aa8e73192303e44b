import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.config import TrainConfig
from tlray.errors import DataError
from tlray.sources.labelled import read_labels, scan
from tlray.training.dataset import list_images

HOSTILE = ["<script>alert(1)<script>.png", "a,b.png", 'qu"ote.png', "new\nline.png", "=1+2.png", "'x.png", " .png"]


@pytest.fixture
def photos(tmp_path):
    """Files a.jpg to f.jpg in a folder; their content doesn't matter to a listing."""
    for index, name in enumerate("abcdef"):
        (tmp_path / f"{name}.jpg").write_bytes(b"x" * index)
    return tmp_path


def write_csv(path, rows, header=("uri", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def list_rows(manifest, *arguments, **options):
    images = scan(manifest, *arguments, **options)
    rows = images.table.to_pylist()
    return images.classes, [(row["uri"].rpartition("/")[2], images.classes[row["label"]]) for row in rows]


def test_classes_are_sorted_and_rows_follow_class_and_address(photos):
    (photos / "deep").mkdir()
    (photos / "deep" / "g.png").write_bytes(b"12345")
    rows = [("b.jpg", "dog"), (str(photos / "a.jpg"), "dog"), ("deep/g.png", "cat"), ("c.jpg", "cat")]
    images = scan(write_csv(photos / "m.csv", rows))
    assert images.classes == ("cat", "dog")
    table = images.table.to_pydict()
    assert table["uri"] == [str(photos / name) for name in ("c.jpg", "deep/g.png", "a.jpg", "b.jpg")]
    assert table["label"] == [0, 0, 1, 1]
    assert table["row_id"] == [0, 1, 2, 3]
    assert table["size"] == [2, 5, 0, 1]


def test_manifests_of_every_kind_agree(photos):
    rows = [("a.jpg", "1"), ("b.jpg", "2"), ("c.jpg", "1")]
    expected = list_rows(write_csv(photos / "m.csv", rows))
    (photos / "m.csv.gz").write_bytes(gzip.compress((photos / "m.csv").read_bytes()))
    lines = (json.dumps({"label": int(label), "uri": uri, "more": None}) for uri, label in rows)
    (photos / "m.jsonl").write_text("\n".join(lines))
    labels = pa.array([label for _, label in rows]).dictionary_encode()  # as pandas writes categories
    pq.write_table(pa.table({"uri": [uri for uri, _ in rows], "label": labels}), photos / "m.parquet")
    for kind in ("csv.gz", "jsonl", "parquet"):
        assert list_rows(str(photos / f"m.{kind}")) == expected
    assert expected == (("1", "2"), [("a.jpg", "1"), ("c.jpg", "1"), ("b.jpg", "2")])


def test_objects_are_not_asked_for_their_size(photos):
    rows = [("s3://bucket/b.jpg", "x"), ("s3://bucket//a%20b", "y"), ("a.jpg", "y")]
    table = scan(write_csv(photos / "m.csv", rows)).table
    assert table["uri"].to_pylist() == ["s3://bucket/b.jpg", str(photos / "a.jpg"), "s3://bucket//a%20b"]
    assert table["size"].to_pylist() == [0, 0, 0]


def test_a_file_named_twice_counts_once_under_one_label_and_is_a_fault_under_two(photos):
    rows = [("a.jpg", "x"), ("./a.jpg", "x"), (str(photos / "a.jpg"), "x"), ("b.jpg", "y")]
    assert list_rows(write_csv(photos / "m.csv", rows))[1] == [("a.jpg", "x"), ("b.jpg", "y")]
    with pytest.raises(DataError, match=r"1 line under two labels \(\./b\.jpg: y, x\)"):
        scan(write_csv(photos / "m.csv", [*rows, ("./b.jpg", "x")]))


def test_every_fault_is_in_one_message(photos):
    rows = [
        ("", "x"), ("a.jpg", " "), ("b.jpg", "x"), ("b.jpg", "y"), ("gone.jpg", "x"), ("notes.txt", "x"),
        ("file:///etc/passwd", "x"), ("../up.jpg", "x"), ("set.zip#in.jpg", "x"), ("s3://user:hunter2@bucket/k", "x"),
    ]  # fmt: skip
    with pytest.raises(DataError) as caught:
        scan(write_csv(photos / "m.csv", rows), option="--val-data")
    message = str(caught.value)
    assert message.startswith("--val-data takes a manifest with the columns uri and label, of at least two classes; ")
    for phrase in (
        "1 line without an address (line 2)", "1 line without a label (a.jpg)", "under two labels (b.jpg: x, y)",
        "2 lines naming no file (gone.jpg, notes.txt)",
        "the scheme file:// is not allowed", "'..' in an address is not allowed", "one class only (x)",
        "1 line naming no file in its archive (set.zip#in.jpg)",
    ):  # fmt: skip
        assert phrase in message, phrase
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("header", "rows", "expected"),
    [
        (("url", "class"), [("a.jpg", "x")], r"no column uri and no column label \(its columns: url, class\)"),
        (("uri", "class"), [("a.jpg", "x")], r"no column label \(its columns: uri, class\)"),
        (("uri", "label", "label"), [("a.jpg", "x", "y")], "2 columns 'label'"),
        (("uri", "label"), [], "no lines"),
        (("uri", "label"), [("a.jpg", "x"), ("b.jpg", "x")], r"one class only \(x\)"),
    ],
)
def test_what_a_manifest_lacks_is_named(photos, header, rows, expected):
    with pytest.raises(DataError, match=expected):
        scan(write_csv(photos / "m.csv", rows, header))


def test_columns_must_hold_text(photos):
    pq.write_table(pa.table({"uri": ["a.jpg"], "label": [0.5]}), photos / "m.parquet")
    with pytest.raises(DataError, match="a column label of double, not text"):
        scan(str(photos / "m.parquet"))


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "broken.parquet", "ragged.csv", "empty.csv"])
def test_what_cannot_be_read_is_named(photos, name):
    (photos / "broken.parquet").write_bytes(b"x")
    (photos / "ragged.csv").write_text("uri,label\na.jpg,x,y\n")
    (photos / "empty.csv").write_text("")
    with pytest.raises(DataError, match=f"the manifest {photos}/{name} cannot be read"):
        scan(str(photos / name))


def test_other_classes_than_the_training_sets_are_refused(photos):
    manifest = write_csv(photos / "m.csv", [("a.jpg", "x"), ("b.jpg", "z")])
    with pytest.raises(DataError, match="here: x, z; trained: x, y"):
        scan(manifest, ["x", "y"])
    assert list_rows(manifest, ["w", "x", "z"]) == (("w", "x", "z"), [("a.jpg", "x"), ("b.jpg", "z")])


def test_hostile_names_are_names(tmp_path):
    rows = [(name, "=x" if index % 2 else 'y,"\nz') for index, name in enumerate(HOSTILE)]
    for name in HOSTILE:
        (tmp_path / name).write_bytes(b"x")
    classes, listed = list_rows(write_csv(tmp_path / "m.csv", rows))
    assert classes == ("=x", 'y,"\nz')
    assert sorted(listed) == sorted(rows)


def test_blanks_around_a_label_are_dropped(photos):
    rows = [("a.jpg", "cat"), ("b.jpg", " cat"), ("c.jpg", "cat "), ("d.jpg", "dog")]
    classes, listed = list_rows(write_csv(photos / "m.csv", rows))
    assert classes == ("cat", "dog")
    assert [label for _, label in listed] == ["cat"] * 3 + ["dog"]


def test_a_long_list_with_quoted_line_ends_is_read_to_its_end(tmp_path):
    rows = [(f"s3://bucket/{'long' * 20}\n{index}.jpg", f"label {index % 3}") for index in range(40_000)]
    by_label, faults = read_labels(write_csv(tmp_path / "m.csv", rows))
    assert faults == []
    assert sum(map(len, by_label.values())) == len(rows)


def test_the_fingerprint_follows_what_decides(photos):
    def fingerprint(rows):
        manifest = write_csv(photos / "m.csv", rows)
        return list_images(TrainConfig(data=manifest, output="bundle")).fingerprint

    rows = [("a.jpg", "x"), ("b.jpg", "y"), ("s3://bucket/c.jpg", "x")]
    before = fingerprint(rows)
    assert fingerprint(rows[::-1]) == before
    assert fingerprint([("a.jpg", "y"), ("b.jpg", "x"), rows[2]]) != before
    assert fingerprint([*rows, ("d.jpg", "x")]) != before
    (photos / "a.jpg").write_bytes(b"another")
    assert fingerprint(rows) != before
