"""Encoded images from object storage are kept on local disk, up to a limit."""

import shutil

from tlray import storage
from tlray.errors import Code, FetchError
from tlray.training.loader import KeptBytes


def test_objects_are_fetched_once_as_far_as_they_fit(tmp_path, monkeypatch):
    asked = []

    def get_many(uris):
        for uri in uris:
            asked.append(uri)
            yield FetchError(Code.NOT_FOUND, "gone") if "gone" in uri else uri.encode() * 2

    monkeypatch.setattr(storage, "get_many", get_many)
    a, b, gone = "s3://bucket/a", "s3://bucket/b", "s3://bucket/gone"
    local = str(tmp_path / "local")
    kept = KeptBytes(tmp_path / "kept", max_bytes=len(a) * 2)
    for _ in range(2):
        predictions = list(kept.get_many([a, gone, local, b, a]))
        assert [predictions[0], *predictions[2:]] == [uri.encode() * 2 for uri in (a, local, b, a)]
        assert isinstance(predictions[1], FetchError)
    assert asked.count(a) == 2  # twice in one batch, before the first was kept
    assert asked.count(b) == asked.count(local) == asked.count(gone) == 2
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_kept_images_that_another_worker_removes_are_fetched_again(tmp_path, monkeypatch):
    """Workers of one machine share the folder, and the first to end removes it."""
    asked = []

    def get_many(uris):
        asked.extend(uris)
        return (uri.encode() for uri in uris)

    monkeypatch.setattr(storage, "get_many", get_many)
    kept = KeptBytes(tmp_path / "kept", max_bytes=100)
    uris = ["s3://b/0", "s3://b/1"]
    assert [*kept.get_many(uris)] == [*kept.get_many(uris)]
    images = kept.get_many(uris)
    shutil.rmtree(tmp_path / "kept")
    assert [*images] == [uri.encode() for uri in uris]
    assert asked == uris * 2
    started = kept.get_many(uris)
    assert next(started) == b"s3://b/0"
    shutil.rmtree(tmp_path / "kept")
    assert [*started] == [b"s3://b/1"]
