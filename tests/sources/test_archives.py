import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pytest

from tlray import storage
from tlray.errors import Code, FetchError
from tlray.output.plan import write_plan
from tlray.sources.archives import Unpacked, index, is_archive, open_unpacked, resolve, split_member
from tlray.sources.candidates import SourceKind
from tlray.sources.listing import Candidates, Selection, find_candidates
from tlray.sources.reading import read_rows
from tlray.storage import files

CONTENTS = {f"{number}.jpg": np.random.default_rng(number).bytes(700) for number in range(4)}


def pack(contents=CONTENTS, tar_format=tarfile.GNU_FORMAT):
    """A plain tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write(path, data):
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix != ".tar" else data)
    (entry,) = storage.list_files(str(path))
    return entry


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.tar", True), ("A.TAR.GZ", True), ("a.tgz", True), ("s3://b/a.Zip", True), ("a.tar.lz4", False),
     ("a.gz", False), ("tar", False), ("a.zip/b.jpg", False), ("a.zip#b.jpg", False)],
)  # fmt: skip
def test_archives_are_known_by_their_extension(name, expected):
    assert is_archive(name) == expected


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/d/a.tar#in/b.jpg", ("/d/a.tar", "in/b.jpg")),
        ("s3://b/A.TGZ#b.jpg", ("s3://b/A.TGZ", "b.jpg")),
        ("a.tar.gz#x", ("a.tar.gz", "x")),
        ("a.zip#in.zip#b.jpg", ("a.zip", "in.zip#b.jpg")),
        ("a#1/b.zip#new\nline.jpg", ("a#1/b.zip", "new\nline.jpg")),
        ("a.zip", None),
        ("a.zip#", None),
        ("a.jpg#b", None),
        ("a.zip/b.jpg", None),
    ],
)
def test_members_are_split_at_their_archive(uri, expected):
    assert split_member(uri) == expected


def test_only_the_archive_of_a_member_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("in/a.jpg") == f"{tmp_path}/in/a.jpg"
    assert resolve("a.tar#in/b.jpg") == f"{tmp_path}/a.tar#in/b.jpg"
    assert resolve("s3://b/a.tar#in/b.jpg") == "s3://b/a.tar#in/b.jpg"


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(("name", "kind"), [("a.tar", SourceKind.TAR), ("a.tgz", SourceKind.TAR_PACKED)])
def test_members_are_found_where_their_bytes_are(tmp_path, tar_format, name, kind):
    contents = {**CONTENTS, f"{'deep/' * 25}a.jpg": b"long", "empty.jpg": b""}
    data = pack(contents, tar_format)
    entry = write(tmp_path / name, data)
    found = index(entry)
    assert [candidate.name for candidate in found] == list(contents)
    for candidate in found:
        assert candidate.uri == f"{tmp_path}/{name}#{candidate.member}"
        assert (candidate.source, candidate.reason) == (kind, None)
        assert (candidate.etag, candidate.mtime_ns) == (None, entry.mtime_ns)
        assert data[candidate.offset : candidate.offset + candidate.length] == contents[candidate.name]
        assert candidate.size == candidate.length == len(contents[candidate.name])


def test_an_empty_tar_has_no_members_and_an_empty_file_is_damaged(tmp_path):
    assert index(write(tmp_path / "a.tar", pack({}))) == []
    (only,) = index(write(tmp_path / "b.tar", b""))
    assert only.uri == f"{tmp_path}/b.tar"
    assert only.member is None
    assert "cut short or damaged" in only.reason


def test_a_tar_cut_inside_a_member_names_that_member_and_the_archive(tmp_path):
    # each member takes a header of 512 bytes and 1,024 bytes of data
    *whole, cut, last = index(write(tmp_path / "a.tar", pack()[: 2 * 1536 + 600]))
    assert [candidate.name for candidate in whole] == ["0.jpg", "1.jpg"]
    assert (cut.name, cut.source, cut.size) == ("2.jpg", SourceKind.CUT, 700)
    assert (last.name, last.member) == ("a.tar", None)
    assert "cut short" in last.reason


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_tar_cut_between_two_members_is_noticed(tmp_path, name):
    *whole, last = index(write(tmp_path / name, pack()[: 2 * 1536]))
    assert [candidate.name for candidate in whole] == ["0.jpg", "1.jpg"]
    assert "cut short" in last.reason


def test_a_gzipped_tar_keeps_the_members_before_its_damage(tmp_path):
    contents = {f"{number}.jpg": np.random.default_rng(number).bytes(400_000) for number in range(4)}
    data = gzip.compress(pack(contents), 0)  # stored, so that the damage falls into the third member
    place = 1_150_000
    for damaged in (data[:place], data[:place] + b"\xff" * len(data)):
        (tmp_path / "a.tgz").write_bytes(damaged)
        *members, last = index(storage.list_files(str(tmp_path / "a.tgz"))[0])
        assert [member.name for member in members] == ["0.jpg", "1.jpg", "2.jpg"]
        assert "cut short or damaged" in last.reason


def test_a_header_of_megabytes_is_not_read(tmp_path):
    *members, last = index(write(tmp_path / "a.tar", pack({"good.jpg": b"x", "y" * (2**20 + 1): b"x"})))
    assert [candidate.name for candidate in members] == ["good.jpg"]
    assert "damaged" in last.reason


def test_a_name_that_is_not_utf8_is_escaped(tmp_path):
    (member,) = index(write(tmp_path / "a.tar", pack({"b\udce9.jpg": b"x"})))
    assert member.name == member.member == "b\\xe9.jpg"


def test_a_folder_is_left_out_and_a_device_is_special(tmp_path):
    folder, device = tarfile.TarInfo("in"), tarfile.TarInfo("device.jpg")
    folder.type, device.type = tarfile.DIRTYPE, tarfile.CHRTYPE
    found = index(write(tmp_path / "a.tar", folder.tobuf() + device.tobuf() + bytes(1024)))
    assert [(candidate.name, candidate.reason) for candidate in found] == [("in", "a folder"), ("device.jpg", None)]
    assert found[1].source is SourceKind.SPECIAL


HOLE = 2000


def pack_old_gnu(name, head, tail):
    """`head`, a hole and `tail`, as GNU tar writes them: the places stand in the header."""
    member = tarfile.TarInfo(name)
    member.type, member.size = tarfile.GNUTYPE_SPARSE, len(head) + len(tail)
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    places = [0, len(head), len(head) + HOLE, len(tail)]
    header[386 : 386 + 48] = b"".join(b"%011o\0" % place for place in places)
    header[483:495] = b"%011o\0" % (len(head) + HOLE + len(tail))
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + pad(head + tail)


def pack_pax(name, head, tail):
    """The same as bsdtar writes it: a PAX header, and the places before the data."""
    places = pad(b"2\n0\n%d\n%d\n%d\n" % (len(head), len(head) + HOLE, len(tail)))
    member = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
    member.size = len(places) + len(head) + len(tail)
    size = str(len(head) + HOLE + len(tail))
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
    member.pax_headers |= {"GNU.sparse.realsize": size}
    return member.tobuf(tarfile.PAX_FORMAT) + pad(places + head + tail)


def read(folder, members):
    plan = write_plan(str(folder / "out"), Candidates([], iter(members)), {}, None)
    return [fetched.data for fetched in read_rows(plan.read(0, len(members)), 10_000, None)]


def pad(data):
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_holes_of_sparse_files_are_filled(tmp_path, name):
    head, tail = b"h" * 700, b"t" * 300
    packed = pack_old_gnu("old.jpg", head, tail) + pack_pax("pax.jpg", head, tail)
    members = index(write(tmp_path / name, packed + pack({"plain.jpg": b"plain"})))
    assert [member.name for member in members] == ["old.jpg", "pax.jpg", "plain.jpg"]
    assert [member.size for member in members] == [3000, 3000, 5]
    whole = head + bytes(HOLE) + tail
    assert read(tmp_path, members) == [whole, whole, b"plain"]
    damaged = [member._replace(size=member.size + 1) for member in members[:2]]
    assert [error.code for error in read(tmp_path, damaged)] == ["CORRUPT", "CORRUPT"]


def test_an_archive_that_is_gone_is_an_error(tmp_path):
    entry = write(tmp_path / "a.tar", pack())
    (tmp_path / "a.tar").unlink()
    with pytest.raises(FetchError) as caught:
        index(entry)
    assert caught.value.code is Code.NOT_FOUND


def test_gzip_members_are_one_stream():
    pieces = [np.random.default_rng(seed).bytes(100_000) for seed in range(3)]
    file = io.BytesIO(b"".join(map(gzip.compress, [pieces[0], b"", pieces[1], pieces[2]])))
    assert open_unpacked(file).read() == b"".join(pieces)


def test_an_unpacked_file_is_only_sought_forward():
    data = np.random.default_rng(0).bytes(3 * 2**20)
    unpacked = Unpacked(io.BytesIO(gzip.compress(data, 1)))
    assert unpacked.seek(2 * 2**20 + 5) == unpacked.tell() == 2 * 2**20 + 5
    assert unpacked.seek(7, io.SEEK_CUR) == 2 * 2**20 + 12
    assert unpacked.read(4) == data[2 * 2**20 + 12 :][:4]
    for offset, whence in ((0, io.SEEK_SET), (-1, io.SEEK_CUR), (2**30, io.SEEK_END)):
        with pytest.raises(io.UnsupportedOperation, match="only read forward"):
            unpacked.seek(offset, whence)
    assert unpacked.seek(2**30) == len(data)
    assert unpacked.read(1) == b""


def test_a_zip_bomb_is_unpacked_in_small_pieces():
    unpacked = Unpacked(io.BytesIO(gzip.compress(bytes(20 * 2**20), 1)))
    assert unpacked.read(10) == bytes(10)
    assert unpacked.position == 10


def test_a_cut_stream_ends_and_another_format_is_an_error():
    data = np.random.default_rng(0).bytes(10_000)
    unpacked = open_unpacked(io.BytesIO(gzip.compress(data)[:5000])).read()
    assert 4000 < len(unpacked) < 5000
    assert data.startswith(unpacked)
    with pytest.raises(zlib.error):
        Unpacked(io.BytesIO(b"<html>not found</html>")).read(1)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("between", [b"", bytes(512), bytes(20_480)])
def test_archives_that_were_put_together_are_read_as_one(tmp_path, name, between):
    first, second = pack(dict(list(CONTENTS.items())[:2])), pack(dict(list(CONTENTS.items())[2:]))
    entry = write(tmp_path / name, first + between + second)
    members = index(entry)
    assert [member.name for member in members] == list(CONTENTS)
    unpacked = first + between + second
    for member in members:
        assert unpacked[member.offset :][: member.length] == CONTENTS[member.name]


@pytest.mark.parametrize("rest", [bytes(3), bytes(5000), b"trailing garbage"])
def test_what_follows_gzip_is_ignored(tmp_path, rest):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(pack()) + rest)
    (entry,) = storage.list_files(str(tmp_path / "a.tar.gz"))
    assert [(member.name, member.reason) for member in index(entry)] == [(name, None) for name in CONTENTS]


def test_a_members_name_may_begin_as_another_format_does(tmp_path):
    entry = write(tmp_path / "a.tar", pack({"BZhang/1.jpg": b"one"}))
    assert [member.name for member in index(entry)] == ["BZhang/1.jpg"]


def test_zstandard_may_begin_with_a_frame_without_content(tmp_path):
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    (tmp_path / "a.tar.zst").write_bytes(skipped + pa.compress(pack(), "zstd", asbytes=True))
    (entry,) = storage.list_files(str(tmp_path / "a.tar.zst"))
    assert [member.name for member in index(entry)] == list(CONTENTS)


def test_a_zip_is_known_by_its_end_alone(tmp_path, monkeypatch):
    """Of a large one on S3, the directory is fetched and no more."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(50):
            file.writestr(f"{number}.jpg", np.random.default_rng(number).bytes(10_000))
    (entry,) = storage.list_files(str(path))
    places = []

    class Watched(io.FileIO):
        def readinto(self, buffer):
            places.append(self.tell())
            return super().readinto(buffer)

    monkeypatch.setattr(storage, "open_file", lambda uri: io.BufferedReader(Watched(uri), 4096))
    assert len(index(entry)) == 50
    assert min(places) > 400_000


def test_what_follows_an_archive_and_is_none_is_told(tmp_path):
    *members, rest = index(write(tmp_path / "a.tar", pack() + b"signed by somebody" * 100))
    assert [member.name for member in members] == list(CONTENTS)
    assert "damaged" in rest.reason


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.bz2", "a.zip"])
@pytest.mark.parametrize("packing", ["plain", "gzip", "zip"])
def test_content_tells_what_an_archive_is(tmp_path, name, packing):
    data = pack()
    if packing == "gzip":
        data = gzip.compress(data)
    elif packing == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for member, content in CONTENTS.items():
                file.writestr(member, content)
        data = buffer.getvalue()
    (tmp_path / name).write_bytes(data)
    plan = write_plan(str(tmp_path / "out"), find_candidates([str(tmp_path / name)], Selection()), {}, None)
    assert [item.data for item in read_rows(plan.read(0, 10), 10_000, None)] == list(CONTENTS.values())


PACKERS = {"tbz2": bz2.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress, "txz": lzma.compress}
PACKERS["tar.zst"] = lambda data: pa.compress(data, "zstd", asbytes=True)


@pytest.mark.parametrize("kind", PACKERS)
def test_other_packings_are_read_in_one_pass(tmp_path, kind):
    contents = {f"{number}.jpg": np.random.default_rng(number).bytes(5000) for number in range(4)}
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as file:
        for name, data in contents.items():
            info = tarfile.TarInfo(f"./in/{name}")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    packed = PACKERS[kind](plain.getvalue())
    path = tmp_path / f"a.{kind}"
    path.write_bytes(packed)
    assert is_archive(str(path))
    (entry,) = storage.list_files(str(path))
    members = index(entry)
    assert [member.name for member in members] == [f"in/{name}" for name in contents]
    unpacked = open_unpacked(io.BytesIO(packed))
    for member, data in zip(members, contents.values(), strict=True):
        unpacked.seek(member.offset)
        assert unpacked.read(member.size) == data
    path.write_bytes(packed[: len(packed) // 2])
    (entry,) = storage.list_files(str(path))
    assert "cut short or damaged" in index(entry)[-1].reason


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_hard_link_is_another_name_for_its_targets_bytes(tmp_path, mode):
    contents = {"a.jpg": b"one", "b.jpg": b"two"}
    path = tmp_path / ("a.tar" if mode == "w" else "a.tar.gz")
    with tarfile.open(path, mode) as file:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name, target in (("link.jpg", "a.jpg"), ("outside.jpg", "none.jpg")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            file.addfile(info)
    (entry,) = storage.list_files(str(path))
    members = {member.name: member for member in index(entry)}
    assert (members["link.jpg"].offset, members["link.jpg"].size) == (members["a.jpg"].offset, 3)
    assert members["link.jpg"].source is members["a.jpg"].source
    assert members["outside.jpg"].source is SourceKind.LINK
    plan = write_plan(str(tmp_path / "out"), find_candidates([str(path)], Selection()), {}, None)
    fetched = list(read_rows(plan.read(0, 10), 10_000, None))
    names = [uri.rpartition("#")[2] for uri in plan.read(0, 10)["uri"].to_pylist()]
    found = dict(zip(names, (each.data for each in fetched), strict=True))
    assert (found["a.jpg"], found["link.jpg"], found["b.jpg"]) == (b"one", b"one", b"two")
    assert found["outside.jpg"].code is Code.UNSUPPORTED
    assert len(plan.measures.streams) == (0 if mode == "w" else 1)


def test_a_disk_that_fails_leaves_the_members_to_be_tried_again(tmp_path, monkeypatch):
    entry = write(tmp_path / "a.tar.gz", pack())
    plan = write_plan(str(tmp_path / "out"), Candidates([], iter(index(entry))), {}, None)

    def fail(file, buffer):
        raise FetchError(Code.TIMEOUT, "the file cannot be read: Input/output error")

    monkeypatch.setattr(files._LocalFile, "readinto", fail)
    fetched = list(read_rows(plan.read(0, 10), 2**20, None))
    assert [result.data.code for result in fetched] == [Code.TIMEOUT] * 4
