"""The CSV of answers, which the review page saves, or a reviewer fills in with a spreadsheet.

    row_id,uri,class_name,probability,correct_label
    17,s3://photos/a.jpg,glass,0.97,.
    52,s3://photos/b.jpg,glass,0.61,plastic
    90,s3://photos/c.jpg,metal,0.55,?

`correct_label` is empty at first. The reviewer enters a full stop if the label is right, else the right class, or `?`
if none of the classes is right or nobody can tell; an empty row was not reviewed. A cell that a spreadsheet would run
as a formula is written with an apostrophe before it, which is removed on reading.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from tlray.audit.sample import Drawn, ReviewedLabels, Sample, name_round
from tlray.errors import DataError
from tlray.sources.labelled import name_some
from tlray.storage.cells import disarm, rearm

NAME = "sample.csv"
RIGHT, NONE = ".", "?"
ROW_ID, ANSWER = "row_id", "correct_label"
COLUMNS = (ROW_ID, "uri", "class_name", "probability", ANSWER)

_WHOLE = re.compile(r"(\d+)(?:\.0+)?")


def check_classes(classes: Sequence[str]) -> None:
    """Check that an answer names one class, whatever a spreadsheet does to spaces and apostrophes.

    Raises:
        DataError: it does not.
    """
    plain = [rearm(name.strip()) for name in classes]
    times = Counter(plain)
    wrong = [name for name, text in zip(classes, plain, strict=True) if text in ("", NONE) or times[text] > 1]
    if wrong:
        raise DataError(
            f"tlray audit takes class names that are not empty, not {NONE!r}, and differ by more than spaces around "
            f"them; got {name_some([repr(name) for name in wrong])}; rename them and train again"
        )


def name_form(number: int) -> str:
    """Return the file name of a round's CSV."""
    return name_round(NAME, number)


def list_cells(row: Drawn) -> list[str]:
    """Return the cells of a row before its answer."""
    return [str(row.row_id), disarm(row.uri), disarm(row.class_name), f"{row.probability:.6f}"]


def write_form(rows: Sequence[Drawn]) -> bytes:
    """Return the CSV to fill in, as UTF-8."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([*list_cells(row), ""] for row in rows)
    return text.getvalue().encode()


def read_forms(files: Mapping[str, bytes], sample: Sample) -> ReviewedLabels:
    """Return the right class of each reviewed row of filled-in CSVs.

    Columns may be separated by commas, semicolons or tabs, as spreadsheets save them; only `row_id` and `correct_label`
    are read.

    Args:
        files: contents by address.
        sample: the drawn sample.

    Raises:
        DataError: one message with every fault.
    """
    cells = [row for name, data in files.items() for row in _read_cells(data, name)]
    return _sort_answers(cells, " and ".join(files), sample)


def _read_cells(data: bytes, name: str) -> list[tuple[str, ...]]:
    """Return row id and answer of every line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"--answers takes a CSV in UTF-8; got another encoding in {name}; save it as UTF-8") from None
    head = text.partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        columns = [column.strip() for column in next(lines, [])]
        missing = [column for column in (ROW_ID, ANSWER) if column not in columns]
        if missing:
            raise DataError(
                f"--answers takes the CSV that --sample wrote, with {ROW_ID} and {ANSWER}; got {name} without "
                f"{' and '.join(missing)} (its columns: {', '.join(columns)})"
            )
        places = columns.index(ROW_ID), columns.index(ANSWER)
        return [tuple(line[at] if at < len(line) else "" for at in places) for line in lines if line]
    except csv.Error as error:
        raise DataError(f"--answers takes the CSV that --sample wrote; {name} cannot be read: {error}") from None


def _sort_answers(cells: list[tuple[str, ...]], name: str, sample: Sample) -> ReviewedLabels:
    drawn = {row.row_id: row for row in sample.rows}
    known = set(sample.classes)
    answers: ReviewedLabels = {}
    by_uri: dict[str, int] = {}
    unknown, wrong, contrary = [], [], []
    for typed_id, typed in cells:
        number = _WHOLE.fullmatch(typed_id.strip())
        row_id = int(number[1]) if number else -1
        if row_id not in drawn:
            unknown.append(typed_id.strip() or "an empty one")
            continue
        sign = typed.strip()
        if not sign:
            continue
        label = next((text for text in (typed, rearm(typed), sign, rearm(sign)) if text in known), None)
        if label is None and sign == RIGHT:
            label = drawn[row_id].class_name
        elif label is None and sign != NONE:
            wrong.append(f"{typed!r} in row {row_id}")
            continue
        if answers.setdefault(row_id, label) != label:
            contrary.append(f"row {row_id}")
        elif answers[by_uri.setdefault(drawn[row_id].uri, row_id)] != label:
            contrary.append(f"rows {by_uri[drawn[row_id].uri]} and {row_id}, which are one file")
    faults = []
    if unknown:
        faults.append(f"row_ids that are not in the sample ({name_some(unknown)})")
    if wrong:
        allowed = ", ".join(sample.classes)
        faults.append(f"answers that are no class of the model ({name_some(wrong)}; classes: {allowed})")
    if contrary:
        faults.append(f"two answers for one row ({name_some(contrary)})")
    if faults:
        raise DataError(
            f"--answers takes '{RIGHT}' for right, '{NONE}' for none of the classes, or a class name for each row "
            f"of the sample; {name} has {'; '.join(faults)}"
        )
    if not answers:
        raise DataError(f"--answers takes a filled CSV; no row of {name} has a {ANSWER}")
    return answers
