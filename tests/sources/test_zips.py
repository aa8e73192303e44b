import bz2
import io
import struct
import zipfile
import zlib

import numpy as np
import pytest

from tests.sources.pipe import Pipe
from tlray import storage
from tlray.errors import Code, FetchError
from tlray.sources import zips
from tlray.sources.candidates import REFUSED, SourceKind

CONTENTS = {f"{number}.jpg": np.random.default_rng(number).bytes(300) * 2 for number in range(3)}
STORED, DEFLATED, BZIP2, LZMA = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA
ENCRYPTED, SIZES_FOLLOW, UTF8 = 0x1, 0x8, 0x800


def pack(contents=CONTENTS, method=DEFLATED, buffer=None):
    """A zip, and the offset of its directory."""
    buffer = io.BytesIO() if buffer is None else buffer
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in contents.items():
            file.writestr(name, data)
    data = bytes(buffer.data) if isinstance(buffer, Pipe) else buffer.getvalue()
    return data, file.start_dir


def make_local(name, data, packed, method=DEFLATED, flags=0, extra=b"", checksum=None):
    """A local header and its packed data; sizes that follow are 0 in the header."""
    checksum = zlib.crc32(data) if checksum is None else checksum
    sizes = (0, 0, 0) if flags & SIZES_FOLLOW else (checksum, len(packed), len(data))
    fields = (20, flags, method, 0, 0, *sizes, len(name), len(extra))
    return struct.pack("<4s5H3I2H", b"PK\x03\x04", *fields) + name + extra + packed


def deflate(data):
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


def index(tmp_path, data):
    (tmp_path / "a.zip").write_bytes(data)
    (entry,) = storage.list_files(str(tmp_path / "a.zip"))
    return list(zips.index(entry, io.BytesIO(data)))


def read(data, candidate):
    """A member's bytes, as a request for its span brings them."""
    head = data[candidate.offset :][: zips.get_span(candidate.length)]
    start = zips.find_data(head)
    return zips.unpack(head, head[start : start + candidate.length], candidate.size, candidate.crc32)


@pytest.mark.parametrize("method", [STORED, DEFLATED, BZIP2])
def test_members_are_found_where_their_bytes_are(tmp_path, method):
    data, _ = pack({**CONTENTS, "in/ü.jpg": b"deep", "empty.jpg": b""}, method)
    found = index(tmp_path, data)
    assert {candidate.name: read(data, candidate) for candidate in found} == {
        **CONTENTS,
        "in/ü.jpg": b"deep",
        "empty.jpg": b"",
    }
    assert [candidate.size for candidate in found] == [600, 600, 600, 4, 0]
    assert all(candidate.uri == f"{tmp_path}/a.zip#{candidate.member}" for candidate in found)
    assert {(candidate.source, candidate.reason) for candidate in found} == {(SourceKind.ZIP, None)}
    assert {candidate.mtime_ns for candidate in found} == {(tmp_path / "a.zip").stat().st_mtime_ns}


def test_an_archive_may_begin_with_something_else(tmp_path):
    data = b"#!/bin/sh\n" + pack()[0]
    found = index(tmp_path, data)
    assert found[0].offset == len(b"#!/bin/sh\n")
    assert [read(data, candidate) for candidate in found] == list(CONTENTS.values())


def test_an_archive_before_an_archive_is_told(tmp_path):
    first, *found = index(tmp_path, pack()[0] + pack()[0])
    assert "another archive stands before this one" in first.reason
    assert len(found) == len(CONTENTS)


def test_members_before_a_file_that_lost_its_front_are_cut(tmp_path):
    found = index(tmp_path, pack()[0][200:])
    assert {candidate.source for candidate in found} == {SourceKind.ZIP, SourceKind.CUT}
    assert found[0].source is SourceKind.CUT


def test_an_empty_archive_has_no_members(tmp_path):
    assert index(tmp_path, pack({})[0]) == []


def test_folders_are_left_out_and_members_of_other_kinds_are_told_apart(tmp_path):
    data, place = pack({"in/": b"", "../up.jpg": b"x", "good.jpg": b"x", "secret.jpg": b"x", "far.jpg": b"x"}, STORED)
    link = zipfile.ZipInfo("soft.jpg")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(link, "good.jpg")
        place = file.start_dir
    data = bytearray(buffer.getvalue())
    entries = {name: data.index(b"PK\x01\x02", data.rindex(name) - 46) for name in (b"secret.jpg", b"far.jpg")}
    assert min(entries.values()) >= place
    data[entries[b"secret.jpg"] + 8] |= ENCRYPTED
    struct.pack_into("<I", data, entries[b"far.jpg"] + 20, len(data))  # more packed bytes than the archive holds
    found = {candidate.name: (candidate.source, candidate.reason) for candidate in index(tmp_path, bytes(data))}
    assert found == {
        "in/": (SourceKind.ZIP, "a folder"),
        "../up.jpg": (SourceKind.OUTSIDE, None),
        "good.jpg": (SourceKind.ZIP, None),
        "secret.jpg": (SourceKind.ENCRYPTED, None),
        "far.jpg": (SourceKind.CUT, None),
        "soft.jpg": (SourceKind.LINK, None),
    }


@pytest.mark.parametrize("streamed", [False, True])
def test_without_a_directory_members_are_found_by_their_local_headers(tmp_path, streamed):
    data, place = pack(buffer=Pipe() if streamed else None)
    *members, last = index(tmp_path, data[:place])
    by_directory = index(tmp_path, data)
    assert [member._replace(mtime_ns=None) for member in members] == [
        member._replace(mtime_ns=None) for member in by_directory
    ]
    assert {candidate.name: read(data, candidate) for candidate in members} == CONTENTS
    assert (last.name, last.member) == ("a.zip", None)
    assert "its directory is missing" in last.reason


def test_a_cut_archive_names_the_member_that_it_cuts(tmp_path):
    data, _ = pack(method=STORED)  # each member takes a header of 35 bytes and 600 bytes of data
    *whole, cut, _ = index(tmp_path, data[: 2 * 635 + 100])
    assert [candidate.name for candidate in whole] == ["0.jpg", "1.jpg"]
    assert (cut.name, cut.source, cut.size) == ("2.jpg", SourceKind.CUT, 600)


def test_a_cut_member_whose_sizes_follow_has_none(tmp_path):
    data, place = pack(buffer=Pipe())
    *whole, cut, _ = index(tmp_path, data[: place - 100])
    assert [candidate.name for candidate in whole] == ["0.jpg", "1.jpg"]
    assert (cut.name, cut.source, cut.length, cut.size) == ("2.jpg", SourceKind.CUT, None, None)


def test_sizes_may_follow_without_a_signature(tmp_path):
    members = [(b"0.jpg", b"one" * 50), (b"1.jpg", b"two" * 40)]
    data = b"".join(
        make_local(name, content, deflate(content), flags=SIZES_FOLLOW)
        + struct.pack("<3I", zlib.crc32(content), len(deflate(content)), len(content))
        for name, content in members
    )
    *found, _ = index(tmp_path, data)
    assert [(candidate.name.encode(), read(data, candidate)) for candidate in found] == members


def test_a_stored_member_whose_sizes_follow_ends_the_search(tmp_path):
    data = make_local(b"a.jpg", b"abc", b"abc", STORED, SIZES_FOLLOW) + make_local(b"b.jpg", b"abc", b"abc", STORED)
    (cut, last) = index(tmp_path, data)
    assert (cut.name, cut.source) == ("a.jpg", SourceKind.CUT)
    assert last.member is None


def test_local_headers_tell_names_folders_and_encryption(tmp_path):
    data = b"".join([
        make_local("é.jpg".encode("cp437"), b"x", b"x", STORED),
        make_local("ж.jpg".encode(), b"x", b"x", STORED, UTF8, b"extra"),
        make_local(b"n\xff.jpg", b"x", b"x", STORED, UTF8),
        make_local(b"in/", b"", b"", STORED),
        make_local(b"in/secret.jpg", b"x", b"x", STORED, ENCRYPTED),
        make_local(b"/etc/a.jpg", b"x", b"x", STORED),
    ])  # fmt: skip
    *found, _ = index(tmp_path, data)
    assert [(candidate.name, candidate.source, candidate.reason) for candidate in found] == [
        ("é.jpg", SourceKind.ZIP, None),
        ("ж.jpg", SourceKind.ZIP, None),
        ("n\\xff.jpg", SourceKind.ZIP, None),
        ("in/", SourceKind.ZIP, "a folder"),
        ("in/secret.jpg", SourceKind.ENCRYPTED, None),
        ("/etc/a.jpg", SourceKind.OUTSIDE, None),
    ]


def test_another_format_is_one_candidate_with_a_reason(tmp_path):
    (only,) = index(tmp_path, b"<html>not found</html>" * 10)
    assert (only.uri, only.member) == (f"{tmp_path}/a.zip", None)
    assert "cut short or damaged" in only.reason


def test_data_starts_behind_the_name_and_the_extra_field():
    head = make_local(b"n" * 10, b"x", b"x", STORED, extra=b"e" * 7)
    assert zips.find_data(head) == 30 + 10 + 7
    for damaged in (b"PK\x01\x02" + head[4:], head[:29], b""):
        with pytest.raises(FetchError, match="no local header") as caught:
            zips.find_data(damaged)
        assert caught.value.code is Code.CORRUPT


def test_a_span_holds_the_longest_name_that_file_systems_allow():
    head = make_local(b"n" * 255, b"abc", b"abc", STORED, extra=b"e" * 64)
    assert zips.get_span(3) >= zips.find_data(head) + 3
    assert zips.get_span(1000) - zips.get_span(0) == 1000


@pytest.mark.parametrize(
    ("method", "packed"), [(STORED, b"ab" * 99), (DEFLATED, deflate(b"ab" * 99)), (BZIP2, bz2.compress(b"ab" * 99))]
)
def test_unpacking_checks_size_and_checksum(method, packed):
    data = b"ab" * 99
    head = make_local(b"a.jpg", data, packed, method)
    assert zips.unpack(head, packed, len(data), zlib.crc32(data)) == data
    for size in (len(data) - 1, len(data) + 1):
        with pytest.raises(FetchError, match=f"does not unpack to the {size} bytes") as caught:
            zips.unpack(head, packed, size, zlib.crc32(data))
        assert caught.value.code is Code.CORRUPT
    with pytest.raises(FetchError, match="checksum") as caught:
        zips.unpack(head, packed, len(data), 1)
    assert caught.value.code is Code.CORRUPT
    assert zips.unpack(head, packed, len(data), None) == data


@pytest.mark.parametrize(("method", "packed"), [(DEFLATED, b"\xff" * 50), (BZIP2, b"no bzip2 data")])
def test_damaged_data_is_corrupt(method, packed):
    with pytest.raises(FetchError, match="cannot be unpacked") as caught:
        zips.unpack(make_local(b"a.jpg", b"ab", packed, method), packed, 2, None)
    assert caught.value.code is Code.CORRUPT


def test_a_zip_bomb_is_not_unpacked():
    data = bytes(10**7)
    packed = deflate(data)
    with pytest.raises(FetchError, match="does not unpack to the 100 bytes"):
        zips.unpack(make_local(b"a.jpg", data, packed), packed, 100, None)


@pytest.mark.parametrize("method", [LZMA, 99])
def test_other_methods_are_unsupported(method):
    with pytest.raises(FetchError, match=f"packed by method {method} ") as caught:
        zips.unpack(make_local(b"a.jpg", b"ab", b"ab", method), b"ab", 2, None)
    assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize("streamed", [False, True])
def test_damage_is_found_by_the_directorys_checksum(tmp_path, streamed):
    data, _ = pack({"0.bmp": b"one" * 200, "1.bmp": b"two" * 200}, STORED, Pipe() if streamed else None)
    damaged = bytearray(data)
    damaged[100:110] = b"??????????"
    first, second = index(tmp_path, bytes(damaged))
    with pytest.raises(FetchError, match="checksum"):
        read(damaged, first)
    assert read(damaged, second) == b"two" * 200


@pytest.mark.parametrize(
    ("method", "source"),
    [(9, SourceKind.DEFLATE64), (14, SourceKind.LZMA), (93, SourceKind.ZSTANDARD), (98, SourceKind.OTHER_METHOD)],
)
def test_members_by_other_methods_are_told_apart(tmp_path, method, source):
    data = bytearray(pack({"0.jpg": b"x" * 50, "1.jpg": b"y"}, STORED)[0])
    struct.pack_into("<H", data, data.index(b"PK\x01\x02") + 10, method)
    first, second = index(tmp_path, bytes(data))
    assert (first.source, second.source) == (source, SourceKind.ZIP)
    code, reason = REFUSED[source]
    assert code is Code.UNSUPPORTED
    assert "pack it again" in reason


@pytest.mark.parametrize(
    ("raw", "flags", "name"),
    [
        ("写真.jpg".encode(), 0, "写真.jpg"),
        ("é.jpg".encode("cp437"), 0, "é.jpg"),
        ("ж.jpg".encode(), UTF8, "ж.jpg"),
        (b"photos\\0.jpg", 0, "photos/0.jpg"),
        (b"./photos/0.jpg", 0, "photos/0.jpg"),
    ],
)
def test_names_are_those_that_their_writer_meant(tmp_path, raw, flags, name):
    data = bytearray(pack({"x" * len(raw): b"x"}, STORED)[0])
    for signature, at, where in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        place = data.index(signature)
        struct.pack_into("<H", data, place + at, flags)
        data[place + where : place + where + len(raw)] = raw
    (found,) = index(tmp_path, bytes(data))
    assert (found.name, found.member, found.source) == (name, name, SourceKind.ZIP)
    assert found.uri == f"{tmp_path}/a.zip#{name}"
    (recovered, _) = index(tmp_path, bytes(data[: data.index(b"PK\x01\x02")]))
    assert recovered.name == name


@pytest.mark.parametrize("name", [b"..\\up.jpg", b"C:\\a.jpg", b"\\a.jpg"])
def test_backslashes_lead_outside_too(tmp_path, name):
    data, _ = pack({"x" * len(name): b"x"}, STORED)
    (found,) = index(tmp_path, data.replace(b"x" * len(name), name))
    assert found.source is SourceKind.OUTSIDE


def test_a_folder_may_end_in_a_backslash(tmp_path):
    data, _ = pack({"photos?": b"", "photos?0.jpg": b"x"}, STORED)
    folder, image = index(tmp_path, data.replace(b"?", b"\\"))
    assert (folder.reason, image.name) == ("a folder", "photos/0.jpg")


def test_the_unicode_extra_field_names_a_member(tmp_path):
    name = "写.jpg".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo("_.jpg")
        info.extra = struct.pack("<2HBI", 0x7075, 5 + len(name), 1, zlib.crc32(b"_.jpg")) + name
        file.writestr(info, b"x")
    (found,) = index(tmp_path, buffer.getvalue())
    assert found.name == "写.jpg"
