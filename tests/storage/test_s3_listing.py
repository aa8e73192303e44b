import tempfile

import pytest

from tests.storage.conftest import BUCKET
from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage import s3_listing
from tlray.storage.s3_client import ARCHIVED_REASON

ROOT = f"s3://{BUCKET}"

KEYS = ["deep/b/2", "deep/a/1", "deep/a-b", "deep/a.b", "deep/B", "deep/c/x/y/z", "deep/c//w", "deep/ä/1", "deep-er/1"]


@pytest.fixture
def fill(bucket):
    def put(keys, **options):
        for key in keys:
            bucket.put_object(Bucket=BUCKET, Key=key, Body=key.encode(), **options)

    return put


@pytest.fixture
def spools(monkeypatch, tmp_path):
    """The folder below which listings wait for their turn."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def list_names(uri):
    return [entry.name for entry in s3_listing.iter_files(uri)]


def test_objects_come_in_the_order_of_their_keys(fill, spools):
    fill(KEYS)
    names = list_names(f"{ROOT}/deep")
    assert names == ["B", "a-b", "a.b", "a/1", "b/2", "c//w", "c/x/y/z", "ä/1"]
    whole = sorted(KEYS, key=str.encode)
    assert list_names(ROOT) == whole
    assert [entry.uri for entry in s3_listing.iter_files(ROOT)] == [f"{ROOT}/{key}" for key in whole]
    assert list(spools.iterdir()) == []


@pytest.mark.parametrize("pages", [1, 2, 10])
def test_the_order_does_not_depend_on_pages(fill, monkeypatch, pages):
    keys = [f"{folder}/{index:02d}" for folder in "abc" for index in range(7)] + ["b.top", "top"]
    fill(keys)
    monkeypatch.setattr(s3_listing, "_PAGE_KEYS", pages)
    assert list_names(ROOT) == sorted(keys)


def test_a_level_of_very_many_objects_is_listed_in_sequence(fill, monkeypatch):
    fill(KEYS)
    monkeypatch.setattr(s3_listing, "_MOST_LEVEL_PAGES", 0)
    assert s3_listing._list_level(BUCKET, "deep/", "deep/") == ({}, [])
    assert list_names(f"{ROOT}/deep") == ["B", "a-b", "a.b", "a/1", "b/2", "c//w", "c/x/y/z", "ä/1"]


def test_a_chain_of_single_prefixes_is_followed(fill):
    fill(["a/b/c/x/1", "a/b/c/y/2"])
    assert list_names(f"{ROOT}/a") == ["b/c/x/1", "b/c/y/2"]


def test_objects_at_the_end_of_a_chain_keep_their_whole_names(fill):
    fill(["a/b/c/x/1", "a/b/c/y/2", "a/b/c/3"])
    assert list_names(f"{ROOT}/a") == ["b/c/3", "b/c/x/1", "b/c/y/2"]


def test_an_entry_describes_its_object(bucket):
    etag = bucket.put_object(Bucket=BUCKET, Key="a/b.png", Body=b"12345")["ETag"].strip('"')
    modified = bucket.head_object(Bucket=BUCKET, Key="a/b.png")["LastModified"]
    (entry,) = s3_listing.iter_files(f"{ROOT}/a")
    assert entry[:4] == (f"{ROOT}/a/b.png", "b.png", 5, etag)
    assert entry.mtime_ns // 10**9 == int(modified.timestamp())
    assert entry.unreadable is None


@pytest.mark.parametrize(
    ("storage_class", "reason"),
    [("GLACIER", ARCHIVED_REASON), ("DEEP_ARCHIVE", ARCHIVED_REASON), ("STANDARD_IA", None), ("GLACIER_IR", None)],
)
def test_archived_objects_cannot_be_read(fill, storage_class, reason):
    fill(["a/b"], StorageClass=storage_class)
    (entry,) = s3_listing.iter_files(f"{ROOT}/a")
    assert entry.unreadable == reason


def test_one_object_is_listed_by_its_own_name(fill):
    fill(["a/b.png", "a/b.png2", "top"])
    assert list_names(f"{ROOT}/a/b.png") == ["b.png"]
    assert list_names(f"{ROOT}/top") == ["top"]


def test_a_prefix_ends_at_a_slash(fill):
    fill(["a/1", "ab/2"])
    assert list_names(f"{ROOT}/a") == ["1"]
    with pytest.raises(DataError, match="holds no objects"):
        list_names(f"{ROOT}/ab/")
    with pytest.raises(DataError, match="holds no objects"):
        list_names(f"{ROOT}/a/1/below")


@pytest.mark.usefixtures("bucket")
def test_nothing_to_list_is_a_data_error():
    for uri in (ROOT, f"{ROOT}/none"):
        with pytest.raises(DataError) as caught:
            list_names(uri)
        assert str(caught.value) == f"{uri} holds no objects; give a prefix or an object that exists"
    with pytest.raises(DataError) as caught:
        list_names("s3://no-such-bucket/a")
    assert str(caught.value) == "s3://no-such-bucket/a cannot be listed: the bucket does not exist"


def test_an_error_below_one_prefix_reaches_the_caller(fill, spools, monkeypatch):
    fill(["a/1", "b/2", "c/3"])
    real = s3_listing._iter_objects

    def fail_at_b(bucket, prefix, base):
        if prefix == "b/":
            yield from real("no-such-bucket", prefix, base)
        yield from real(bucket, prefix, base)

    monkeypatch.setattr(s3_listing, "_iter_objects", fail_at_b)
    names = []
    with pytest.raises(DataError, match="cannot be listed: the bucket does not exist"):
        names.extend(entry.name for entry in s3_listing.iter_files(ROOT))
    assert list(spools.iterdir()) == []


def test_a_listing_that_is_given_up_leaves_no_files(fill, spools):
    fill(["a/1", "b/2", "c/3"])
    listing = s3_listing.iter_files(ROOT)
    assert next(listing).name == "a/1"
    assert len(list(spools.iterdir())) == 1
    listing.close()
    assert list(spools.iterdir()) == []


def test_content_is_any_object_below_a_prefix(fill):
    assert s3_listing.has_content(ROOT) is False
    fill(["a/1", "ab"])
    found = {name: s3_listing.has_content(f"{ROOT}/{name}") for name in ("a", "ab", "a/1", "none")}
    assert found == {"a": True, "ab": False, "a/1": False, "none": False}
    assert s3_listing.has_content(ROOT) is True
    with pytest.raises(OutputError, match="s3://no-such-bucket/a cannot be listed: the bucket does not exist"):
        s3_listing.has_content("s3://no-such-bucket/a")


def test_find_any_prefers_the_largest_of_the_first_objects(bucket, monkeypatch):
    monkeypatch.setattr(s3_listing, "_FIRST_KEYS", 3)
    for key, size in {"a/1": 0, "a/2": 7, "a/3": 2, "a/4": 99}.items():
        bucket.put_object(Bucket=BUCKET, Key=key, Body=bytes(size))
    entry = s3_listing.find_any(f"{ROOT}/a")
    assert (entry.uri, entry.name, entry.size) == (f"{ROOT}/a/2", "2", 7)
    assert s3_listing.find_any(ROOT).name == "a/2"


def test_find_any_takes_one_object_but_no_namesake(fill):
    fill(["a/b.png2"])
    with pytest.raises(FetchError) as caught:
        s3_listing.find_any(f"{ROOT}/a/b.png")
    assert caught.value.code is Code.NOT_FOUND
    fill(["a/b.png"])
    assert s3_listing.find_any(f"{ROOT}/a/b.png").uri == f"{ROOT}/a/b.png"


@pytest.mark.usefixtures("bucket")
def test_find_any_tells_nothing_from_no_bucket():
    for uri, message in ((ROOT, "no object exists"), ("s3://no-such-bucket/a", "the bucket does not exist")):
        with pytest.raises(FetchError, match=message):
            s3_listing.find_any(uri)
