import hashlib
import io
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.factories import make_files
from tlray import storage
from tlray.errors import StoppedError
from tlray.images.limits import Limits
from tlray.training import inspection
from tlray.training.inspection import Memory, inspect_images

LIMITS = Limits()
HOUR_NS = 3600 * 10**9


@pytest.fixture
def paths(tmp_path, write_digits):
    """12 images."""
    return sorted(write_digits(tmp_path / "train", 2, 6).rglob("*.png"))


@pytest.fixture(autouse=True)
def an_hour_later(monkeypatch):
    """What is written in these tests has been there for long."""
    now = time.time_ns
    monkeypatch.setattr(inspection.time, "time_ns", lambda: now() + HOUR_NS)


def inspect(paths, memory=None):
    versions = [entry.version for path in paths for entry in storage.list_files(str(path))]
    return inspect_images(
        make_files(list(map(str, paths))), versions, memory or Memory(None, LIMITS), LIMITS, spread=False
    )


@pytest.fixture
def read(monkeypatch):
    """The addresses that were read."""
    uris = []
    read_rows = inspection.read_rows

    def note(rows, *limits):
        uris.extend(rows["uri"].to_pylist())
        return read_rows(rows, *limits)

    monkeypatch.setattr(inspection, "read_rows", note)
    return uris


def test_a_digest_is_the_hash_of_the_file_in_order(paths):
    found = inspect(paths * 8)
    assert [one.digest for one in found] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] * 8
    assert [one.fault for one in found] == [None] * 96


def test_images_as_they_were_are_not_read_again(paths, tmp_path, read, capsys):
    first = inspect(paths, Memory(str(tmp_path), LIMITS))
    read.clear()
    assert inspect(paths, Memory(str(tmp_path), LIMITS)) == first
    assert read == []
    assert "inspect: 12 of 12 images are unchanged since an earlier training" in capsys.readouterr().out


def test_an_image_with_a_fault_is_read_again(paths, tmp_path, read):
    """A newer decoder, or another machine, may read it."""
    paths[3].write_bytes(b"not an image")
    assert inspect(paths, Memory(str(tmp_path), LIMITS))[3].fault.startswith("UNSUPPORTED: ")
    read.clear()
    inspect(paths, Memory(str(tmp_path), LIMITS))
    assert read == [str(paths[3])]


def test_what_has_changed_is_read_again(paths, tmp_path, read):
    inspect(paths, Memory(str(tmp_path), LIMITS))
    data = paths[1].read_bytes()
    paths[0].write_bytes(data)
    status = paths[2].stat()
    os.utime(paths[2], ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync: the same size and time
    read.clear()
    found = inspect(paths, Memory(str(tmp_path), LIMITS))
    assert read == [str(paths[0]), str(paths[2])]
    assert found[0].digest == hashlib.sha256(data).hexdigest()


def test_other_limits_are_another_inspection(paths, tmp_path, read):
    inspect(paths, Memory(str(tmp_path), LIMITS))
    read.clear()
    small = Limits(max_pixels=10)
    versions = [entry.version for path in paths for entry in storage.list_files(str(path))]
    found = inspect_images(
        make_files(list(map(str, paths))), versions, Memory(str(tmp_path), small), small, spread=False
    )
    assert len(read) == 12
    assert found[0].fault.startswith("BOMB: ")


def test_a_file_that_has_just_been_written_is_not_remembered(paths, tmp_path, read, monkeypatch):
    """Another change could leave its times as they are."""
    changed = paths[5].stat().st_ctime_ns
    for path in paths[:5] + paths[6:]:
        os.utime(path)
    monkeypatch.setattr(inspection, "_is_fresh", lambda version, now_ns: str(changed) in version)
    inspect(paths, Memory(str(tmp_path), LIMITS))
    read.clear()
    inspect(paths, Memory(str(tmp_path), LIMITS))
    assert read == [str(paths[5])]


@pytest.mark.parametrize(
    ("version", "fresh"),
    [("5 1000 1000", False), ("5 1000 9500000000", True), ("5 9500000000 1000", True), ("5 9f3b", False)],
)
def test_a_file_is_fresh_for_two_seconds(version, fresh):
    assert inspection._is_fresh(version, 10 * 10**9) == fresh


def write_parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


DAMAGE = [b"", b"PAR1", b"x" * 100, write_parquet(uri=["a"]), write_parquet(uri=[1], version=[2], digest=[3])]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_memory_is_no_memory(paths, tmp_path, read, damage):
    first = inspect(paths, Memory(str(tmp_path), LIMITS))
    (stored,) = (tmp_path / "inspected").iterdir()
    stored.write_bytes(damage)
    read.clear()
    assert inspect(paths, Memory(str(tmp_path), LIMITS)) == first
    assert len(read) == 12


def test_a_memory_that_cannot_be_written_is_told(paths, tmp_path, capsys):
    (tmp_path / "inspected").write_text("a file where a folder should be")
    assert len(inspect(paths, Memory(str(tmp_path), LIMITS))) == 12
    assert "what was found by inspecting the images is not kept" in capsys.readouterr().out


def test_a_few_images_that_cannot_be_fetched_are_left_out(paths, tmp_path, read):
    uris = [str(path) for path in (tmp_path / "gone.png", *paths)]
    memory = Memory(str(tmp_path), LIMITS)
    found = inspect_images(make_files(uris), ["1 1 1"] * len(uris), memory, LIMITS, spread=False)
    assert [one.fault is not None for one in found] == [True] + [False] * 12
    assert found[0] == ("", found[0].fault)
    assert found[0].fault.startswith("NOT_FOUND: ")
    assert memory.find(uris[0], "1 1 1") is None  # it may come back


def test_many_images_that_cannot_be_fetched_stop_the_training(tmp_path):
    uris = [str(tmp_path / f"gone{index}.png") for index in range(2)]
    with pytest.raises(StoppedError, match=r"more than 1 of 2 images cannot be read, .* the first is .*gone0"):
        inspect_images(make_files(uris), [""] * 2, Memory(None, LIMITS), LIMITS, spread=False)
