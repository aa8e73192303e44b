import pytest

from tlray.sources.candidates import (
    PACKED,
    REFUSED,
    SourceKind,
    find_litter,
    has_image_name,
    leads_outside,
    make_printable,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", True), ("a.JPeG", True), ("deep/folder.txt/a.png", True), ("a.tar.webp", True),
        ("no extension", True), ("folder.v2/no extension", True), (".jpg", True), ("..png", True),
        ("a.txt", False), ("a.jpg.txt", False), (".hidden", False), ("photos.jpg/.DS_Store", False), ("a.jpg ", False),
    ],
)  # fmt: skip
def test_image_names_have_a_known_extension_or_none(name, expected):
    assert has_image_name(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", False), ("in/a.jpg", False), ("a..jpg", False), ("in/...", False), ("in//a.jpg", False),
        ("./a.jpg", False), ("ab:c.jpg", False),
        ("../a.jpg", True), ("in/../a.jpg", True), ("in/..", True), ("..\\a.jpg", True), ("in\\..\\a.jpg", True),
        ("/a.jpg", True), ("\\a.jpg", True), ("\\\\host\\a.jpg", True), ("C:\\a.jpg", True), ("c:/a.jpg", True),
    ],
)  # fmt: skip
def test_names_that_lead_outside_are_those_of_posix_and_of_windows(name, expected):
    assert leads_outside(name) == expected


def test_bytes_that_are_not_utf8_are_escaped():
    assert make_printable("ü \N{CJK UNIFIED IDEOGRAPH-4E00}.jpg") == "ü \N{CJK UNIFIED IDEOGRAPH-4E00}.jpg"
    assert make_printable(b"b\xe9\xff.jpg".decode("utf-8", "surrogateescape")) == "b\\xe9\\xff.jpg"
    assert make_printable(b"\xc3\xa9\xc3".decode("utf-8", "surrogateescape")) == "é\\xc3"


def test_every_kind_is_either_read_or_refused():
    read = {SourceKind.FILE, SourceKind.TAR, SourceKind.TAR_SPARSE, *PACKED, SourceKind.ZIP, SourceKind.PARQUET}
    assert set(SourceKind) - read == set(REFUSED)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.jpg", None), ("in/a.jpg", None), (".a.jpg", None), ("../a.jpg", None), ("./a.jpg", None), ("Icon", None),
        ("._a.jpg", "a resource fork of macOS"), ("in/._a.jpg", "a resource fork of macOS"),
        ("__MACOSX/in/a.jpg", "a resource fork of macOS"),
        (".DS_Store", "a system's own file"), ("in/Icon\r", "a system's own file"),
        ("Thumbs.db", "a system's own file"),
        ("in/desktop.ini", "a system's own file"),
        ("@eaDir/a.jpg", "in a hidden or a system's own folder"),
        (".Trash-1000/a.jpg", "in a hidden or a system's own folder"),
        ("in/.ipynb_checkpoints/a.jpg", "in a hidden or a system's own folder"),
        ("$RECYCLE.BIN/a.jpg", "in a hidden or a system's own folder"),
        ("lost+found/a.jpg", "in a hidden or a system's own folder"),
    ],
)  # fmt: skip
def test_what_systems_leave_beside_images_is_known(name, reason):
    assert find_litter(name) == reason
