import csv
import gzip
import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sources.pipe import Pipe
from tlray import storage
from tlray.errors import DataError, OutputError
from tlray.output import plan as planning
from tlray.output.plan import Stream, open_plan, write_plan
from tlray.sources import manifests
from tlray.sources.listing import Selection, find_candidates
from tlray.sources.reading import read_rows

MAX_BYTES = 10_000
CONTENTS = {f"{name}.jpg": name.encode() * (index + 1) for index, name in enumerate("abcdefgh")}


def list_names(inputs, **selection):
    found = find_candidates([str(uri) for uri in inputs], Selection(**selection))
    taken, left_out = {}, {}
    for candidate in found.rows:
        if candidate.reason is None:
            taken[candidate.name] = candidate
        else:
            left_out[candidate.name] = candidate.reason
    return taken, left_out


def write_folder(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in CONTENTS.items():
        (folder / name).write_bytes(data)
    return folder


def write_tar(path, contents=CONTENTS, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_zip(path, contents=CONTENTS, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in contents.items():
            file.writestr(name, data)
    return path


def write_table(path, contents=CONTENTS):
    table = pa.table({"picture": list(contents.values()), "tag": list(contents)})
    pq.write_table(table, path, row_group_size=3)
    return path


def plan_and_read(inputs, folder, **selection):
    """Plan inputs, read the plan back, and read every row's bytes: name -> bytes or code."""
    found = find_candidates([str(uri) for uri in inputs], Selection(**selection))
    plan = write_plan(str(folder), found, {}, selection.get("image_column"))
    rows = open_plan(str(folder)).read(0, plan.num_rows)
    assert rows["row_id"].to_pylist() == list(range(plan.num_rows))
    answers = [fetched.data for fetched in read_rows(rows, MAX_BYTES, selection.get("image_column"))]
    assert len(answers) == plan.num_rows
    return rows, [data if isinstance(data, bytes) else data.code.value for data in answers]


def test_image_names_are_taken_and_the_rest_left_out_with_a_reason(tmp_path):
    names = ["a.JPG", "_b.webp", "no extension", "c d#e?f%20.png", "ü.tiff", "x.txt", ".hidden", "m.csv"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    taken, left_out = list_names([tmp_path])
    assert set(taken) == set(names) - {"x.txt", ".hidden", "m.csv"}
    assert set(left_out) == {"x.txt", ".hidden", "m.csv"}
    assert "extension" in left_out["x.txt"]
    assert "--input of its own" in left_out["m.csv"]


def test_what_a_list_or_an_input_names_is_taken_whatever_its_extension(tmp_path):
    names = ["a.jpg:large", "IMG_20200101_12.30.45", "scan no. 3", "h.bin", "x.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    lines = ["uri", *names, "", "../up.jpg"]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    taken, left_out = list_names([tmp_path / "list.csv"])
    assert list(taken) == [f"{tmp_path}/{name}" for name in names]
    assert left_out == {"": "a line without an address", "../up.jpg": "'..' in an address is not allowed in a manifest"}
    assert len(taken) + len(left_out) == len(lines) - 1
    assert list(list_names([tmp_path / "h.bin"])[0]) == ["h.bin"]
    assert list_names([tmp_path])[0] == {}


def test_what_systems_leave_is_left_out_in_folders_and_archives_alike(tmp_path):
    names = ["a.jpg", "._a.jpg", "__MACOSX/._a.jpg", "Icon\r", "@eaDir/a.jpg", "lost+found/a.jpg"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
        for name in names:
            file.writestr(name, b"x")
    with tarfile.open(tmp_path / "in.tar", "w") as file:
        for name in names:
            file.add(tmp_path / "in" / name, name)
    for source in ("in", "in.zip", "in.tar"):
        taken, left_out = list_names([tmp_path / source])
        assert list(taken) == ["a.jpg"], source
        assert set(left_out) == set(names[1:]), source
        assert "a resource fork of macOS" in left_out.values()


@pytest.mark.parametrize("options", [{}, {"image_column": "image"}])
def test_pipes_named_as_archives_or_tables_are_left_out(tmp_path, options):
    (tmp_path / "a.jpg").write_bytes(b"x")
    for name in ("a.tar", "b.parquet"):
        os.mkfifo(tmp_path / name)
    taken, left_out = list_names([str(tmp_path)], **options)
    assert list(taken) == ["a.jpg"]
    assert "not a plain file" in left_out["a.tar"]
    assert left_out.keys() == {"a.tar", "b.parquet"}


@pytest.mark.parametrize("name", ["photos.csv", "photos.parquet"])
def test_a_folder_may_be_named_as_a_list_is(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.jpg").write_bytes(b"x")
    assert list(list_names([str(tmp_path / name)])[0]) == ["a.jpg"]
    assert list(list_names([str(tmp_path / name), str(tmp_path / name / "a.jpg")])[0]) == ["a.jpg"]


@pytest.mark.parametrize("name", ["list.txt", "list.JSON", "list.jsonl.zst", "list.csv.bz2", "list.arrow"])
def test_a_list_of_a_kind_that_is_not_read_is_refused(tmp_path, name):
    (tmp_path / name).write_text("a.jpg")
    with pytest.raises(DataError, match=r"is no image; a list of images ends in \.csv, \.tsv"):
        list_names([tmp_path / name])


def test_a_list_of_which_nothing_exists_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"photos/{index}.jpg\n" for index in range(200)))
    with pytest.raises(DataError, match=r"none of the first 100 files that .*m\.csv names exists \(such as .*0\.jpg\)"):
        list_names([tmp_path / "m.csv"])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "99.jpg").write_bytes(b"")
    assert len(list_names([tmp_path / "m.csv"])[0]) == 200


def test_two_names_of_one_folder_are_one_input(tmp_path):
    write_folder(tmp_path / "b")
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    inputs = [tmp_path / "b", tmp_path / "a" / ".." / "b", tmp_path / "link", tmp_path / "link" / "a.jpg"]
    found = find_candidates([str(uri) for uri in inputs], Selection())
    assert len(list(found.rows)) == len(CONTENTS)


def test_an_input_below_another_is_looked_at_once(tmp_path):
    write_folder(tmp_path / "in")
    for inputs in ([tmp_path / "in", tmp_path / "in" / "a.jpg"], [tmp_path / "in" / "a.jpg", tmp_path], [tmp_path] * 2):
        assert len(list(find_candidates([str(uri) for uri in inputs], Selection()).rows)) == len(CONTENTS)


def test_a_listing_is_in_the_order_of_s3(tmp_path):
    for name in ("a/b.jpg", "a.jpg", "a-/c.jpg", "b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert list(list_names([tmp_path])[0]) == sorted(["a/b.jpg", "a.jpg", "a-/c.jpg", "b.jpg"])


def test_globs_limit_sample_and_shards(tmp_path):
    write_folder(tmp_path / "deep")
    assert set(list_names([tmp_path], include=("*/a.*", "deep/b*"))[0]) == {"deep/a.jpg", "deep/b.jpg"}
    taken, left_out = list_names([tmp_path], exclude=("*a.jpg",))
    assert len(taken) == 7
    assert left_out == {"deep/a.jpg": "matched by --exclude"}
    assert list(list_names([tmp_path], limit=3)[0]) == ["deep/a.jpg", "deep/b.jpg", "deep/c.jpg"]
    shards = [set(list_names([tmp_path], shard=(index, 3))[0]) for index in (1, 2, 3)]
    assert sum(map(len, shards)) == len(set().union(*shards)) == len(CONTENTS)
    sample, left_out = list_names([tmp_path], sample=0.5)
    assert len(sample) + len(left_out) == len(CONTENTS)
    assert set(list_names([tmp_path], sample=0.25)[0]) <= set(sample)


def test_every_kind_of_input_gives_the_same_bytes(tmp_path):
    folder = write_folder(tmp_path / "folder")
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "id"])
        writer.writerows([[f"folder/{name}", name] for name in CONTENTS])
    kinds = {
        "folder": [folder],
        "tar": [write_tar(tmp_path / "a.tar")],
        "tgz": [write_tar(tmp_path / "a.tar.gz", mode="w:gz")],
        "zip": [write_zip(tmp_path / "a.zip")],
        "stored": [write_zip(tmp_path / "b.zip", method=zipfile.ZIP_STORED)],
        "bzip2": [write_zip(tmp_path / "c.zip", method=zipfile.ZIP_BZIP2)],
        "manifest": [tmp_path / "list.csv"],
    }
    for name, inputs in kinds.items():
        _, answers = plan_and_read(inputs, tmp_path.with_name(f"plan-{name}"))
        assert answers == list(CONTENTS.values()), name
    rows, answers = plan_and_read(
        [write_table(tmp_path / "t.parquet")], tmp_path.with_name("plan-t"), image_column="picture"
    )
    assert answers == list(CONTENTS.values())
    assert rows["input_tag"].to_pylist() == list(CONTENTS)
    # all of them together, archives found inside a folder among them
    _, answers = plan_and_read([tmp_path], tmp_path.with_name("plan-all"), image_column="picture")
    assert sorted(answers) == sorted([*CONTENTS.values()] * 7)


def test_members_are_addressed_by_archive_and_name(tmp_path):
    for archive in (write_tar(tmp_path / "a.tar"), write_zip(tmp_path / "a.zip")):
        rows, answers = plan_and_read([f"{archive}#c.jpg", f"{archive}#a.jpg"], tmp_path / f"plan{archive.suffix}")
        assert rows["uri"].to_pylist() == [f"{archive}#c.jpg", f"{archive}#a.jpg"]
        assert answers == [CONTENTS["c.jpg"], CONTENTS["a.jpg"]]
        with pytest.raises(DataError, match="has no member"):
            plan_and_read([f"{archive}#z.jpg"], tmp_path / "none")
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": "a.tar#b.jpg", "n": 1}) + '\n{"uri": "a.zip#z.jpg", "n": 2}\n')
    rows, answers = plan_and_read([tmp_path / "m.jsonl"], tmp_path / "plan-m")
    assert answers == [CONTENTS["b.jpg"]]
    assert rows["input_n"].to_pylist() == [1]
    measures = open_plan(str(tmp_path / "plan-m")).measures
    assert measures.excluded_by_reason == {"the archive or its member does not exist": 1}


def test_a_part_of_a_gzipped_shard_is_read_in_one_pass(tmp_path):
    archive = write_tar(tmp_path / "a.tgz", mode="w:gz")
    found = find_candidates([str(archive), str(write_tar(tmp_path / "b.tgz", mode="w:gz"))], Selection())
    plan = write_plan(str(tmp_path), found, {}, None)
    assert plan.measures.streams == [Stream(0, 8), Stream(8, 8)]
    rows = plan.read(0, 16).take([2, 5, 11])
    assert [fetched.data for fetched in read_rows(rows, MAX_BYTES, None)] == [
        CONTENTS["c.jpg"],
        CONTENTS["f.jpg"],
        CONTENTS["d.jpg"],
    ]


MEMBERS = {"../../out.jpg": b"x", "/abs.jpg": b"x", "in/../up.jpg": b"x", "good.jpg": b"good", "no.txt": b"x"}


def test_tar_members_that_are_not_read_are_rows_with_a_code(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in MEMBERS.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind in (
            ("soft.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("folder")
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    rows, answers = plan_and_read([tmp_path / "a.tar"], tmp_path / "plan")
    got = dict(zip(rows["member"].to_pylist(), answers, strict=True))
    assert got.pop("good.jpg") == b"good"
    assert set(got) == {*MEMBERS, "soft.jpg", "hard.jpg", "pipe.jpg"} - {"good.jpg", "no.txt"}
    assert set(got.values()) == {"UNSUPPORTED"}
    excluded = pq.read_table(tmp_path / "plan" / "_plan" / "excluded-00000.parquet").to_pylist()
    assert {row["uri"].rpartition("#")[2] for row in excluded} == {"no.txt", "folder"}


def test_zip_members_that_are_not_read_are_rows_with_a_code(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, data in MEMBERS.items():
            file.writestr(name, data)
        link = zipfile.ZipInfo("soft.jpg")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    rows, answers = plan_and_read([tmp_path / "a.zip"], tmp_path / "plan")
    got = dict(zip(rows["member"].to_pylist(), answers, strict=True))
    assert got.pop("good.jpg") == b"good"
    assert set(got.values()) == {"UNSUPPORTED"}
    assert "soft.jpg" in got


def test_a_member_that_claims_to_be_huge_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.jpg", bytes(10 * MAX_BYTES))
        file.writestr("good.jpg", b"good")
    assert plan_and_read([tmp_path / "bomb.zip"], tmp_path / "one")[1] == ["TOO_LARGE", b"good"]
    huge = tarfile.TarInfo("huge.jpg")
    huge.size = 10 * 2**30
    (tmp_path / "huge.tar").write_bytes(huge.tobuf() + b"only this")
    assert plan_and_read([tmp_path / "huge.tar"], tmp_path / "two")[1] == ["TRUNCATED"]
    # a directory that tells less than the member unpacks to
    data = bytearray((tmp_path / "bomb.zip").read_bytes())
    place = data.rfind((10 * MAX_BYTES).to_bytes(4, "little"))
    data[place : place + 4] = (MAX_BYTES // 2).to_bytes(4, "little")
    (tmp_path / "liar.zip").write_bytes(data)
    assert plan_and_read([tmp_path / "liar.zip"], tmp_path / "three")[1] == ["CORRUPT", b"good"]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "streamed.zip"])
def test_a_cut_archive_gives_its_whole_members_and_records_the_rest(tmp_path, kind):
    contents = {f"{index}.jpg": np.random.default_rng(index).bytes(3000) for index in range(8)}
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        write_tar(path, contents)
    elif kind == "tar.gz":
        write_tar(path, contents, "w:gz")
    elif kind == "zip":
        write_zip(path, contents, zipfile.ZIP_STORED)
    else:  # sizes behind the data, as a zip that was written to a pipe has them
        pipe = Pipe()
        write_zip(pipe, contents)
        path.write_bytes(pipe.data)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.55)])
    _, answers = plan_and_read([path], tmp_path / "plan")
    good = [data for data in answers if isinstance(data, bytes)]
    assert 3 <= len(good) < 8
    assert good == list(contents.values())[: len(good)]
    assert set(answers[len(good) :]) <= {"TRUNCATED", "CORRUPT"}
    plan = open_plan(str(tmp_path / "plan"))
    assert plan.measures.num_excluded == 1
    assert "cut short" in next(iter(plan.measures.excluded_by_reason))


def test_a_damaged_header_in_a_tar_is_recorded(tmp_path):
    data = bytearray(write_tar(tmp_path / "a.tar").read_bytes())
    data[1024 * 3 + 10] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    taken, left_out = list_names([tmp_path / "a.tar"])
    assert list(taken) == ["a.jpg", "b.jpg", "c.jpg"]
    assert "cut short or damaged" in left_out["a.tar"]


def test_a_tar_whose_sizes_lead_backwards_ends(tmp_path):
    member = tarfile.TarInfo("a.jpg")
    block = bytearray(member.tobuf())
    block[124:136] = b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big")
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    (tmp_path / "a.tar").write_bytes(bytes(block) * 3 + bytes(1024))
    taken, left_out = list_names([tmp_path / "a.tar"])
    assert not taken
    assert "damaged" in left_out["a.tar"]


def test_members_of_a_gzipped_shard_may_be_named_in_any_order(tmp_path):
    contents = {f"{index}.jpg": np.random.default_rng(index).bytes(200_000) for index in range(4)}
    archive = write_tar(tmp_path / "a.tgz", contents, "w:gz")
    names = ["2.jpg", "0.jpg", "3.jpg", "3.jpg", "1.jpg"]
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"a.tgz#{name}\n" for name in names))
    found = find_candidates([str(tmp_path / "m.csv")], Selection())
    plan = write_plan(str(tmp_path / "p"), found, {}, None)
    assert plan.measures.streams == [Stream(0, 1), Stream(1, 3), Stream(4, 1)]
    answers = [fetched.data for fetched in read_rows(plan.read(0, 5), 10**6, None)]
    assert answers == [contents[name] for name in names]
    assert archive.exists()


def test_a_manifest_inside_an_input_folder_is_an_input_too(tmp_path):
    write_folder(tmp_path / "in")
    (tmp_path / "in" / "m.csv").write_text("uri\na.jpg\n")
    found = list(find_candidates([str(tmp_path / "in"), str(tmp_path / "in" / "m.csv")], Selection()).rows)
    assert sum(candidate.reason is None for candidate in found) == len(CONTENTS) + 1


def test_what_cannot_be_read_is_recorded(tmp_path):
    (tmp_path / "good.jpg").write_bytes(b"x")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    taken, left_out = list_names([tmp_path])
    assert set(taken) == {"good.jpg"}
    assert left_out["pipe.jpg"] == "not a plain file"
    assert "No such file" in left_out["gone.jpg"]


def test_what_is_no_archive_is_recorded(tmp_path):
    for name in ("a.tar", "b.zip", "c.tgz", "d.tar"):
        (tmp_path / name).write_bytes(b"" if name == "d.tar" else b"<html>not found</html>")
    (tmp_path / "good.jpg").write_bytes(b"x")
    taken, left_out = list_names([tmp_path])
    assert set(taken) == {"good.jpg"}
    assert set(left_out) == {"a.tar", "b.zip", "c.tgz", "d.tar"}


MALICIOUS = [
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "https://host/x.jpg?X-Amz-Signature=0123456789abcdef",
    "../outside.jpg",
    "folder/../../outside.jpg",
    "s3://key:secret@bucket/x.jpg",
    "data:image/png;base64,AAAA",
    "",
]


def test_a_manifests_addresses_are_held_to_schemes_and_prefixes(tmp_path):
    write_folder(tmp_path / "folder")
    lines = [*MALICIOUS, "folder/a.jpg", str(tmp_path / "folder" / "b.jpg"), "s3://bucket/c.jpg"]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"uri": line}) + "\n" for line in lines))
    manifest = tmp_path / "m.jsonl"
    found = list(find_candidates([str(manifest)], Selection()).rows)
    assert len(found) == len(lines)
    assert all(candidate.reason for candidate in found[: len(MALICIOUS)])
    assert [candidate.reason for candidate in found[len(MALICIOUS) :]] == [None] * 3
    allowed = list(find_candidates([str(manifest)], Selection(allow=(str(tmp_path / "folder"),))).rows)
    assert [candidate.uri for candidate in allowed if candidate.reason is None] == [
        str(tmp_path / "folder" / "a.jpg"),
        str(tmp_path / "folder" / "b.jpg"),
    ]
    write_plan(str(tmp_path / "plan"), find_candidates([str(manifest)], Selection()), {}, None)
    assert "0123456789abcdef" not in str(
        pq.read_table(tmp_path / "plan" / "_plan" / "excluded-00000.parquet").to_pylist()
    )
    assert "secret" not in str(pq.read_table(tmp_path / "plan" / "_plan" / "excluded-00000.parquet").to_pylist())


def test_a_line_is_a_row_unless_its_id_is_a_double(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "n.jsonl").write_text(
        "".join(json.dumps({"uri": "a.jpg", "n": n}) + "\n" for n in (-1, -2, None, None))
    )
    assert len(list_names([tmp_path / "n.jsonl"], id_column="n")[1]) == 0
    (tmp_path / "m.csv").write_text("where,key\na.jpg,1\na.jpg,2\nb.jpg,2\n")
    rows, _ = plan_and_read([tmp_path / "m.csv"], tmp_path / "p1", uri_column="where")
    assert [uri.rpartition("/")[2] for uri in rows["uri"].to_pylist()] == ["a.jpg", "a.jpg", "b.jpg"]
    assert rows["input_key"].to_pylist() == ["1", "2", "2"]
    rows, _ = plan_and_read([tmp_path / "m.csv"], tmp_path / "p2", uri_column="where", id_column="key")
    assert rows["input_key"].to_pylist() == ["1", "2"]
    with pytest.raises(DataError, match="where, key"):
        list_names([tmp_path / "m.csv"])


def test_manifests_of_every_kind_agree(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"{name}\n" for name in CONTENTS))
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress((tmp_path / "m.csv").read_bytes()))
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"uri": name}) + "\n" for name in CONTENTS))
    pq.write_table(pa.table({"uri": list(CONTENTS)}), tmp_path / "m.parquet")
    for kind in ("csv", "csv.gz", "jsonl", "parquet"):
        assert plan_and_read([tmp_path / f"m.{kind}"], tmp_path / f"plan-{kind}")[1] == list(CONTENTS.values())


def test_an_image_column_may_be_a_struct_and_nothing_else(tmp_path):
    table = pa.table({"image": [{"bytes": b"one", "path": "x"}, None, {"bytes": b"two", "path": "y"}]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert plan_and_read([tmp_path / "t.parquet"], tmp_path / "p", image_column="image")[1] == [b"one", "EMPTY", b"two"]
    with pytest.raises(DataError, match="--image-column takes a column of binary values"):
        list_names([tmp_path / "t.parquet"], image_column="path")


def test_a_changed_file_or_archive_is_not_read(tmp_path):
    write_folder(tmp_path / "in")
    write_tar(tmp_path / "in" / "a.tar")
    write_tar(tmp_path / "in" / "b.tgz", mode="w:gz")
    found = find_candidates([str(tmp_path / "in")], Selection())
    plan = write_plan(str(tmp_path / "p"), found, {}, None)
    (tmp_path / "in" / "a.jpg").write_bytes(b"longer than it was")
    (tmp_path / "in" / "b.jpg").unlink()
    write_tar(tmp_path / "in" / "a.tar")
    write_tar(tmp_path / "in" / "b.tgz", mode="w:gz")
    rows = plan.read(0, plan.num_rows)
    answers = [fetched.data for fetched in read_rows(rows, MAX_BYTES, None)]
    got = {
        uri.rpartition("/")[2]: data if isinstance(data, bytes) else data.code.value
        for uri, data in zip(rows["uri"].to_pylist(), answers, strict=True)
    }
    assert got["a.jpg"] == "CHANGED"
    assert got["b.jpg"] == "NOT_FOUND"
    assert got["c.jpg"] == CONTENTS["c.jpg"]
    assert {got["a.tar#a.jpg"], got["b.tgz#h.jpg"]} == {"CHANGED"}


def test_a_plan_spans_files_and_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "ROWS_PER_GROUP", 3)
    monkeypatch.setattr(planning, "ROWS_PER_FILE", 6)
    planning._read_group.cache_clear()
    planning._open_file.cache_clear()
    write_folder(tmp_path / "in")
    for index in range(5):
        (tmp_path / "in" / f"z{index}.jpg").write_bytes(b"x")
    plan = write_plan(str(tmp_path / "p"), find_candidates([str(tmp_path / "in")], Selection()), {}, None)
    assert sorted(path.name for path in (tmp_path / "p" / "_plan").glob("plan-*")) == [
        f"plan-{number:05d}.parquet" for number in range(3)
    ]
    for first, count in ((0, 13), (2, 7), (5, 2), (12, 5)):
        assert plan.read(first, count)["row_id"].to_pylist() == list(range(13))[first : first + count]
    assert sum(table.num_rows for table in plan.iter_tables()) == 13


def test_an_unfinished_plan_does_not_count(tmp_path):
    write_folder(tmp_path / "in")
    found = find_candidates([str(tmp_path / "in")], Selection())
    write_plan(str(tmp_path), found, {}, None)
    (tmp_path / "_plan" / "_plan.json").unlink()
    assert open_plan(str(tmp_path)) is None


def test_an_s3_inventory_is_a_listing(tmp_path, monkeypatch):
    schema = "Bucket, Key, IsLatest, IsDeleteMarker, Size, ETag"
    lines = ['"b","a%20b+c.jpg","true","false","3","abc"', '"b","old.jpg","false","false","3","x"']
    report = {"sourceBucket": "b", "destinationBucket": "arn:aws:s3:::inv", "fileFormat": "CSV", "fileSchema": schema}
    files = {
        "s3://inv/x/manifest.json": json.dumps({**report, "files": [{"key": "x/data.csv.gz"}]}).encode(),
        "s3://inv/x/data.csv.gz": gzip.compress("\n".join(lines).encode()),
    }
    monkeypatch.setattr(manifests.storage, "get", files.__getitem__)
    monkeypatch.setattr(
        manifests.storage, "open_arrow", lambda uri: pa.CompressedInputStream(pa.BufferReader(files[uri]), "gzip")
    )
    taken, left_out = list_names(["s3://inv/x/manifest.json"])
    (candidate,) = taken.values()
    assert (candidate.uri, candidate.size, candidate.etag) == ("s3://b/a b c.jpg", 3, "abc")
    assert left_out == {"old.jpg": "not the latest version"}


def test_an_output_of_something_else_is_refused(tmp_path):
    from tlray.prediction.job import check_output

    check_output(str(tmp_path / "new"))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        check_output(str(tmp_path))


def test_fetching_is_in_order_and_an_error_takes_its_place(tmp_path):
    write_folder(tmp_path)
    uris = [str(tmp_path / name) for name in ("a.jpg", "none.jpg", "b.jpg")]
    one, gone, two = storage.get_many(uris)
    assert (one, two) == (CONTENTS["a.jpg"], CONTENTS["b.jpg"])
    assert gone.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(None, ["input_cls", "input_city", "input_year"]), (("year",), ["input_cls", "input_year"]), ((), ["input_cls"])],
)
def test_columns_of_lists_are_carried_along_as_asked(tmp_path, columns, expected):
    write_folder(tmp_path)
    (tmp_path / "list.csv").write_text("uri,city,year\na.jpg,Oslo,2024\nb.jpg,Rome,2025\n")
    found = find_candidates([str(tmp_path / "list.csv")], Selection(columns=columns, sidecars=("cls",)))
    plan = write_plan(str(tmp_path / "out"), found, {}, None)
    assert [field.name for field in plan.input_fields] == expected
    if "input_year" in expected:
        assert plan.read(0, 2)["input_year"].to_pylist() == ["2024", "2025"]


def test_a_column_that_no_input_has_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "list.csv").write_text("uri,city\na.jpg,Oslo\n")
    with pytest.raises(DataError, match=r"--columns takes own columns of the inputs \(city\); got 'town'"):
        find_candidates([str(tmp_path / "list.csv")], Selection(columns=("town",)))
    with pytest.raises(DataError, match=r"--columns takes .* \(they have none\); got 'town'"):
        find_candidates([str(tmp_path)], Selection(columns=("town",)))
