import pytest

from tests.storage.conftest import BUCKET
from tlray import storage
from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage import local, s3


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


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """A folder or a prefix; keys that tests read have an empty part."""
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("bucket")
    return f"s3://{BUCKET}/a"


def test_both_kinds_of_address_behave_alike(root):
    uri = f"{root}/out//file"
    assert (storage.exists(uri), storage.has_content(f"{root}/out")) == (False, False)
    storage.check_writable(f"{root}/out")
    storage.put(uri, b"0123456789")
    assert (storage.exists(uri), storage.exists(f"{root}/out"), storage.has_content(f"{root}/out")) == (
        True,
        False,
        True,
    )
    assert storage.get(uri) == b"0123456789"
    assert [data if isinstance(data, bytes) else data.code for data in storage.get_many([uri, f"{uri}-none", uri])] == [
        b"0123456789",
        Code.NOT_FOUND,
        b"0123456789",
    ]
    assert list(storage.get_ranges([(uri, 8, 2), (uri, 0, 1), (uri, 3, 4)])) == [b"89", b"0", b"3456"]
    with storage.open_file(uri) as file:
        assert file.read(2) == b"01"
    assert storage.find_any(root).size == 10
    storage.delete(uri)
    assert storage.exists(uri) is False
    storage.delete(uri)


def test_a_folder_is_removed_without_its_namesake(root):
    for name in ("out/1", "out/sub/2", "out2/3"):
        storage.put(f"{root}/{name}", b"")
    storage.delete_folder(f"{root}/out")
    assert [entry.name for entry in storage.list_files(root)] == ["out2/3"]
    storage.delete_folder(f"{root}/out")
    storage.delete_folder(f"{root}/none")
    assert [entry.name for entry in storage.list_files(root)] == ["out2/3"]


def test_the_file_that_completes_a_prefix_is_written_last(bucket, monkeypatch):
    written = []
    real = s3.put
    monkeypatch.setattr(s3, "put", lambda uri, data: (written.append(uri), real(uri, data)))
    storage.put_folder(f"s3://{BUCKET}/m", {"b": b"1", "a-last": b"2", "c/d": b"3"}, last="a-last")
    assert written == [f"s3://{BUCKET}/m/{name}" for name in ("b", "c/d", "a-last")]
    assert bucket.get_object(Bucket=BUCKET, Key="m/c/d")["Body"].read() == b"3"


def test_a_size_costs_no_request(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert storage.find_file(str(tmp_path / "file")).size == 5
    assert storage.find_file(str(tmp_path / "none")) is None
    assert storage.find_file("s3://no-such-bucket/file").version == ""


@pytest.mark.usefixtures("bucket")
def test_a_prefix_that_cannot_be_listed_cannot_be_an_output():
    with pytest.raises(OutputError, match="the bucket does not exist"):
        storage.check_writable("s3://no-such-bucket/out")


def test_arrow_reads_where_storage_writes(tmp_path):
    storage.put(str(tmp_path / "file"), b"12345")
    filesystem, path = storage.make_arrow_filesystem(str(tmp_path / "file"))
    with filesystem.open_input_file(path) as file:
        assert file.read() == b"12345"
