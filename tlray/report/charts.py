"""Small charts as inline SVG, with real text and with colours from the page's CSS variables for light and dark themes.

All are `WIDTH` units wide, about the width of a phone, so their text stays readable there; wide pages show two side by
side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from markupsafe import Markup

from tlray.metrics.calibration import Bin
from tlray.model.manifest import EpochRecord
from tlray.report.page import clean, format_count, format_percent, keep_frequent, shorten

WIDTH = 360

_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 350, 22, 172
_HEIGHT = 206
_NAME_COLUMNS = 15
_MAX_STEPS = 90


class Throughput(Protocol):
    """Rows fetched and predicted until some seconds after the start."""

    @property
    def seconds(self) -> float:
        """Seconds since the start."""

    @property
    def fetched(self) -> int:
        """Rows fetched until then."""

    @property
    def predicted(self) -> int:
        """Rows predicted until then."""


class _Scale(NamedTuple):
    """A linear map from values to SVG units."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def draw_learning_curve(history: Sequence[EpochRecord], name: str, kept_epoch: int) -> Markup:
    """Draw training and validation by epoch.

    Args:
        history: one record per epoch.
        name: "loss" or "accuracy".
        kept_epoch: epoch to mark.
    """
    lines = [("b", _pick(history, name)), ("a", _pick(history, f"val_{name}"))]
    values = [value for _, points in lines for _, value in points]
    epochs = [record.epoch for record in history]
    if not values:
        return Markup("")
    across = _Scale(epochs[0] - 0.5, epochs[-1] + 0.5, _LEFT, _RIGHT)
    if name == "accuracy":
        low, high = max(0.0, min(values) - 0.02), min(1.0, max(values) + 0.02)
        ticks = _choose_ticks(low, high, 5)
        texts = [f"{tick * 100:g}%" for tick in ticks]
    else:
        ticks = _choose_ticks(0.0, max(values), 5)
        texts = [f"{tick:g}" for tick in ticks]
    up = _Scale(ticks[0], ticks[-1], _BOTTOM, _TOP)
    parts = _draw_phases(history, across)
    parts += _draw_rows(up, ticks, texts)
    step = max(1, round(_choose_step(epochs[-1] - epochs[0], 7)))
    parts += [_text(across.place(epoch), _BOTTOM + 16, epoch, "middle") for epoch in epochs if epoch % step == 0]
    parts.append(_text(_RIGHT, _BOTTOM + 31, "epoch", "end"))
    kept = across.place(kept_epoch)
    parts.append(_line(kept, _TOP, kept, _BOTTOM, "kept"))
    for style, points in lines:
        places = [(across.place(epoch), up.place(value)) for epoch, value in points]
        parts.append(_path(places, style))
        mark = [place for place, (epoch, _) in zip(places, points, strict=True) if epoch == kept_epoch]
        parts += [_dot(x, y, 3.5, f"dot {style}") for x, y in (places if len(places) == 1 else mark)]
    said = "; ".join(
        f"{role} from {points[0][1]:.3f} to {points[-1][1]:.3f}"
        for role, (_, points) in zip(("training", "validation"), lines, strict=True)
        if points
    )
    return _draw(f"{name} by epoch: {said}; epoch {kept_epoch} was kept", _HEIGHT, parts)


def _pick(history: Sequence[EpochRecord], key: str) -> list[tuple[int, float]]:
    """Return the finite points of one series."""
    points = [(record.epoch, getattr(record, key)) for record in history]
    return [(epoch, value) for epoch, value in points if value is not None and math.isfinite(value)]


def _draw_phases(history: Sequence[EpochRecord], across: _Scale) -> list[Markup]:
    """Draw a band behind the second phase, and both names where they fit."""
    parts = []
    phases = list(dict.fromkeys(record.phase for record in history))
    for phase in phases:
        epochs = [record.epoch for record in history if record.phase == phase]
        start, end = across.place(epochs[0] - 0.5), across.place(epochs[-1] + 0.5)
        if phase == "finetune" and len(phases) > 1:
            parts.append(_rect(start, _TOP, end - start, _BOTTOM - _TOP, "band"))
        shown = "fine-tuning" if phase == "finetune" else phase
        if end - start > 7 * len(shown):
            parts.append(_text((start + end) / 2, _TOP - 8, shown, "middle"))
    return parts


def draw_reliability(bins: Sequence[Bin], before: Sequence[Bin] | None = None) -> Markup:
    """Draw a reliability diagram: accuracy by confidence, equal on the diagonal.

    Args:
        bins: bins of the diagram.
        before: bins before calibration, drawn thinly.
    """
    bottom, height = 262, 296
    left, right = 70, 310  # a square
    across, up = _Scale(0, 1, left, right), _Scale(0, 1, bottom, _TOP)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = _draw_rows(up, ticks, [f"{tick:.0%}" for tick in ticks], left, right)
    parts += [_text(across.place(tick), bottom + 16, f"{tick:.0%}", "middle") for tick in ticks]
    parts += [
        _text(left - 40, _TOP - 10, "accuracy", "start"),
        _text(right, bottom + 31, "confidence", "end"),
    ]
    parts.append(_line(left, bottom, right, _TOP, "even"))
    for style, found in (("b", before or ()), ("a", bins)):
        places = [(across.place(entry.confidence), up.place(entry.accuracy)) for entry in found]
        parts.append(_path(places, style))
        most = max((entry.images for entry in found), default=1)
        for entry, (x, y) in zip(found, places, strict=True):
            title = f"confidence {entry.confidence:.1%}: {entry.accuracy:.1%} of {entry.images:,} images correct"
            parts.append(_dot(x, y, 2 + 4 * math.sqrt(entry.images / most), f"dot {style}", title))
    said = "; ".join(f"at {entry.confidence:.0%}, {entry.accuracy:.0%} are correct" for entry in bins)
    return _draw(f"reliability: {said}", height, parts)


def draw_confidences(counts: Sequence[int], reference: Sequence[int] | None = None) -> Markup:
    """Draw shares of predictions by probability, with a reference such as the validation images' as an outline."""
    total = sum(counts)
    if not total:
        return Markup("")
    shares = [count / total for count in counts]
    others = [count / sum(reference) for count in reference] if reference and sum(reference) else []
    ticks = _choose_ticks(0.0, max(*shares, *others), 4)
    across, up = _Scale(0, len(shares), _LEFT, _RIGHT), _Scale(ticks[0], ticks[-1], _BOTTOM, _TOP)
    parts = _draw_rows(up, ticks, [f"{tick * 100:g}%" for tick in ticks])
    for index, share in enumerate(shares):
        x, y = across.place(index), up.place(share)
        title = f"{index / len(shares):.0%} to {(index + 1) / len(shares):.0%}: {counts[index]:,} images"
        parts.append(_rect(x + 1, y, across.place(index + 1) - x - 2, _BOTTOM - y, "bar a", title))
    if others:
        places = []
        for index, share in enumerate(others):
            places += [(across.place(index), up.place(share)), (across.place(index + 1), up.place(share))]
        parts.append(_path(places, "b"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "middle" if 0 < share < 1 else "start" if share == 0 else "end"
        parts.append(_text(across.place(share * len(shares)), _BOTTOM + 16, f"{share:.0%}", anchor))
    parts.append(_text(_RIGHT, _BOTTOM + 31, "probability of the predicted class", "end"))
    sure = sum(shares[-len(shares) // 10 :])
    return _draw(f"confidence of {total:,} predictions: {sure:.0%} of them are above 90%", _HEIGHT, parts)


def draw_class_bars(counts: Mapping[str, int], reference: Mapping[str, float] | None = None) -> Markup:
    """Draw images by class with their shares; reference shares, such as the validation images', as ticks.

    Args:
        counts: images by class name.
        reference: shares by class name.
    """
    total = sum(counts.values()) or 1
    names = sorted(counts, key=lambda name: -counts[name])
    names = keep_frequent(names, [counts[name] for name in names])
    others = reference or {}
    most = max([counts[name] / total for name in names] + [others.get(name, 0.0) for name in names] + [1e-9])
    across = _Scale(0, most, 126, 262)
    parts = []
    for row, name in enumerate(names):
        y = 6 + row * 22
        share = counts[name] / total
        whole = clean(name)
        title = f"{shorten(whole, 300)}: {counts[name]:,} images, {format_percent(share)}"
        parts.append(_text(0, y + 12, shorten(whole, _NAME_COLUMNS), "start", "label", title))
        parts.append(_rect(126, y + 1, max(across.place(share) - 126, 0.5), 14, "bar a", title))
        if name in others:
            x = across.place(others[name])
            parts.append(_line(x, y - 2, x, y + 18, "tick"))
        parts.append(_text(312, y + 12, format_count(counts[name]), "end", "label"))
        parts.append(_text(356, y + 12, format_percent(share), "end"))
    said = ", ".join(f"{shorten(clean(name), 40)} {format_percent(counts[name] / total)}" for name in names[:10])
    return _draw(f"images by class: {said}", 10 + 22 * len(names), parts)


def draw_throughput(timeline: Sequence[Throughput]) -> Markup:
    """Draw images per second over time, fetched (thin line) and predicted.

    Args:
        timeline: samples over the run.
    """
    steps, fetched = _measure_rates(timeline, "predicted"), _measure_rates(timeline, "fetched")
    if not steps:
        return Markup("")
    end = steps[-1][1]
    unit, name = (1, "seconds") if end < 300 else (60, "minutes") if end < 3 * 3600 else (3600, "hours")
    across = _Scale(0, end, _LEFT, _RIGHT)
    ticks = _choose_ticks(0.0, max(rate for _, _, rate in [*steps, *fetched]), 4)
    up = _Scale(ticks[0], ticks[-1], _BOTTOM, _TOP)
    parts = _draw_rows(up, ticks, [f"{tick:,g}" for tick in ticks])
    places, thin = (
        [(across.place(at), up.place(rate)) for begin, stop, rate in found for at in (begin, stop)]
        for found in (steps, fetched)
    )
    under = [(places[0][0], _BOTTOM), *places, (places[-1][0], _BOTTOM)]
    parts += [_path(under, "area"), _path(thin, "b"), _path(places, "a")]
    for tick in _choose_ticks(0.0, end / unit, 6):
        if tick * unit <= end:
            parts.append(_text(across.place(tick * unit), _BOTTOM + 16, f"{tick:g}", "middle"))
    parts += [_text(_RIGHT, _BOTTOM + 31, name, "end"), _text(_LEFT - 36, _TOP - 8, "images/s", "start")]
    rates = [rate for _, _, rate in steps]
    return _draw(f"images per second over {end / unit:.1f} {name}, at most {max(rates):,.1f}", _HEIGHT, parts)


def _measure_rates(timeline: Sequence[Throughput], stage: str) -> list[tuple[float, float, float]]:
    """Return at most `_MAX_STEPS` triples `(begin, end, rate)` between samples, in seconds and rows/s."""
    if len(timeline) < 2:
        return []
    least = (timeline[-1].seconds - timeline[0].seconds) / _MAX_STEPS
    steps = []
    last = timeline[0]
    for sample in timeline[1:]:
        spent = sample.seconds - last.seconds
        if spent > 0 and spent >= least * 0.999:
            rate = max(0.0, (getattr(sample, stage) - getattr(last, stage)) / spent)
            steps.append((last.seconds, sample.seconds, rate))
            last = sample
    return steps


def _choose_step(span: float, most: int) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that cuts a span into at most `most` pieces."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * most >= span * 0.9999)


def _choose_ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers that span both ends."""
    step = _choose_step(max(high - low, 1e-6), most)
    first = math.floor(low / step + 1e-6)
    last = max(math.ceil(high / step - 1e-6), first + 1)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _draw_rows(
    up: _Scale, ticks: Sequence[float], texts: Sequence[str], left: float = _LEFT, right: float = _RIGHT
) -> list[Markup]:
    """Draw horizontal grid lines with their values."""
    parts = []
    for tick, text in zip(ticks, texts, strict=True):
        y = up.place(tick)
        parts.append(_line(left, y, right, y, "base" if tick == ticks[0] else "grid"))
        parts.append(_text(left - 7, y + 4, text, "end"))
    return parts


def _draw(label: str, height: float, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(WIDTH, _unit(height), label) + Markup("").join(parts) + Markup("</svg>")


def _unit(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _title(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text) if text else Markup("")


def _text(x: float, y: float, text: object, anchor: str, style: str = "", title: str = "") -> Markup:
    markup = Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}{}</text>')
    return markup.format(_unit(x), _unit(y), anchor, style, _title(title), text)


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    markup = Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>')
    return markup.format(_unit(x1), _unit(y1), _unit(x2), _unit(y2), style)


def _rect(x: float, y: float, width: float, height: float, style: str, title: str = "") -> Markup:
    markup = Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}">{}</rect>')
    return markup.format(_unit(x), _unit(y), _unit(width), _unit(height), style, _title(title))


def _dot(x: float, y: float, radius: float, style: str, title: str = "") -> Markup:
    markup = Markup('<circle cx="{}" cy="{}" r="{}" class="{}">{}</circle>')
    return markup.format(_unit(x), _unit(y), _unit(radius), style, _title(title))


def _path(places: Sequence[tuple[float, float]], style: str) -> Markup:
    if len(places) < 2:
        return Markup("")
    points = " L".join(f"{_unit(x)} {_unit(y)}" for x, y in places)
    return Markup('<path d="M{}" class="line {}"/>').format(points, style)
