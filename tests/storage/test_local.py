import contextlib
import errno
import os
from pathlib import Path

import pytest

from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage import local
from tlray.storage.addresses import Request
from tlray.storage.local import check_size, check_unchanged, explain


def list_names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def fail(number):
    """A function that fails as the operating system does."""

    def raise_error(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return raise_error


def get_code(function, *arguments):
    with pytest.raises(FetchError) as caught:
        function(*arguments)
    return caught.value.code


# listing


def test_files_come_in_the_order_of_s3_keys(tmp_path):
    for name in ("b", "a/x", "a-b", "a.b", "a0", "B", "a/Y/z", "ä", "\U0001f600", "\uffff"):
        local.put(str(tmp_path / name), name.encode())
    names = [entry.name for entry in local.iter_files(str(tmp_path))]
    assert names == ["B", "a-b", "a.b", "a/Y/z", "a/x", "a0", "b", "ä", "\uffff", "\U0001f600"]
    assert names == sorted(names, key=str.encode)


def test_an_entry_describes_its_file(tmp_path):
    path = tmp_path / "sub" / "image.png"
    local.put(str(path), b"12345")
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    (entry,) = local.iter_files(str(tmp_path))
    changed = path.stat().st_ctime_ns
    assert entry == (str(path), "sub/image.png", 5, None, 1_234_567_890_123_456_789, None, changed)
    assert entry.version == f"5 1234567890123456789 {changed}"
    assert entry._replace(etag="9f3b").version == "5 9f3b"


def test_one_file_is_listed_by_its_own_name(tmp_path):
    local.put(str(tmp_path / "sub" / "image.png"), b"12345")
    (entry,) = local.iter_files(str(tmp_path / "sub" / "image.png"))
    assert (entry.name, entry.size) == ("image.png", 5)


def test_an_empty_folder_holds_no_files(tmp_path):
    (tmp_path / "sub").mkdir()
    assert list(local.iter_files(str(tmp_path))) == []


def test_what_cannot_be_read_says_why(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "none")
    reasons = {entry.name: entry.unreadable for entry in local.iter_files(str(tmp_path))}
    assert reasons == {
        "broken": "its status cannot be read: No such file or directory",
        "pipe": "not a plain file",
    }


def test_a_link_to_a_file_is_read_through_and_one_to_a_listed_folder_is_not_entered_again(tmp_path):
    local.put(str(tmp_path / "a" / "file"), b"12345")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path / "a" / "file")
    assert [(entry.name, entry.size) for entry in local.iter_files(str(tmp_path))] == [("a/file", 5), ("c", 5)]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "scandir", fail(errno.EACCES))
    with pytest.raises(DataError, match=f"{tmp_path} cannot be listed"):
        list(local.iter_files(str(tmp_path)))
    with pytest.raises(FetchError, match="cannot be listed") as caught:
        local.find_any(str(tmp_path))
    assert caught.value.code is Code.DENIED


def test_a_folder_below_that_cannot_be_listed_is_an_entry(tmp_path, monkeypatch):
    local.put(str(tmp_path / "a" / "file"), b"")
    local.put(str(tmp_path / "lost+found" / "file"), b"")
    real = os.scandir

    def scan(path):
        return real(path) if not str(path).endswith("lost+found") else fail(errno.EACCES)()

    monkeypatch.setattr(os, "scandir", scan)
    found = [(entry.name, entry.unreadable) for entry in local.iter_files(str(tmp_path))]
    assert found == [("a/file", None), ("lost+found", "a folder that cannot be listed: Permission denied")]


def test_find_any_prefers_the_largest_of_the_first_files(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_FIRST_FILES", 3)
    for name, size in {"a": 0, "b": 7, "c": 2, "d": 99}.items():
        local.put(str(tmp_path / name), bytes(size))
    assert local.find_any(str(tmp_path)).name == "b"
    assert local.find_any(str(tmp_path / "a")).name == "a"


def test_find_any_passes_over_what_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "a")
    assert get_code(local.find_any, str(tmp_path)) is Code.NOT_FOUND
    local.put(str(tmp_path / "b"), b"")
    assert local.find_any(str(tmp_path)).name == "b"


def test_find_any_tells_nothing_from_an_empty_folder(tmp_path):
    with pytest.raises(FetchError, match="no such file or folder"):
        local.find_any(str(tmp_path / "none"))
    with pytest.raises(FetchError, match="holds no files"):
        local.find_any(str(tmp_path))


def test_only_plain_files_are_found(tmp_path):
    local.put(str(tmp_path / "file"), b"12345")
    os.mkfifo(tmp_path / "pipe")
    found, status = local.find_file(str(tmp_path / "file")), (tmp_path / "file").stat()
    assert (found.size, found.mtime_ns, found.ctime_ns) == (5, status.st_mtime_ns, status.st_ctime_ns)
    for name in ("pipe", "none", "file/below", ".", "nul\0"):
        assert local.find_file(f"{tmp_path}/{name}") is None


def test_content_is_a_file_or_a_folder_with_entries(tmp_path):
    local.put(str(tmp_path / "full" / "file"), b"")
    (tmp_path / "empty").mkdir()
    found = {name: local.has_content(str(tmp_path / name)) for name in ("full", "full/file", "empty", "none")}
    assert found == {"full": True, "full/file": True, "empty": False, "none": False}


# reading


def test_a_range_ends_with_its_file(tmp_path):
    path = str(tmp_path / "file")
    local.put(path, b"0123456789")
    assert local.read(Request(path)) == b"0123456789"
    assert local.read(Request(path, 2, 3)) == b"234"
    assert local.read(Request(path, None, 3)) == b"012"
    assert local.read(Request(path, 8, 5)) == b"89"
    assert local.read(Request(path, 20, 5)) == b""
    assert local.read(Request(path, 2, 0)) == b""


def test_a_range_is_read_on_where_the_system_returns_less(tmp_path, monkeypatch):
    local.put(str(tmp_path / "file"), b"0123456789")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: real(descriptor, min(length, 3), offset))
    assert local.read(Request(str(tmp_path / "file"), 1, 8)) == b"12345678"


def test_a_read_checks_the_version_and_the_size(tmp_path):
    path = tmp_path / "file"
    local.put(str(path), b"12345")
    now = path.stat().st_mtime_ns
    assert local.read(Request(str(path), size=5, mtime_ns=now, max_bytes=5)) == b"12345"
    assert get_code(local.read, Request(str(path), size=4)) is Code.CHANGED
    assert get_code(local.read, Request(str(path), 0, 1, mtime_ns=now + 1)) is Code.CHANGED
    assert get_code(local.read, Request(str(path), max_bytes=4)) is Code.TOO_LARGE
    assert local.read(Request(str(path), 0, 1, max_bytes=4)) == b"1"


def test_folders_and_missing_files_cannot_be_read(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        assert get_code(local.read, Request(str(path))) is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (errno.ENOENT, Code.NOT_FOUND, "the file no longer exists"),
        (errno.EACCES, Code.DENIED, "permission to read the file is denied"),
        (errno.EPERM, Code.DENIED, "permission to read the file is denied"),
        (errno.EIO, Code.TIMEOUT, f"the file cannot be read: {os.strerror(errno.EIO)}"),
        (errno.ESTALE, Code.TIMEOUT, f"the file cannot be read: {os.strerror(errno.ESTALE)}"),
        (errno.ETIMEDOUT, Code.TIMEOUT, f"the file cannot be read: {os.strerror(errno.ETIMEDOUT)}"),
        (errno.ENOTDIR, Code.NOT_FOUND, f"the file cannot be read: {os.strerror(errno.ENOTDIR)}"),
        (errno.ELOOP, Code.NOT_FOUND, f"the file cannot be read: {os.strerror(errno.ELOOP)}"),
    ],
)
def test_errors_of_the_system_get_a_code(number, code, message):
    with pytest.raises(FetchError) as caught, explain():
        fail(number)()
    assert (caught.value.code, str(caught.value)) == (code, message)


def test_other_errors_are_not_explained():
    with pytest.raises(ZeroDivisionError), explain():
        _ = 1 / 0


@pytest.mark.parametrize(
    ("planned", "change"),
    [
        ({}, None),
        ({"size": 5, "etag": "e", "mtime_ns": 7}, None),
        ({"size": 1_005}, "1,005 bytes then, 5 now"),
        ({"etag": "f"}, "etag f then, e now"),
        ({"mtime_ns": 8}, "another modification time"),
        ({"etag": "e", "mtime_ns": 8}, None),  # the etag decides
        ({"size": 6, "etag": "f", "mtime_ns": 8}, "6 bytes then, 5 now; etag f then, e now"),
        ({"size": 6, "mtime_ns": 8}, "6 bytes then, 5 now; another modification time"),
    ],
)
def test_a_changed_file_is_described(planned, change):
    expected = contextlib.nullcontext() if change is None else pytest.raises(FetchError)
    with expected as caught:
        check_unchanged(Request("x", **planned), 5, "e", 7)
    if change is not None:
        assert caught.value.code is Code.CHANGED
        assert str(caught.value) == f"changed since it was planned: {change}"


def test_an_unknown_version_is_no_change():
    check_unchanged(Request("x", etag="e", mtime_ns=7), 5, None, None)


def test_a_file_may_hold_exactly_its_limit():
    check_size(Request("x"), 10**12)
    check_size(Request("x", max_bytes=1_000), 1_000)
    with pytest.raises(FetchError, match="holds 1,001 bytes, more than --max-bytes 1,000"):
        check_size(Request("x", max_bytes=1_000), 1_001)


# writing


@pytest.mark.parametrize(("module", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_put_that_fails_leaves_the_old_file(tmp_path, monkeypatch, module, name):
    local.put(str(tmp_path / "file"), b"old")
    monkeypatch.setattr(module, name, fail(errno.ENOSPC))
    with pytest.raises(OutputError) as caught:
        local.put(str(tmp_path / "file"), b"new")
    assert str(caught.value) == f"{tmp_path}/file cannot be written: {os.strerror(errno.ENOSPC)}"
    assert list_names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_put_shows_no_file_before_it_is_whole(tmp_path, monkeypatch):
    seen = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append((tmp_path / "file").exists()), real(number)))
    local.put(str(tmp_path / "file"), b"content")
    assert seen == [False, True]  # the file is synced before the rename, the folder after it


def test_a_put_below_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for write in (local.put, local.put_new):
        with pytest.raises(OutputError, match="cannot be written"):
            write(str(tmp_path / "file" / "below"), b"")
    with pytest.raises(OutputError, match="cannot be written"):
        local.put_folder(str(tmp_path / "file" / "below"), {"a": b""}, ["a"])
    assert list_names(tmp_path) == ["file"]


def test_put_new_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail(errno.ENOSPC))
    with pytest.raises(OutputError, match="No space left on device"):
        local.put_new(str(tmp_path / "lock"), b"content")
    assert list_names(tmp_path) == []


@pytest.mark.parametrize("hard_links", [True, False])
def test_put_new_never_replaces_a_file(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", fail(errno.EPERM))
    path = str(tmp_path / "deep" / "file")
    assert local.put_new(path, b"first") is True
    assert local.put_new(path, b"second") is False
    assert Path(path).read_bytes() == b"first"
    assert list_names(tmp_path) == ["deep", "deep/file"]


def test_a_folder_takes_the_place_of_an_empty_one(tmp_path):
    (tmp_path / "bundle").mkdir()
    local.put_folder(str(tmp_path / "bundle"), {"a": b"1", "b/c": b"2"}, ["b/c", "a"])
    assert list_names(tmp_path) == ["bundle", "bundle/a", "bundle/b", "bundle/b/c"]
    assert (tmp_path / "bundle" / "b" / "c").read_bytes() == b"2"


def test_a_folder_never_replaces_a_full_one(tmp_path):
    local.put(str(tmp_path / "bundle" / "theirs"), b"1")
    with pytest.raises(OutputError, match=os.strerror(errno.ENOTEMPTY)):
        local.put_folder(str(tmp_path / "bundle"), {"a": b"1"}, ["a"])
    assert list_names(tmp_path) == ["bundle", "bundle/theirs"]


def test_permissions_are_checked_on_the_nearest_folder(tmp_path, monkeypatch):
    local.check_writable(str(tmp_path / "a" / "b"), "--output")
    local.try_writing(str(tmp_path))
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((str(path), mode)))
    with pytest.raises(OutputError) as caught:
        local.check_writable(str(tmp_path / "a" / "b"), "--report")
    assert str(caught.value).startswith(f"--report {tmp_path}/a/b cannot be written: {tmp_path} is not a folder")
    assert get_code(local.try_writing, str(tmp_path)) is Code.DENIED
    assert asked == [(str(tmp_path), os.W_OK | os.X_OK)] * 2
    assert list_names(tmp_path) == []


def test_writing_is_tried_in_folders_that_exist(tmp_path):
    local.put(str(tmp_path / "file"), b"")
    for name in ("none", "file"):
        assert get_code(local.try_writing, str(tmp_path / name)) is Code.NOT_FOUND


def test_a_link_that_leads_nowhere_is_one_entry(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "through").symlink_to("a.jpg/x")
    entries = {entry.name: entry.unreadable for entry in local.iter_files(str(tmp_path))}
    assert entries.pop("a.jpg") is None
    assert entries.keys() == {"self", "through"}
    assert all(reason.startswith("its status cannot be read: ") for reason in entries.values())


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero")):
        with pytest.raises(FetchError, match="not a plain file") as caught:
            local.read(Request(str(path)))
        assert caught.value.code == Code.UNSUPPORTED
