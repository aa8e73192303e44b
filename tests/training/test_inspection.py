import hashlib
import os

import pytest

from tlray import storage
from tlray.errors import StoppedError
from tlray.images.limits import Limits
from tlray.training import inspection
from tlray.training.inspection import Memory, inspect_images

LIMITS = Limits()
HOUR_NS = 3600 * 10**9


@pytest.fixture
def paths(tmp_path, write_digits):
    """12 images, written long ago."""
    found = sorted(write_digits(tmp_path / "train", 2, 6).rglob("*.png"))
    for path in found:
        age(path)
    return found


def age(path):
    then = path.stat().st_mtime_ns - HOUR_NS
    os.utime(path, ns=(then, then))


def inspect(paths, memory=None):
    versions = [entry.version for path in paths for entry in storage.list_files(str(path))]
    return inspect_images(list(map(str, paths)), versions, memory or Memory(None, LIMITS), LIMITS, spread=False)


@pytest.fixture
def read(monkeypatch):
    """The addresses that were read."""
    uris = []
    get_many = storage.get_many

    def note(wanted):
        uris.extend(wanted)
        return get_many(wanted)

    monkeypatch.setattr(inspection.storage, "get_many", note)
    return uris


def test_a_digest_is_the_hash_of_the_file_in_order(paths):
    found = inspect(paths * 8)
    assert [one.digest for one in found] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] * 8
    assert [one.fault for one in found] == [None] * 96


def test_images_as_they_were_are_not_read_again(paths, tmp_path, read, capsys):
    paths[3].write_bytes(b"not an image")
    age(paths[3])
    first = inspect(paths, Memory(str(tmp_path), LIMITS))
    assert first[3].fault.startswith("UNSUPPORTED: ")
    read.clear()
    assert inspect(paths, Memory(str(tmp_path), LIMITS)) == first
    assert read == []
    assert "inspect: 12 of 12 images are as an earlier training found them" in capsys.readouterr().out


def test_what_has_changed_is_read_again(paths, tmp_path, read):
    inspect(paths, Memory(str(tmp_path), LIMITS))
    data = paths[1].read_bytes()
    paths[0].write_bytes(data)
    before = paths[2].stat().st_mtime_ns
    os.utime(paths[2], ns=(before + 1, before + 1))
    read.clear()
    found = inspect(paths, Memory(str(tmp_path), LIMITS))
    assert read == [str(paths[0]), str(paths[2])]
    assert found[0].digest == hashlib.sha256(data).hexdigest()


def test_other_limits_are_another_inspection(paths, tmp_path, read):
    inspect(paths, Memory(str(tmp_path), LIMITS))
    read.clear()
    small = Limits(max_pixels=10)
    versions = [entry.version for path in paths for entry in storage.list_files(str(path))]
    found = inspect_images(list(map(str, paths)), versions, Memory(str(tmp_path), small), small, spread=False)
    assert len(read) == 12
    assert found[0].fault.startswith("BOMB: ")


def test_a_file_that_has_just_been_written_is_not_remembered(paths, tmp_path, read):
    """Another change could leave its modification time as it is."""
    paths[5].write_bytes(paths[5].read_bytes())
    inspect(paths, Memory(str(tmp_path), LIMITS))
    read.clear()
    inspect(paths, Memory(str(tmp_path), LIMITS))
    assert read == [str(paths[5])]


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"x" * 100])
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
    gone = [tmp_path / f"gone{index}.png" for index in range(10)]
    uris = [str(path) for path in (*gone, *paths)]
    memory = Memory(str(tmp_path), LIMITS)
    found = inspect_images(uris, ["1 1"] * len(uris), memory, LIMITS, spread=False)
    assert [one.fault is not None for one in found] == [True] * 10 + [False] * 12
    assert found[0] == ("", found[0].fault)
    assert found[0].fault.startswith("NOT_FOUND: ")
    assert memory.find(uris[0], "1 1") is None  # it may come back


def test_many_images_that_cannot_be_fetched_stop_the_training(tmp_path):
    uris = [str(tmp_path / f"gone{index}.png") for index in range(11)]
    with pytest.raises(StoppedError, match=r"11 of 11 images cannot be read, 10 may be left out; the first is .*gone0"):
        inspect_images(uris, [""] * 11, Memory(None, LIMITS), LIMITS, spread=False)
