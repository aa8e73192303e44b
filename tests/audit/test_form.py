import csv
import io

import pytest

from tests.audit.data import make_sample
from tlray.audit.form import check_classes, read_forms, write_form
from tlray.errors import DataError

SAMPLE = make_sample(
    [
        (3, "/a.jpg", "glass", False),
        (7, "/=1,\n2.jpg", "metal", False),
        (8, "=b.jpg", "metal", False),
        (9, "/a.jpg", "paper", False),
    ]
)


def read(text, sample=SAMPLE):
    return read_forms({"mine.csv": text if isinstance(text, bytes) else text.encode()}, sample)


def read_rows(*rows, sample=SAMPLE):
    """Answers of `(row_id, correct_label)` rows."""
    file = io.StringIO()
    csv.writer(file).writerows([("row_id", "correct_label"), *rows])
    return read(file.getvalue(), sample)


def test_a_form_holds_every_row_and_no_formula():
    assert write_form(SAMPLE.rows).decode() == (
        "row_id,uri,class_name,probability,correct_label\n"
        "3,/a.jpg,glass,0.503000,\n"
        '7,"/=1,\n2.jpg",metal,0.507000,\n'
        "8,'=b.jpg,metal,0.508000,\n"
        "9,/a.jpg,paper,0.509000,\n"
    )


def test_a_form_can_be_read_back_whatever_its_names_hold():
    names = ["=1+2", "'=1", "a;b", 'qu"ote', "new\nline", "\t", "<b>"]
    sample = make_sample([(row, f"/{name}.jpg", name, False) for row, name in enumerate(names)], names)
    rows = list(csv.DictReader(io.StringIO(write_form(sample.rows).decode(), newline="")))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows({**row, "correct_label": row["class_name"]} for row in rows)
    assert read(file.getvalue(), sample) == dict(enumerate(names))


def test_answers_are_a_full_stop_a_class_or_a_question_mark():
    assert read_rows((3, "."), (7, " glass "), (8, "?")) == {3: "glass", 7: "glass", 8: None}


def test_rows_without_an_answer_were_not_reviewed():
    assert read("row_id,correct_label\n3,\n\n7,  \n8\n9,.\n") == {9: "paper"}


def test_a_class_may_be_named_like_a_sign():
    sample = make_sample([(1, "/a.jpg", "glass", False), (2, "/b.jpg", "glass", False)], ["glass", ".", "?", " x"])
    assert read_rows((1, "."), (2, "?"), sample=sample) == {1: ".", 2: "?"}
    assert read_rows((1, " x"), sample=sample) == {1: " x"}
    with pytest.raises(DataError, match="'x' in row 1"):
        read_rows((1, "x"), sample=sample)


def test_a_class_is_found_behind_its_apostrophe():
    sample = make_sample([(1, "/a.jpg", "=x", False), (2, "/b.jpg", "'=x", False)], ["=x", "'=x"])
    assert read_rows((1, "=x"), (2, "''=x"), sample=sample) == {1: "=x", 2: "'=x"}
    assert read_rows((1, "'=x"), sample=sample) == {1: "'=x"}  # a class of that name goes before
    assert read_rows((1, "'=x"), sample=make_sample([(1, "/a.jpg", "=x", False)], ["=x", "y"])) == {1: "=x"}


@pytest.mark.parametrize("typed", ["3", " 3 ", "3.0", "3.00", "03"])
def test_row_ids_may_be_numbers_of_a_spreadsheet(typed):
    assert read_rows((typed, ".")) == {3: "glass"}


@pytest.mark.parametrize("typed", ["3.5", "-3", "3e0", "x", "4", "3,0"])
def test_other_row_ids_are_unknown(typed):
    with pytest.raises(DataError, match=rf"row_ids that are not in the sample \({typed}\)"):
        read_rows((typed, "."))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_may_come_in_any_order_with_any_separator(separator):
    lines = [["correct_label", "note, or; so", "row_id"], [".", "a,b;c\td", "3"], ["paper", "", "8"]]
    file = io.StringIO()
    csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(lines)
    assert read("\ufeff" + file.getvalue()) == {3: "glass", 8: "paper"}


def test_the_header_alone_tells_the_separator():
    assert read("row_id,note,correct_label\n3,;;;;;;;;;;,.\n") == {3: "glass"}


def test_the_same_answer_twice_is_one():
    assert read_rows((3, "."), (3, "glass"), (9, "glass")) == {3: "glass", 9: "glass"}


def test_every_fault_is_in_one_message():
    unknown = [(row_id, ".") for row_id in range(100, 107)]
    with pytest.raises(DataError) as caught:
        read_rows(*unknown, (3, "."), (3, "?"), (7, "Glass"), (9, "."))
    assert str(caught.value) == (
        "--answers takes '.' for right, '?' for none of the classes, or a class name for each row of the sample; "
        "mine.csv has row_ids that are not in the sample (100, 101, 102, 103, 104, ...); "
        "answers that are no class of the model ('Glass' in row 7; classes: glass, metal, paper); "
        "two answers for one row (row 3, rows 3 and 9, which are one file)"
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "got mine.csv without row_id and correct_label"),
        (b"row_id,label\n3,.\n", r"without correct_label \(its columns: row_id, label\)"),
        (b"row_id,correct_label\n3,\n", "no row of mine.csv has a correct_label"),
        ("row_id,correct_label\n3,gl\xe4s\n".encode("latin-1"), "another encoding in mine.csv; save it as UTF-8"),
        (b'row_id,correct_label\n3,"glass\n7,paper\n', "mine.csv cannot be read: unexpected end of data"),
        (b"row_id,correct_label\n3," + b"x" * 200_000, "mine.csv cannot be read: field larger than field limit"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_filled_form_is_an_error(data, expected):
    with pytest.raises(DataError, match=expected):
        read(data)


def test_several_forms_are_one():
    head = b"row_id,correct_label\n"
    assert read_forms({"1.csv": head + b"3,.\n", "2.csv": head + b"7,?\n"}, SAMPLE) == {3: "glass", 7: None}
    assert read_forms({"1.csv": head, "2.csv": head + b"7,?\n"}, SAMPLE) == {7: None}
    with pytest.raises(DataError, match=r"1\.csv and 2\.csv has two answers for one row \(row 3\)"):
        read_forms({"1.csv": head + b"3,.\n", "2.csv": head + b"3,?\n"}, SAMPLE)
    with pytest.raises(DataError, match=r"no row of 1\.csv and 2\.csv has a correct_label"):
        read_forms({"1.csv": head, "2.csv": head}, SAMPLE)
    with pytest.raises(DataError, match=r"got 2\.csv without row_id"):
        read_forms({"1.csv": head + b"3,.\n", "2.csv": b""}, SAMPLE)


@pytest.mark.parametrize("names", [["a", "?"], ["a", " "], ["a", "a "], ["=x", "'=x"]])
def test_classes_that_an_answer_cannot_name_are_refused(names):
    with pytest.raises(DataError, match="takes class names that are not empty"):
        check_classes(names)


def test_other_classes_can_be_named():
    check_classes(["a", "A", ".", "=x", "b c"])
