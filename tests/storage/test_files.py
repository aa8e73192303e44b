import gzip
import io

import pytest

from tests.storage.conftest import BUCKET
from tlray.errors import Code, FetchError
from tlray.storage.files import ReadOnlyFile, open_arrow, open_file

CONTENT = bytes(range(100))


@pytest.fixture
def uri(bucket):
    bucket.put_object(Bucket=BUCKET, Key="a//file", Body=CONTENT)
    return f"s3://{BUCKET}/a//file"


class Zeros(ReadOnlyFile):
    def readinto(self, buffer):
        buffer[:] = bytes(len(buffer))
        self.position += len(buffer)
        return len(buffer)


def test_a_read_only_file_keeps_its_position():
    with Zeros() as file:
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert file.tell() == 0
        assert file.read(3) == bytes(3)
        assert file.tell() == 3
        assert Zeros.position == 0


def test_a_local_file_is_read_and_sought(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    with open_file(str(tmp_path / "file")) as file:
        file.seek(90)
        assert file.read() == CONTENT[90:]


def test_an_object_is_read_and_sought(uri):
    with open_file(uri) as file:
        assert file.read(5) == CONTENT[:5]
        assert file.tell() == 5
        assert file.seek(-10, io.SEEK_END) == 90
        assert file.read() == CONTENT[90:]
        assert file.read(1) == b""
        assert file.seek(10) == 10
        assert file.seek(5, io.SEEK_CUR) == 15
        assert file.read(2) == CONTENT[15:17]
        file.seek(1000)
        assert file.read() == b""


def test_an_empty_object_is_an_empty_file(bucket):
    bucket.put_object(Bucket=BUCKET, Key="a//empty", Body=b"")
    with open_file(f"s3://{BUCKET}/a//empty") as file:
        assert file.read() == b""


@pytest.mark.parametrize("new", [CONTENT[:50], CONTENT[::-1]])
def test_an_object_that_changed_after_opening_is_an_error(bucket, uri, new):
    with open_file(uri) as file:
        bucket.put_object(Bucket=BUCKET, Key="a//file", Body=new)
        with pytest.raises(FetchError) as caught:
            file.read()
    assert caught.value.code is Code.CHANGED


@pytest.mark.parametrize("opener", [open_file, open_arrow])
def test_missing_files_are_an_error_at_once(tmp_path, uri, opener):
    for missing in (str(tmp_path / "none"), f"{uri}-none"):
        with pytest.raises(FetchError) as caught:
            opener(missing)
        assert caught.value.code is Code.NOT_FOUND


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FetchError, match="cannot be read: Is a directory"):
        open_file(str(tmp_path))


@pytest.mark.parametrize("name", ["plain.csv", "packed.csv.gz", "PACKED.CSV.GZ"])
def test_arrow_reads_gzip_by_the_name(tmp_path, bucket, name):
    data = gzip.compress(CONTENT) if name.lower().endswith(".gz") else CONTENT
    (tmp_path / name).write_bytes(data)
    bucket.put_object(Bucket=BUCKET, Key=f"a//{name}", Body=data)
    for address in (str(tmp_path / name), f"s3://{BUCKET}/a//{name}"):
        with open_arrow(address) as file:
            assert file.read() == CONTENT


def test_arrow_takes_gzip_under_another_name_as_it_is(tmp_path):
    packed = gzip.compress(CONTENT)
    (tmp_path / "file.csv").write_bytes(packed)
    with open_arrow(str(tmp_path / "file.csv")) as file:
        assert file.read() == packed


def test_a_disk_that_fails_is_no_damage_of_the_file():
    with open_file("/proc/self/mem") as file, pytest.raises(FetchError, match="Input/output error") as caught:
        file.read(10)
    assert caught.value.code is Code.TIMEOUT
