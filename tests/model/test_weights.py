import hashlib
import io
from dataclasses import replace

import h5py
import pytest

from tlray.errors import WeightsError
from tlray.model.backbones import BACKBONES
from tlray.model.weights import load_weights

BACKBONE = "mobilenet_v2"
SIZE = BACKBONES[BACKBONE].num_weights


def make_hdf5(*sizes: int) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for index, size in enumerate(sizes):
            # chunks that are never written take no space
            file.create_dataset(f"layer_{index}/kernel", (size,), "float32", chunks=(min(size, 4096),))
        file.create_dataset("step", (7,), "int64")
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "base.h5"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The published weights as a file of this machine, and an empty folder of Keras's."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    path = tmp_path / "published" / "base.h5"
    path.parent.mkdir()
    path.write_bytes(b"published")
    digest = hashlib.md5(b"published", usedforsecurity=False).hexdigest()
    entry = replace(BACKBONES[BACKBONE], imagenet_url=path.as_uri(), imagenet_md5=digest)
    monkeypatch.setitem(BACKBONES, BACKBONE, entry)
    return path


def refuse(weights):
    with pytest.raises(WeightsError) as caught:
        load_weights(str(weights), BACKBONE)
    return str(caught.value)


def test_none_are_random_weights():
    assert load_weights("none", BACKBONE) is None


def test_a_file_with_the_floats_of_the_base_is_taken(path):
    path.write_bytes(make_hdf5(SIZE - 1000, 1000))
    assert load_weights(str(path), BACKBONE) == path.read_bytes()


def test_a_file_of_another_size_is_refused(path):
    path.write_bytes(make_hdf5(SIZE - 1000, 999))
    assert refuse(path) == (
        f"--weights {path} is not of a mobilenet_v2 without its top: it holds 2,257,983 values, not 2,257,984; "
        "give another file, or another --backbone"
    )


def test_a_file_that_was_cut_off_is_refused(path):
    path.write_bytes(make_hdf5(SIZE)[:600])
    assert "it holds 0 values" in refuse(path)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\n <!DOCTYPE html><html>", " but an HTML page"),
        (b"<HTML>", " but an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", " but a Git LFS pointer (run git lfs pull)"),
        (b"PK\x03\x04", ""),
        (b"", ""),
    ],
)
def test_another_kind_of_file_is_named(path, data, kind):
    path.write_bytes(data)
    assert refuse(path) == (
        f"--weights {path} is not a weights file{kind}; give the .h5 of a mobilenet_v2 without its top"
    )


def test_a_missing_file_is_named(path):
    text = refuse(path)
    assert text.startswith(f"--weights {path} cannot be read: ")
    assert text.endswith("; give an existing .h5 file")


def test_imagenet_weights_are_fetched_once(published, tmp_path):
    assert load_weights("imagenet", BACKBONE) == b"published"
    kept = tmp_path / "keras" / "models" / "base.h5"
    assert kept.read_bytes() == b"published"
    assert list(kept.parent.iterdir()) == [kept]
    published.unlink()
    assert load_weights("imagenet", BACKBONE) == b"published"


def test_damaged_imagenet_weights_are_not_kept(published, tmp_path):
    published.write_bytes(b"changed on the way")
    assert refuse("imagenet") == (
        "the ImageNet weights of mobilenet_v2 arrived damaged; try again, or give a file by --weights"
    )
    assert not (tmp_path / "keras").exists()


def test_imagenet_weights_that_cannot_be_fetched_have_a_way_out(published, tmp_path):
    published.unlink()
    text = refuse("imagenet")
    assert text.startswith("the ImageNet weights of mobilenet_v2 cannot be fetched (")
    assert f"put base.h5 into {tmp_path / 'keras' / 'models'}, give a file by --weights PATH" in text


@pytest.mark.parametrize("size", [0, 5])
def test_imagenet_weights_that_were_cut_off_on_disk_are_refused(published, tmp_path, size):
    load_weights("imagenet", BACKBONE)
    kept = tmp_path / "keras" / "models" / "base.h5"
    kept.write_bytes(b"published"[:size])
    assert refuse("imagenet").startswith(f"{kept} is damaged: it holds {size} bytes of the ImageNet weights of mobilen")


def test_imagenet_weights_without_a_published_hash_are_checked_by_their_values(published, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, BACKBONE, replace(BACKBONES[BACKBONE], imagenet_md5=None))
    assert "arrived damaged" in refuse("imagenet")
    whole = make_hdf5(SIZE)
    published.write_bytes(whole)
    assert load_weights("imagenet", BACKBONE) == whole
    (tmp_path / "keras" / "models" / "base.h5").write_bytes(whole[:-9])
    assert "is damaged" in refuse("imagenet")
