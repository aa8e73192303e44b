import pytest

from tlray.errors import DataError
from tlray.sources.labelled import scan


def test_classes_are_sorted_and_rows_follow_them(tmp_path, write_digits):
    write_digits(tmp_path, 3, 2)
    images = scan(str(tmp_path))
    assert images.classes == ("0", "1", "2")
    assert images.table["label"].to_pylist() == [0, 0, 1, 1, 2, 2]
    assert images.table["row_id"].to_pylist() == list(range(6))
    assert images.table["name"].to_pylist() == sorted(images.table["name"].to_pylist())


def test_every_fault_of_a_folder_is_in_one_message(tmp_path, write_digits):
    write_digits(tmp_path, 2, 1)
    (tmp_path / "stray.jpg").write_bytes(b"x")
    (tmp_path / "1" / "deeper").mkdir()
    (tmp_path / "1" / "deeper" / "b.jpg").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        scan(str(tmp_path))
    assert "stray.jpg" in str(caught.value)
    assert "1/deeper/b.jpg" in str(caught.value)


@pytest.mark.parametrize(("folders", "expected"), [(0, "no class folders"), (1, "one class only")])
def test_too_few_classes_are_named(tmp_path, write_digits, folders, expected):
    write_digits(tmp_path, folders, 1)
    with pytest.raises(DataError, match=expected):
        scan(str(tmp_path))


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="no class folders"):
        scan(str(tmp_path / "photo.jpg"))


def test_an_empty_class_is_named(tmp_path, write_digits):
    write_digits(tmp_path, 2, 1)
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="without images \\(void\\)"):
        scan(str(tmp_path))


def test_other_classes_than_the_training_sets_are_refused(tmp_path, write_digits):
    write_digits(tmp_path, 3, 1)
    with pytest.raises(DataError, match="here: 0, 1, 2; trained: 0, 1"):
        scan(str(tmp_path), ["0", "1"], option="--test-data")


def test_other_files_beside_images_are_left_alone(tmp_path, write_digits):
    write_digits(tmp_path, 2, 1)
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "0" / ".DS_Store").write_text("x")
    (tmp_path / "0" / "notes.txt").write_text("x")
    assert scan(str(tmp_path)).table.num_rows == 2
