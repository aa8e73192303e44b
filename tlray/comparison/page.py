"""The page of a comparison, `report.html` in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from tlray.comparison.changes import Change, read_changes
from tlray.comparison.summary import CompareSummary, Transition
from tlray.errors import OK
from tlray.report.measurement import ConfusionTable, Point, make_matrix
from tlray.report.page import (
    MAX_CLASSES,
    NAME,
    format_count,
    format_decimal,
    format_moment,
    format_name,
    format_percent,
    keep_frequent,
    render,
)
from tlray.report.thumbnails import Thumbnails
from tlray.version import __version__

__all__ = ["NAME", "OneSided", "ShownChanges", "list_shown", "render_comparison"]

_SUREST = 24
_TRANSITIONS = 12
_OF_TRANSITION = 6


@dataclass(frozen=True)
class OneSided:
    """Rows that one output has alone: their number and some of their addresses."""

    which: str
    rows: int
    examples: list[str]


@dataclass(frozen=True)
class ShownChanges:
    """The changes with a picture.

    Attributes:
        surest: those of which both models were surest.
        by_transition: the surest of the most frequent transitions.
    """

    surest: list[Change]
    by_transition: list[tuple[Transition, list[Change]]]

    def list_all(self) -> list[Change]:
        """List all of them, some twice."""
        return self.surest + [change for _, changes in self.by_transition for change in changes]


def list_shown(listed: pa.Table, summary: CompareSummary) -> ShownChanges:
    """Pick the changes to show from a list that begins with the surest."""
    both = pc.and_(pc.equal(listed["old_status"], OK), pc.equal(listed["new_status"], OK))
    listed = listed.filter(both)
    by_transition = []
    for transition in summary.transitions[:_TRANSITIONS]:
        mask = pc.and_(
            pc.equal(listed["old_class_name"], transition.old), pc.equal(listed["new_class_name"], transition.new)
        )
        by_transition.append((transition, read_changes(listed.filter(mask).slice(0, _OF_TRANSITION))))
    return ShownChanges(read_changes(listed.slice(0, _SUREST)), by_transition)


def render_comparison(
    summary: CompareSummary,
    shown: ShownChanges,
    alone: Sequence[OneSided],
    pictures: Thumbnails[int],
    compared: str,
) -> bytes:
    """Return the page as UTF-8.

    Args:
        summary: the result.
        shown: the changes with a picture.
        alone: rows that one output has alone.
        pictures: by row id of the new output.
        compared: time of the comparison, UTC, ISO 8601.
    """
    by_class = summary.by_class
    names = keep_frequent(list(by_class), [max(one.old, one.new) for one in by_class.values()])
    return render(
        "comparison.html",
        title=f"tlray compare: {format_percent(summary.changed_share)} of the labels change",
        version=__version__,
        summary=summary,
        points=_list_points(summary),
        rows=[(name, by_class[name]) for name in names],
        more=len(by_class) - len(names),
        matrix=_make_transitions(summary),
        transitions=summary.transitions[:MAX_CLASSES],
        more_transitions=max(0, len(summary.transitions) - MAX_CLASSES),
        shown=shown,
        alone=[one for one in alone if one.rows],
        picture=pictures.get,
        thumbnails_full=pictures.full,
        facts=[
            ("Old output", format_name(summary.old, 90)),
            ("Its model id", Markup("<code>{}</code>").format(summary.old_model_id)),
            ("New output", format_name(summary.new, 90)),
            ("Its model id", Markup("<code>{}</code>").format(summary.new_model_id)),
            ("Compared", format_moment(compared)),
        ],
    )


def _make_transitions(summary: CompareSummary) -> ConfusionTable | None:
    """Return the table of transitions; None with too many classes or without changes."""
    names = [name for name, one in summary.by_class.items() if one.old or one.new]
    if len(names) > MAX_CLASSES or not summary.transitions:
        return None
    places = {name: index for index, name in enumerate(names)}
    counts: dict[int, dict[int, int]] = {index: {} for index in range(len(names))}
    for name, one in summary.by_class.items():
        if one.kept:
            counts[places[name]][places[name]] = one.kept
    for transition in summary.transitions:
        counts[places[transition.old]][places[transition.new]] = transition.rows
    return make_matrix(counts, names, "labelled")


def _list_points(summary: CompareSummary) -> list[Point]:
    points = []
    if summary.agreement is not None:
        low, high = format_percent(summary.agreement_low, 2), format_percent(summary.agreement_high, 2)
        text = (
            f"Both outputs give {format_percent(summary.agreement, 2)} of the {format_count(summary.labelled_by_both)} "
            f"rows that both label the same label; of more images, {low} to {high}, if these are a random sample of "
            "them (Wilson's 95% interval)."
        )
        points.append(Point("", text))
    if summary.exceeds:
        points.append(Point("bad", f"More labels change than --max-changed {summary.max_changed:g} allows."))
    if summary.same:
        mean, largest = format_decimal(summary.mean_difference, 4), format_decimal(summary.largest_difference)
        text = f"Where the label stays, its probability moves by {mean} on average, at most {largest}."
        points.append(Point("", text))
    if summary.lost:
        points.append(Point("bad", f"{_count_rows(summary.lost)} lose their label ({_list_codes(summary.lost)})."))
    if summary.gained:
        points.append(Point("", f"{_count_rows(summary.gained)} had no label before ({_list_codes(summary.gained)})."))
    if summary.only_old or summary.only_new:
        old, new = format_count(summary.only_old), format_count(summary.only_new)
        text = f"{old} rows are only in the old output, {new} only in the new one; they are not compared."
        points.append(Point("", text))
    if summary.unlabelled:
        points.append(Point("", f"{format_count(summary.unlabelled)} rows have a label in neither output."))
    if summary.changed and summary.old_model_id == summary.new_model_id:
        text = (
            "Both outputs are of one model: changes come from options, precision, machines, or images that changed "
            "under their addresses."
        )
        points.append(Point("", text))
    return points


def _count_rows(counts: dict[str, int]) -> str:
    rows = sum(counts.values())
    return f"{rows:,} row" if rows == 1 else f"{rows:,} rows"


def _list_codes(counts: dict[str, int]) -> str:
    return ", ".join(f"{code} {count:,}" for code, count in counts.items())
