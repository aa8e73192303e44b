import pytest

from tlray import sources
from tlray.errors import DataError


def test_classes_are_sorted_and_rows_follow_them(tmp_path, write_digits):
    write_digits(tmp_path, 3, 2)
    images = sources.scan(str(tmp_path))
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
        sources.scan(str(tmp_path))
    assert "stray.jpg" in str(caught.value)
    assert "1/deeper/b.jpg" in str(caught.value)


@pytest.mark.parametrize(("folders", "expected"), [(0, "no class folders"), (1, "one class only")])
def test_too_few_classes_are_named(tmp_path, write_digits, folders, expected):
    write_digits(tmp_path, folders, 1)
    with pytest.raises(DataError, match=expected):
        sources.scan(str(tmp_path))


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="no class folders"):
        sources.scan(str(tmp_path / "photo.jpg"))


def test_an_empty_class_is_named(tmp_path, write_digits):
    write_digits(tmp_path, 2, 1)
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="without images \\(void\\)"):
        sources.scan(str(tmp_path))


def test_other_classes_than_the_training_sets_are_refused(tmp_path, write_digits):
    write_digits(tmp_path, 3, 1)
    with pytest.raises(DataError, match="here: 0, 1, 2; trained: 0, 1"):
        sources.scan(str(tmp_path), ["0", "1"], option="--test-data")


def test_other_files_beside_images_are_left_alone(tmp_path, write_digits):
    write_digits(tmp_path, 2, 1)
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "0" / ".DS_Store").write_text("x")
    (tmp_path / "0" / "notes.txt").write_text("x")
    assert sources.scan(str(tmp_path)).table.num_rows == 2


def test_the_plan_takes_image_names_and_excludes_the_rest_with_a_reason(tmp_path):
    names = ["a.JPG", "_b.webp", "no extension", "c d#e?f%20.png", "ü.tiff", "x.txt", ".hidden"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    plan = sources.plan([str(tmp_path)])
    planned = {uri.rpartition("/")[2] for uri in plan.table["uri"].to_pylist()}
    assert planned == set(names) - {"x.txt", ".hidden"}
    excluded = {row["uri"].rpartition("/")[2]: row["reason"] for row in plan.excluded.to_pylist()}
    assert excluded.keys() == {"x.txt", ".hidden"}
    assert all(excluded.values())
    assert plan.table["row_id"].to_pylist() == list(range(5))


def test_an_image_that_two_inputs_reach_is_planned_once(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    plan = sources.plan([str(tmp_path), str(tmp_path / "a.jpg")])
    assert plan.table.num_rows == 1


def test_an_input_without_images_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no images"):
        sources.plan([str(tmp_path)])
