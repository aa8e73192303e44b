import pytest

from tlray import storage
from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage import local


def test_a_put_leaves_the_file_and_nothing_else(tmp_path):
    target = tmp_path / "deep" / "file.bin"
    storage.put(str(target), b"one")
    storage.put(str(target), b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    real = local.put

    def fail(uri, data):
        if uri.endswith("last"):
            raise OutputError("disk full")
        real(uri, data)

    monkeypatch.setattr(local, "put", fail)
    with pytest.raises(OutputError):
        storage.put_folder(str(tmp_path / "bundle"), {"a/b": b"1", "last": b"2"}, last="last")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    storage.put_folder(str(tmp_path / "bundle"), {"a/b": b"1", "last": b"2"}, last="last")
    assert (tmp_path / "bundle" / "a" / "b").read_bytes() == b"1"


def test_missing_files_are_told_apart(tmp_path):
    with pytest.raises(FetchError) as caught:
        storage.get(str(tmp_path / "none"))
    assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(DataError, match="does not exist"):
        storage.list_files(str(tmp_path / "none"))


def test_a_link_that_leads_back_up_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert [entry.name for entry in storage.list_files(str(tmp_path))] == ["a/x.jpg"]


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="not a folder"):
        storage.check_writable(str(tmp_path / "file" / "below"))


def test_names_with_an_at_sign_stay():
    for text in ("s3://bucket/icon@2x.png", "/home/me@work/a.png", "s3://bucket/a/b@c/d.png"):
        assert storage.redact(text) == text


def test_secrets_are_taken_out():
    for address in ("https://token@host/x", "s3://key:se/cr/et@bucket/x"):
        cleaned = storage.redact(address)
        assert "***@" in cleaned
        assert not any(secret in cleaned for secret in ("token", "se/cr", "key:"))
    text = "GET https://user:hunter2@host/k?X-Amz-Signature=abc123&X-Amz-Credential=AKIAABCDEFGHIJKLMNOP/x failed"
    cleaned = storage.redact(text)
    for secret in ("hunter2", "abc123", "AKIAABCDEFGHIJKLMNOP"):
        assert secret not in cleaned
    assert "host/k" in cleaned
