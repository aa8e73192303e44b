import gzip
import io
import json
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv, orc

from tlray.errors import Code, DataError, FetchError
from tlray.sources import manifests
from tlray.sources.lists import is_list, open_list
from tlray.sources.manifests import check_address, is_manifest, lies_inside, list_prefixes, read_manifest
from tlray.storage.s3_client import ARCHIVED_REASON


def read_lines(uri):
    opened = open_list(str(uri), "uri")
    types = dict(zip(opened.names, map(str, opened.types), strict=True))
    return types, [dict(zip(opened.names, values, strict=True)) for _, values in opened.lines]


def read(uri, uri_column="uri", id_column=None, allow=()):
    fields, lines = read_manifest(str(uri), uri_column, id_column, allow)
    return fields, list(lines)


@pytest.mark.parametrize(
    ("name", "lists", "inventories"),
    [
        ("a.csv", True, True), ("a.CSV.GZ", True, True), ("a.jsonl", True, True), ("a.ndjson.gz", True, True),
        ("s3://b/a.Parquet", True, True), ("s3://b/2025-01-01/manifest.json", False, True),
        ("manifest.json", False, False), ("a.json", False, False), ("a.csv.zip", False, False), ("csv", False, False),
    ],
)  # fmt: skip
def test_manifests_are_known_by_their_names(name, lists, inventories):
    assert (is_list(name), is_manifest(name)) == (lists, inventories)


@pytest.mark.parametrize(
    ("typed", "base", "address"),
    [
        ("a.jpg", "/lists", "/lists/a.jpg"),
        ("in/a..b.jpg", "/lists/", "/lists/in/a..b.jpg"),
        ("/data/a.jpg", "/lists", "/data/a.jpg"),
        ("a.jpg", "s3://bucket/lists", "s3://bucket/lists/a.jpg"),
        ("s3://other/a%20b?c#d.jpg", "s3://bucket/lists", "s3://other/a%20b?c#d.jpg"),
        ("s3://other/a@b:c.jpg", "/lists", "s3://other/a@b:c.jpg"),
        ("files: a.jpg", "/lists", "/lists/files: a.jpg"),
        ("s3://b/" + "é" * 512, "/lists", "s3://b/" + "é" * 512),
        (" a.jpg\t", "/lists", "/lists/a.jpg"),
        ("in\\deep\\a.jpg", "/lists", "/lists/in/deep/a.jpg"),
        ("S3://bucket/a.jpg", "/lists", "s3://bucket/a.jpg"),
        ("s3a://bucket/a.jpg", "/lists", "s3://bucket/a.jpg"),
        ("https://b.s3.eu-central-1.amazonaws.com/in/a%20b.jpg", "/lists", "s3://b/in/a b.jpg"),
        ("https://s3.amazonaws.com/b/in/a.jpg", "/lists", "s3://b/in/a.jpg"),
    ],
)
def test_relative_addresses_start_at_the_manifests_folder(typed, base, address):
    assert check_address(typed, base, ()) == (address, None)


@pytest.mark.parametrize(("held", "named"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_unicode_form_is_found(tmp_path, held, named):
    there, typed = (unicodedata.normalize(form, "Café.jpg") for form in (held, named))
    (tmp_path / there).write_bytes(b"")
    assert check_address(typed, str(tmp_path), ()) == (f"{tmp_path}/{there}", None)
    assert check_address("Thé.jpg", str(tmp_path), ()) == (f"{tmp_path}/Thé.jpg", None)


def test_a_name_with_blanks_or_backslashes_that_exists_is_kept(tmp_path, monkeypatch):
    for name in (" a.jpg ", "in\\a.jpg", "~a.jpg"):
        (tmp_path / name).write_bytes(b"")
        assert check_address(name, str(tmp_path), ()) == (f"{tmp_path}/{name}", None)
    monkeypatch.setenv("HOME", "/home/me")
    assert check_address("~/a.jpg", str(tmp_path), ()) == ("/home/me/a.jpg", None)


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("http://host/a.jpg", "the scheme http:// is not allowed"),
        ("gs://bucket/a.jpg", "the scheme gs:// is not allowed"),
        ("C:\\photos\\a.jpg", "a path on a Windows drive"),
        ("https://host/bucket/a.jpg", "the scheme https:// is not allowed"),
        ("https://b.s3.amazonaws.com.evil.org/a.jpg", "the scheme https:// is not allowed"),
        ("https://b.s3.amazonaws.com/a.jpg?X-Amz-Signature=x", "the scheme https:// is not allowed"),
        ("file:/etc/passwd", "not a path or an s3:// address"),
        ("data:image/png;base64,AAAA", "not a path or an s3:// address"),
        ("s3://key:secret@bucket/a.jpg", "a name or password"),
        ("s3://key@bucket/a.jpg", "a name or password"),
        ("s3://bucket", "without a key"),
        ("s3://bucket/", "without a key"),
        ("s3://b/" + "é" * 512 + "x", "more than 1,024 bytes"),
        ("../a.jpg", "'..' in an address"),
        ("in\\..\\..\\a.jpg", "'..' in an address"),
        ("s3://bucket/in/../a.jpg", "'..' in an address"),
        ("/data/..", "'..' in an address"),
        ("a\0b.jpg", "a null character"),
    ],
)
def test_addresses_that_could_lead_anywhere_are_not_read(typed, reason):
    address, told = check_address(typed, "/lists", ["/", "s3://"])
    assert address == typed
    assert reason in told


@pytest.mark.parametrize(
    ("typed", "allow", "allowed"),
    [
        ("/data/a.jpg", ["/data"], True),
        ("/data/a.jpg", ["/data/"], True),
        ("/data/a.jpg", ["/other", "/data/a.jpg"], True),
        ("/database/a.jpg", ["/data"], False),
        ("a.jpg", ["/data"], False),
        ("a.jpg", ["/lists"], True),
        ("s3://bucket/in/a.jpg", ["s3://"], True),
        ("/etc/passwd", ["s3://"], False),
        ("s3://bucket/in/a.jpg", ["s3://bucket/in"], True),
        ("s3://bucket2/a.jpg", ["s3://bucket"], False),
    ],
)
def test_prefixes_are_whole_folders(typed, allow, allowed):
    reason = check_address(typed, "/lists", allow)[1]
    assert reason == (None if allowed else f"not below what --allow names ({', '.join(allow)})")


def test_a_manifest_from_s3_names_no_local_files_unless_they_are_allowed():
    assert "--allow PREFIX would allow it" in check_address("/etc/passwd", "s3://bucket/lists", ())[1]
    assert check_address("/data/a.jpg", "s3://bucket/lists", ["/data"]) == ("/data/a.jpg", None)


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.csv.gz"])
def test_all_values_of_a_csv_are_text(tmp_path, name):
    data = b'uri,n,date\na.jpg,007,2025-01-01\n"b,\nc.jpg",,\n'
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    columns, lines = read_lines(tmp_path / name)
    assert columns == dict.fromkeys(("uri", "n", "date"), "string")
    assert lines == [
        {"uri": "a.jpg", "n": "007", "date": "2025-01-01"},
        {"uri": "b,\nc.jpg", "n": "", "date": ""},
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.ndjson.gz", "a.parquet"])
def test_values_of_other_kinds_keep_their_types(tmp_path, name):
    lines = [{"uri": "a.jpg", "n": 7, "tag": None}, {"uri": "b.jpg", "n": None, "tag": "x"}]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(lines), tmp_path / name)
    else:
        data = "\n".join(map(json.dumps, lines)).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_lines(tmp_path / name) == ({"uri": "string", "n": "int64", "tag": "string"}, lines)


def test_a_csv_of_a_header_alone_has_no_lines(tmp_path):
    (tmp_path / "a.csv").write_text("uri,n\n")
    assert read_lines(tmp_path / "a.csv") == ({"uri": "string", "n": "string"}, [])


def test_other_columns_travel_with_their_line(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"n": 1, "where": "a.jpg", "tag": null}\n{"n": 2, "where": "/b.jpg"}\n')
    fields, lines = read(tmp_path / "m.jsonl", "where")
    assert [(field.name, str(field.type)) for field in fields] == [("input_n", "int64"), ("input_tag", "string")]
    assert [(line.uri, line.name, line.inputs) for line in lines] == [
        (f"{tmp_path}/a.jpg", f"{tmp_path}/a.jpg", {"input_n": 1, "input_tag": None}),
        ("/b.jpg", "/b.jpg", {"input_n": 2, "input_tag": None}),
    ]


def test_a_manifest_of_addresses_alone_has_no_inputs(tmp_path):
    pq.write_table(pa.table({"uri": ["a.jpg", None, " "]}), tmp_path / "m.parquet")
    fields, (first, *others) = read(tmp_path / "m.parquet")
    assert fields == []
    assert (first.uri, first.inputs) == (f"{tmp_path}/a.jpg", None)
    assert [(line.uri, line.reason) for line in others] == [(f"{tmp_path}/m.parquet", "a line without an address")] * 2


def test_a_second_line_with_the_same_id_is_left_out(tmp_path):
    lines = [("../a.jpg", 1), ("b.jpg", 1), ("c.jpg", 1), ("d.jpg", None), ("e.jpg", None)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"uri": uri, "n": n}) + "\n" for uri, n in lines))
    reasons = [line.reason for line in read(tmp_path / "m.jsonl", id_column="n")[1]]
    assert reasons[0].startswith("'..'")  # a line that is left out takes no id
    assert reasons[1:] == [None, "its n is that of an earlier line", None, None]


def test_allowed_prefixes_are_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_text(f"uri\nin/a.jpg\n{tmp_path}/out/b.jpg\n")
    assert [line.reason is None for line in read(tmp_path / "m.csv", allow=("in",))[1]] == [True, False]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"uri_column": "where"}, r"--uri-column takes a column of .*m\.csv \(uri, n\); got 'where'"),
        ({"id_column": "key"}, r"--id-column takes a column of .*m\.csv \(uri, n\); got 'key'"),
    ],
)
def test_a_column_that_is_missing_is_named(tmp_path, options, expected):
    (tmp_path / "m.csv").write_text("uri,n\na.jpg,1\n")
    with pytest.raises(DataError, match=expected):
        read(tmp_path / "m.csv", **options)


@pytest.mark.parametrize(
    ("name", "data"),
    [("none.csv", None), ("m.csv", b""), ("m.jsonl", b'{"uri":\n'), ("m.parquet", b"PAR1"), ("m.csv.gz", b"uri\na\n")],
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, name, data):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"the manifest {tmp_path}/{name} cannot be read: "):
        read_manifest(str(tmp_path / name), "uri", None, ())


def test_a_manifest_that_breaks_off_is_an_error(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 10**9, 200_000)
    data = gzip.compress(b"uri\n" + b"".join(b"%d.jpg\n" % number for number in numbers))
    (tmp_path / "m.csv.gz").write_bytes(data[: len(data) * 9 // 10])
    read = []

    def read_all():
        for line in read_manifest(str(tmp_path / "m.csv.gz"), "uri", None, ())[1]:
            read.append(line.uri)  # until the error, which comes as early as pyarrow reads ahead

    with pytest.raises(DataError, match=r"m\.csv\.gz cannot be read"):
        read_all()
    assert read == [f"{tmp_path}/{number}.jpg" for number in numbers[: len(read)]]
    assert len(read) < len(numbers)


OBJECTS = {
    "key": ["a b+c.jpg", "in/", "frozen.jpg", "gone.jpg", "old.jpg", "unknown.jpg"],
    "size": [3, 0, 3, None, 3, None],
    "e_tag": ['"abc"', "x", "x", None, "x", None],
    "storage_class": ["STANDARD", "STANDARD", "DEEP_ARCHIVE", "STANDARD", "STANDARD", None],
    "is_latest": [True, True, True, True, False, None],
    "is_delete_marker": [False, False, False, True, False, None],
}
REASONS = [None, "a folder marker", ARCHIVED_REASON, "deleted", "not the latest version", None]


def write_inventory(kind):
    """One file of a report, as S3 writes it."""
    table = pa.table(OBJECTS)
    buffer = io.BytesIO()
    if kind == "Parquet":
        pq.write_table(table, buffer)
    elif kind == "ORC":
        orc.write_table(table, buffer)
    else:
        table = table.set_column(0, "key", [[key.replace("+", "%2B").replace(" ", "+") for key in OBJECTS["key"]]])
        csv.write_csv(table, buffer, csv.WriteOptions(include_header=False))
        return gzip.compress(buffer.getvalue())
    return buffer.getvalue()


@pytest.fixture
def objects(monkeypatch):
    """Objects by address, in place of S3."""
    held = {}

    def get(uri):
        if uri not in held:
            raise FetchError(Code.NOT_FOUND, f"no object {uri}")
        return held[uri]

    def open_arrow(uri):
        file = pa.BufferReader(get(uri))
        return pa.CompressedInputStream(file, "gzip") if uri.endswith(".gz") else file

    monkeypatch.setattr(manifests.storage, "get", get)
    monkeypatch.setattr(manifests.storage, "open_arrow", open_arrow)
    return held


def make_report(kind, **changes):
    suffix = "csv.gz" if kind == "CSV" else kind.lower()
    report = {"sourceBucket": "photos", "destinationBucket": "arn:aws:s3:::inv", "fileFormat": kind}
    report["fileSchema"] = "Key, Size, ETag, StorageClass, IsLatest, IsDeleteMarker"
    return {**report, "files": [{"key": f"{number}.{suffix}"} for number in (1, 2)], **changes}


@pytest.mark.parametrize("kind", ["CSV", "Parquet", "ORC"])
def test_an_inventory_lists_the_objects_that_can_be_read(objects, kind):
    report = make_report(kind)
    objects["s3://inv/x/manifest.json"] = json.dumps(report).encode()
    for file in report["files"]:
        objects[f"s3://inv/{file['key']}"] = write_inventory(kind)
    fields, found = read("s3://inv/x/manifest.json")
    assert fields == []
    assert found[: len(found) // 2] == found[len(found) // 2 :]
    found = found[: len(found) // 2]
    assert [candidate.uri for candidate in found] == [f"s3://photos/{key}" for key in OBJECTS["key"]]
    assert [candidate.name for candidate in found] == OBJECTS["key"]
    assert [candidate.size for candidate in found] == OBJECTS["size"]
    assert [candidate.etag for candidate in found] == ["abc", "x", "x", None, "x", None]
    assert [candidate.reason for candidate in found] == REASONS


@pytest.mark.parametrize(
    "data",
    [b"no JSON", b"[]", b'{"sourceBucket": "b"}', json.dumps(make_report("CSV", files=None)).encode(),
     json.dumps(make_report("CSV", fileFormat=None)).encode(), None],
)  # fmt: skip
def test_another_manifest_json_is_no_inventory(objects, data):
    if data is not None:
        objects["s3://inv/x/manifest.json"] = data
    with pytest.raises(DataError, match="is not the manifest of an S3 Inventory"):
        read("s3://inv/x/manifest.json")


def test_a_file_of_an_inventory_that_is_missing_is_named(objects):
    objects["s3://inv/x/manifest.json"] = json.dumps(make_report("Parquet")).encode()
    with pytest.raises(DataError, match=r"the S3 Inventory file s3://inv/1\.parquet cannot be read: no object"):
        read("s3://inv/x/manifest.json")


@pytest.mark.parametrize(
    ("inputs", "allow", "inside", "outside"),
    [
        (["/photos"], [], ["/photos/a/1.jpg", "/photos"], ["/photos2/1.jpg", "/photos/../etc/passwd", "s3://b/k"]),
        (["/x/../photos"], [], ["/x/../photos/1.jpg"], ["/x/../photos/../1.jpg"]),
        (["/we#ird/a.tar#b/c.jpg"], [], ["/we#ird/a.tar"], ["/we#ird/b.tar"]),
        (["s3://b/in"], [], ["s3://b/in/../x", "s3://b/in/1.jpg"], ["s3://c/in/1.jpg", "/etc/passwd"]),
        (["s3://b/list.csv"], [], ["s3://c/any"], ["/etc/passwd"]),
        (["/data/list.csv"], [], ["/data/1.jpg", "/elsewhere/../1.jpg", "s3://c/any"], []),
        (["/data/list.csv"], ["/photos"], ["/photos/1.jpg"], ["/data/1.jpg", "s3://c/any"]),
        (["s3://b/inventory/manifest.json"], ["s3://c/"], ["s3://d/any"], ["/etc/passwd"]),
        (["/photos", "s3://b/in"], [], ["/photos/1.jpg", "s3://b/in/1.jpg"], ["s3://b/out/1.jpg"]),
    ],
)
def test_the_prefixes_of_inputs_hold_their_addresses_and_no_others(inputs, allow, inside, outside):
    prefixes = list_prefixes(inputs, allow)
    assert [address for address in inside if not lies_inside(address, prefixes)] == []
    assert [address for address in outside if lies_inside(address, prefixes)] == []
