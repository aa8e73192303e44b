"""The page of an audit, `report.html` in its folder."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from tlray.audit.estimate import AuditedClass, AuditSummary
from tlray.audit.sample import Sample
from tlray.metrics.intervals import Z_95, compute_quantile
from tlray.report.measurement import Bound, Point
from tlray.report.page import (
    MAX_CLASSES,
    NAME,
    clean,
    format_count,
    format_moment,
    format_percent,
    keep_frequent,
    render,
    shorten,
)
from tlray.version import __version__

__all__ = ["NAME", "render_audit"]

_LEAST_DIFFERENCE = 0.1
_NARROW = 0.1  # interval of a share


@dataclass(frozen=True)
class CensusRow:
    """A class of the table; `precision` and `recall` are None where nothing is known."""

    name: str
    one: AuditedClass
    precision: Bound | None
    recall: Bound | None
    share: Bound | None


def render_audit(summary: AuditSummary, sample: Sample, measured: str) -> bytes:
    """Return the page as UTF-8.

    Args:
        summary: the estimates.
        sample: the sample from which they are.
        measured: time of the estimates, UTC, ISO 8601.
    """
    by_class = summary.by_class
    names = keep_frequent(list(by_class), [one.share or one.rows / summary.labelled for one in by_class.values()])
    return render(
        "audit.html",
        title=f"tlray audit: {format_percent(summary.accuracy)} of the labels are right",
        version=__version__,
        summary=summary,
        accuracy=Bound(summary.accuracy, summary.accuracy_low, summary.accuracy_high),
        points=_list_points(summary),
        rows=[_make_row(name, by_class[name]) for name in names],
        more=len(by_class) - len(names),
        confused=summary.most_confused[:MAX_CLASSES],
        shifted=any(one.shifted_share is not None for one in by_class.values()),
        thumbnails_full=False,
        facts=[
            ("Reviewed", f"{summary.reviewed:,} of {summary.sampled:,} rows drawn, in {_count_rounds(sample)}"),
            ("Measured", format_moment(measured)),
            ("Labels of", format_moment(sample.finished)),
            ("Seed", str(sample.seed)),
            ("Model id", Markup("<code>{}</code>").format(sample.model_id)),
            ("Run id", Markup("<code>{}</code>").format(sample.run_id)),
        ],
    )


def _count_rounds(sample: Sample) -> str:
    return "one round" if len(sample.rounds) == 1 else f"{len(sample.rounds)} rounds"


def _make_row(name: str, one: AuditedClass) -> CensusRow:
    def bound(value: float | None, low: float, high: float) -> Bound | None:
        return None if value is None else Bound(value, low, high)

    return CensusRow(
        name,
        one,
        bound(one.precision, one.precision_low, one.precision_high),
        bound(one.recall, one.recall_low, one.recall_high),
        bound(one.share, one.share_low, one.share_high),
    )


def _list_points(summary: AuditSummary) -> list[Point]:
    """List sentences on what the estimates say."""
    points = []
    if summary.covered == 1:
        points.append(_compare_counts(summary))
    if summary.none_of_them:
        text = (
            f"Between {format_percent(summary.no_class_low)} and {format_percent(summary.no_class_high)} of the rows "
            "belong to none of the classes, or nobody can tell."
        )
        points.append(Point("bad" if summary.no_class_low > 0.01 else "", text, "method"))
    if summary.covered < 1:
        text = (
            f"Some predicted classes were not reviewed at all: the estimates are for the others, "
            f"{format_percent(summary.covered)} of the labelled rows."
        )
        points.append(Point("bad", text))
    return points


def _compare_counts(summary: AuditSummary) -> Point:
    """Say whether counts of labels mislead.

    Intervals are widened so that all of them hold together in 95% of audits (Bonferroni), and small differences do not
    count.
    """
    widening = compute_quantile(1 - 0.025 / len(summary.by_class)) / Z_95
    off = {}
    for name, one in summary.by_class.items():
        if one.count is None:
            continue
        low = one.count - widening * (one.count - one.count_low)
        high = one.count + widening * (one.count_high - one.count)
        if not low <= one.rows <= high and abs(one.rows - one.count) > _LEAST_DIFFERENCE * max(one.rows, one.count):
            off[name] = one
    if not off:
        text = "No count of labels is off by more than a tenth beyond what the interval of its estimate allows."
        return Point("good" if summary.width <= _NARROW else "", text, "method")
    worst = max(off, key=lambda name: abs(off[name].rows - (off[name].count or 0)))
    one = off[worst]
    text = (
        f"Counting labels misleads: {_quote(worst)} is the label of {format_count(one.rows)} rows, but between "
        f"{format_count(one.count_low)} and {format_count(one.count_high)} rows belong to it."
    )
    return Point("bad", text, "method")


def _quote(name: str) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{shorten(clean(name), 40)}\N{RIGHT DOUBLE QUOTATION MARK}"
