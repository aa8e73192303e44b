import re
from dataclasses import replace

import pytest

from tests.report import data
from tlray.metrics.calibration import Bin
from tlray.prediction.monitor import ThroughputSample
from tlray.report.charts import (
    draw_class_bars,
    draw_confidences,
    draw_learning_curve,
    draw_reliability,
    draw_throughput,
)


def list_rects(chart):
    """The classes, heights and titles of a chart's rectangles."""
    found = re.findall(r'<rect [^>]*width="([0-9.]+)" height="([0-9.]+)" class="([^"]*)">(?:<title>([^<]*))?', chart)
    return [(style, float(width), float(height), title) for width, height, style, title in found]


def test_charts_stay_in_their_frame():
    diverged = [replace(record, val_loss=float("nan")) for record in data.make_history(1, 0)]
    timeline = [ThroughputSample(float(at), int(2 * at**1.5), int(at**1.5)) for at in range(0, 40_000, 10)]
    measured = data.make_measurement(data.CLASSES, 179, 0.9)
    drawn = [draw_learning_curve(data.make_history(3, 40), name, 5) for name in ("loss", "accuracy")]
    drawn += [
        draw_learning_curve(diverged, "loss", 1),
        draw_class_bars({"a": 0, "b": 0}),
        draw_throughput(timeline),
        draw_reliability(measured.bins, measured.bins),
        draw_confidences(measured.confidences, [1] * 20),
    ]
    for chart in drawn:
        assert "nan" not in chart
        numbers = [float(number) for number in re.findall(r'(?:x|y|x1|x2|y1|y2|cx|cy)="(-?[0-9.]+)"', chart)]
        assert numbers
        assert min(numbers) >= -1
        assert max(numbers) <= 360


def test_charts_without_data_are_empty():
    assert draw_throughput([ThroughputSample(0.0, 0, 0)]) == ""
    assert draw_confidences([0] * 20) == ""
    assert draw_learning_curve([], "loss", 1) == ""


def test_a_learning_curve_describes_both_lines_and_the_kept_epoch():
    history = data.make_history(1, 2)
    chart = draw_learning_curve(history, "loss", 2)
    label = (
        f"loss by epoch: training from {history[0].loss:.3f} to {history[2].loss:.3f}; "
        f"validation from {history[0].val_loss:.3f} to {history[2].val_loss:.3f}; epoch 2 was kept"
    )
    assert f'aria-label="{label}"' in chart
    assert chart.count('class="line') == 2
    assert chart.count("<circle") == 2
    assert chart.count('class="band"') == 1
    assert ">fine-tuning</text>" in chart


def test_a_learning_curve_without_validation_has_one_line():
    chart = draw_learning_curve(data.make_history(0, 3, validation=False), "accuracy", 3)
    assert "validation" not in chart
    assert chart.count('class="line') == 1
    assert 'class="band"' not in chart


def test_bins_on_the_diagonal_lie_on_it_and_larger_ones_are_larger():
    chart = draw_reliability([Bin(0.4, 0.6, 25, 0.5, 0.5), Bin(0.9, 1.0, 100, 1.0, 1.0)])
    dots = re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)" r="([0-9.]+)"', chart)
    assert dots == [("190", "142", "4"), ("310", "22", "6")]
    assert "confidence 50.0%: 50.0% of 25 images correct" in chart
    assert "reliability: at 50%, 50% are correct; at 100%, 100% are correct" in chart


def test_confidences_are_drawn_as_shares():
    chart = draw_confidences([0] * 10 + [100] + [0] * 7 + [100, 200])
    bars = list_rects(chart)
    assert len(bars) == 20
    tall = {title: height for _, _, height, title in bars if height}
    assert tall["95% to 100%: 200 images"] == pytest.approx(125, abs=0.1)  # the ticks end at 60%
    assert tall["50% to 55%: 100 images"] == pytest.approx(62.5, abs=0.1)
    assert "confidence of 400 predictions: 75% of them are above 90%" in chart


def test_class_bars_are_sorted_and_marked_with_reference_shares():
    chart = draw_class_bars({"few": 10, "many": 30}, {"few": 0.5, "many": 0.5, "absent": 0.1})
    bars = list_rects(chart)
    assert [title for _, _, _, title in bars] == ["many: 30 images, 75.0%", "few: 10 images, 25.0%"]
    assert [width for _, width, _, _ in bars] == pytest.approx([136, 136 / 3], abs=0.1)
    assert re.findall(r'<line x1="([0-9.]+)"[^>]*class="tick"', chart) == ["216.7", "216.7"]


def test_of_many_classes_the_most_frequent_are_drawn():
    chart = draw_class_bars({f"class {index}": index for index in range(100)})
    titles = [title for _, _, _, title in list_rects(chart)]
    assert len(titles) == 30
    assert titles[0].startswith("class 99: 99 images")


def test_class_names_are_escaped():
    chart = draw_class_bars(dict.fromkeys(data.HOSTILE, 1))
    assert "<script" not in chart
    assert max(map(len, re.findall(r'aria-label="([^"]*)"', chart))) < 1000


@pytest.mark.parametrize(
    ("end", "unit"), [(299, "299.0 seconds"), (300, "5.0 minutes"), (10_799, "180.0 minutes"), (10_800, "3.0 hours")]
)
def test_throughput_has_a_readable_unit(end, unit):
    chart = draw_throughput([ThroughputSample(0.0, 0, 0), ThroughputSample(float(end), 3 * end, 2 * end)])
    assert f"images per second over {unit}, at most 2.0" in chart


def test_samples_at_one_moment_give_no_rate():
    timeline = [ThroughputSample(0.0, 0, 0), ThroughputSample(0.0, 5, 5), ThroughputSample(10.0, 30, 20)]
    assert "at most 2.0" in draw_throughput(timeline)
    assert draw_throughput(timeline[:2]) == ""


def test_a_long_run_is_drawn_in_ninety_steps():
    timeline = [ThroughputSample(float(at), 2 * at, at) for at in range(0, 9001, 10)]
    line = re.search(r'd="M([^"]*)" class="line a"', draw_throughput(timeline))[1]
    assert len(line.split(" L")) == 2 * 90
