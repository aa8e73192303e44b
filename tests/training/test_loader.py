"""Encoded images from object storage are kept on local disk, up to a limit."""

import shutil

import numpy as np

from tests.factories import make_files
from tlray.errors import Code, FetchError
from tlray.sources.places import Places
from tlray.training.loader import KeptBytes


def fetch_all(kept, uris):
    return kept.fetch(make_files(uris), np.arange(len(uris)), max_bytes=1000)


def test_objects_are_fetched_once_as_far_as_they_fit(tmp_path, monkeypatch):
    asked = []

    def fetch(places, rows, max_bytes):
        for uri in places.list_names(rows):
            asked.append(uri)
            yield FetchError(Code.NOT_FOUND, "gone") if "gone" in uri else uri.encode() * 2

    monkeypatch.setattr(Places, "fetch", fetch)
    a, b, gone = "s3://bucket/a", "s3://bucket/b", "s3://bucket/gone"
    local = str(tmp_path / "local")
    kept = KeptBytes(tmp_path / "kept", max_bytes=len(a) * 2)
    for _ in range(2):
        predictions = list(fetch_all(kept, [a, gone, local, b, a]))
        assert [predictions[0], *predictions[2:]] == [uri.encode() * 2 for uri in (a, local, b, a)]
        assert isinstance(predictions[1], FetchError)
    assert asked.count(a) == 2  # twice in one batch, before the first was kept
    assert asked.count(b) == asked.count(local) == asked.count(gone) == 2
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_kept_images_that_another_worker_removes_are_fetched_again(tmp_path, monkeypatch):
    """Workers of one machine share the folder, and the first to end removes it."""
    asked = []

    def fetch(places, rows, max_bytes):
        uris = places.list_names(rows)
        asked.extend(uris)
        return (uri.encode() for uri in uris)

    monkeypatch.setattr(Places, "fetch", fetch)
    kept = KeptBytes(tmp_path / "kept", max_bytes=100)
    uris = ["s3://b/0", "s3://b/1"]
    assert [*fetch_all(kept, uris)] == [*fetch_all(kept, uris)]
    images = fetch_all(kept, uris)
    shutil.rmtree(tmp_path / "kept")
    assert [*images] == [uri.encode() for uri in uris]
    assert asked == uris * 2
    started = fetch_all(kept, uris)
    assert next(started) == b"s3://b/0"
    shutil.rmtree(tmp_path / "kept")
    assert [*started] == [b"s3://b/1"]
