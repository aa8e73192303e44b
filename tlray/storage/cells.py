"""Cells of CSV files for people: a spreadsheet would run some of them as formulas."""

from __future__ import annotations

import re

# the last four are full-width forms, which some spreadsheets read as = + - @
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def disarm(cell: str) -> str:
    """Keep a spreadsheet from running a cell as a formula: an apostrophe before it makes it text."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def rearm(cell: str) -> str:
    """Undo `disarm`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
