import io
import tarfile
import zipfile

import pytest

from tlray.output.plan import write_plan
from tlray.sources.candidates import Candidate
from tlray.sources.listing import Selection, find_candidates
from tlray.sources.sidecars import MAX_BYTES, Sidecars, make_fields, split_name

SAMPLES = {
    "in/0.jpg": b"zero", "in/0.cls": b"3\n", "in/0.json": '{"é": 1}'.encode(),
    "in/1.txt": b"before its image", "in/1.jpg": b"one",
    "in/2.seg.png": b"a mask", "in/2.jpg": b"two", "in/2.cls": b"x" * (MAX_BYTES + 1),
    "in/alone.cls": b"7",
}  # fmt: skip


def write_archive(path):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in SAMPLES.items():
                file.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
            for name, data in SAMPLES.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("0.jpg", ("0", "jpg")), ("a.b/0.seg.PNG", ("a.b/0", "seg.png")), ("in/none", ("in/none", "")), (".x", ("", "x"))],
)
def test_names_are_split_as_webdataset_does(name, expected):
    assert split_name(name) == expected


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_what_lies_beside_an_image_is_in_its_row(tmp_path, name):
    archive = write_archive(tmp_path / name)
    selection = Selection(sidecars=("cls", ".JSON", "txt"))
    plan = write_plan(str(tmp_path / "out"), find_candidates([archive], selection), {}, None)
    rows = {row["uri"].rpartition("#")[2]: row for row in plan.read(0, 10).to_pylist()}
    columns = ("input_cls", "input_json", "input_txt")
    assert {member: tuple(row[column] for column in columns) for member, row in rows.items()} == {
        "in/0.jpg": ("3", '{"é": 1}', None),
        "in/1.jpg": (None, None, "before its image"),
        "in/2.seg.png": (None, None, None),
        "in/2.jpg": (None, None, None),
    }
    assert plan.measures.num_excluded == 2  # the sidecar without an image, and the one that is too large


def attach(*names):
    """Members at offsets 0, 1, ...; a sidecar's text is its offset."""
    members = [Candidate(f"a.tar#{name}", name, offset=offset) for offset, name in enumerate(names)]
    sidecars = Sidecars(["cls"])
    for member in members:
        if sidecars.includes(member.name, 1):
            sidecars.add(member, str(member.offset).encode())
    attached = sidecars.attach(members)
    return [(member.name, member.inputs["input_cls"] if member.inputs else None) for member in attached]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "a.cls"], [("a.jpg", "1")]),
        (["a.CLS", "a.jpg"], [("a.jpg", "0")]),
        (["a.jpg", "b.jpg", "a.cls", "b.cls"], [("a.jpg", "2"), ("b.jpg", "3")]),
        (["a.jpg", "a.cls", "a.jpg", "a.cls"], [("a.jpg", "1"), ("a.jpg", "3")]),
        (["a.cls", "a.jpg", "a.cls", "a.jpg"], [("a.jpg", "0"), ("a.jpg", "2")]),
        (["a.jpg", "a.jpg", "a.cls"], [("a.jpg", None), ("a.jpg", "2")]),
        (["a.cls", "a.jpg", "a.cls"], [("a.cls", None), ("a.jpg", "2")]),
        (["a.jpg", "a.cls", "b.jpg", "a.cls"], [("a.jpg", "3"), ("a.cls", None), ("b.jpg", None)]),
        (["a.jpg", "a.seg.png", "a.cls"], [("a.jpg", "2"), ("a.seg.png", "2")]),
    ],
)
def test_a_sidecar_belongs_to_the_image_beside_it(names, expected):
    assert attach(*names) == expected


def test_without_the_option_they_are_left_out_as_other_files(tmp_path):
    found = find_candidates([write_archive(tmp_path / "a.tar")], Selection())
    assert found.fields == []
    rows = list(found.rows)
    assert sum(row.reason is None for row in rows) == 4
    assert len(rows) == len(SAMPLES)


def test_lists_that_name_members_have_their_sidecars(tmp_path):
    write_archive(tmp_path / "a.tar")
    (tmp_path / "m.csv").write_text("uri,note\na.tar#in/0.jpg,first\n")
    found = find_candidates([str(tmp_path / "m.csv")], Selection(sidecars=("cls",)))
    assert [field.name for field in found.fields] == ["input_cls", "input_note"]
    (row,) = found.rows
    assert row.inputs == {"input_cls": "3", "input_note": "first"}


def test_an_image_keeps_its_place_and_a_sidecar_is_none_of_its_own():
    members = [Candidate("a#0.cls", "0.cls"), Candidate("a#0.jpg", "0.jpg"), Candidate("a#1.jpg", "1.jpg")]
    sidecars = Sidecars(["cls"])
    sidecars.add(members[0], b"\xff")
    image, other = sidecars.attach(members)
    assert (image.name, image.inputs) == ("0.jpg", {"input_cls": "\ufffd"})
    assert (other.name, other.inputs) == ("1.jpg", None)
    assert [field.name for field in make_fields(["cls", "CLS"])] == ["input_cls", "input_CLS_2"]
