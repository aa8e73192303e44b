import unicodedata

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


def test_what_is_passed_over_is_told_once(tmp_path, write_digits, capsys):
    write_digits(tmp_path, 2, 2)
    for name in ("0/._digit.png", "0/Thumbs.db", "1/a.xmp", "1/b.xmp", "lost+found/x.png", "__MACOSX/0/._x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    images = scan(str(tmp_path))
    assert images.classes == ("0", "1")
    assert images.table.num_rows == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "--data: 6 files passed over: " in said
    for phrase in ("2 named .xmp, which is no image", "2 a resource fork of macOS", "1 a system's own file"):
        assert phrase in said


def test_a_class_of_other_files_alone_names_them(tmp_path, write_digits):
    write_digits(tmp_path, 2, 1)
    (tmp_path / "cat").mkdir()
    for index in range(3):
        (tmp_path / "cat" / f"{index}.svg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"class folders without images \(cat: 3 named \.svg, which is no image\)"):
        scan(str(tmp_path))


def test_an_empty_lost_and_found_is_no_class(tmp_path, write_digits):
    write_digits(tmp_path, 2, 1)
    (tmp_path / "lost+found").mkdir()
    assert scan(str(tmp_path)).classes == ("0", "1")


def test_composed_and_decomposed_names_are_one_class(tmp_path, write_digits):
    for root, form in (("train", "NFC"), ("test", "NFD")):
        write_digits(tmp_path / root, 2, 1)
        (tmp_path / root / "0").rename(tmp_path / root / unicodedata.normalize(form, "Café"))
    classes = scan(str(tmp_path / "train")).classes
    assert classes == ("1", "Café")
    assert scan(str(tmp_path / "test"), classes).table["label"].to_pylist() == [0, 1]


def test_numbers_sort_as_numbers(tmp_path, write_digits, capsys):
    write_digits(tmp_path, 3, 1)
    (tmp_path / "2").rename(tmp_path / "10")
    (tmp_path / "0").rename(tmp_path / "9")
    images = scan(str(tmp_path))
    assert images.classes == ("1", "9", "10")
    assert images.table["name"].to_pylist()[-1].startswith("10/")
    assert "sorted as such: 1, 9, 10" in " ".join(capsys.readouterr().out.split())


def test_several_roots_are_one_set(tmp_path, write_digits):
    write_digits(tmp_path / "a", 2, 2)
    write_digits(tmp_path / "b", 3, 1, 10)
    (tmp_path / "one.csv").write_text("uri,label\nb/2/extra.png,2\n")  # one class is enough where others have more
    (tmp_path / "b" / "2" / "extra.png").write_bytes(b"x")
    images = scan([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "one.csv")])
    assert images.classes == ("0", "1", "2")
    assert images.table["label"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert len(set(images.table["uri"].to_pylist())) == 8  # the extra image, which two name, counts once
    assert len(images.places) == 8


def test_an_image_under_two_labels_in_two_roots_is_named(tmp_path, write_digits):
    write_digits(tmp_path / "a", 2, 1)
    image = next((tmp_path / "a" / "1").iterdir())
    (tmp_path / "fix.csv").write_text(f"uri,label\n{image},0\n")
    with pytest.raises(DataError, match=rf"1 images under two labels \({image}: 1, 0\)"):
        scan([str(tmp_path / "a"), str(tmp_path / "fix.csv")])
