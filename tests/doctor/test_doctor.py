"""The printed report."""

import pytest
from rich.console import Console

from tests.doctor.data import DENIED, GONE, VERSIONS, WORKERS, C, change, change_all, meet
from tlray.cli import print_cluster, tables
from tlray.doctor import DoctorSummary
from tlray.doctor.findings import find_all


def show(cluster, monkeypatch, **options):
    printed = Console(highlight=False, soft_wrap=True, no_color=True, **options)
    monkeypatch.setattr(print_cluster, "console", printed)
    monkeypatch.setattr(tables, "console", printed)
    with printed.capture() as capture:
        print_cluster.print_doctor(DoctorSummary(cluster, tuple(find_all(cluster))))
    return capture.get()


def test_a_healthy_cluster_prints_its_machines(monkeypatch):
    text = show(C, monkeypatch, width=80)
    assert "5 machines, 128 cores, 16 GPUs" in text
    assert "worker4" in text
    assert "as here" in text
    assert "No trouble found." in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_s_lines_fit(width, monkeypatch):
    cluster = change(C, 1, report={"gpus": 0, "versions": {**VERSIONS, "keras": None}, **meet(0, GONE)})
    cluster = change(change(cluster, 2, clock_offset_s=-412.0), 3, silence="no answer in 60 s")
    text = show(cluster, monkeypatch, width=width, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= width
    assert "missing" in text
    assert "-412 s" in text


def test_a_finding_in_a_file_is_one_line(monkeypatch):
    text = show(change_all(C, WORKERS, report=meet(0, DENIED)), monkeypatch, width=80)
    (line,) = [line for line in text.splitlines() if line.startswith("error")]
    assert line.endswith("another bucket")
    assert "input denied" in text
