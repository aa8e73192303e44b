"""Prediction of more images, with more engines: does the rate hold, and does memory stay flat?

python tests/benchmarks/scale.py --model BUNDLE --images DIR [--counts 1000 2000 20000] [--cpus 1 2]

Memory is the largest sum over the command's process tree of proportional set sizes (what is shared counts once).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import label
import psutil
import tyro


@dataclass(frozen=True)
class Options:
    """What is labelled, by how many."""

    model: str
    """A bundle."""
    images: str
    """A folder of images, used over and over."""
    counts: tuple[int, ...] = (1000, 2000, 20_000)
    cpus: tuple[int, ...] = (1, 2)
    json: str | None = None
    """Write the table here too."""


def watch(process: subprocess.Popen[str], ended: threading.Event, peaks: list[int]) -> None:
    """Keep the largest memory of a command and all that it started."""
    while not ended.wait(1.0):
        total = 0
        with contextlib.suppress(psutil.Error):  # it has just ended
            root = psutil.Process(process.pid)
            for member in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += member.memory_full_info().pss
        peaks[0] = max(peaks[0], total)


def run(options: Options, count: int, cpus: int) -> dict[str, float]:
    """One job: steady rate and peak memory."""
    with tempfile.TemporaryDirectory() as root:
        images, output = Path(root, "images"), Path(root, "labels")
        label.write_images(label.Options(options.model, options.images, count), images)
        command = [sys.executable, "-m", "tlray", "predict", "--model", options.model, "--input", str(images)]
        command += ["--output", str(output), "--max-cpus", str(cpus)]
        ended, peaks = threading.Event(), [0]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True) as process:
            watcher = threading.Thread(target=watch, args=(process, ended, peaks))
            watcher.start()
            try:
                process.wait()
            finally:
                ended.set()
                watcher.join()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        receipt = json.loads((output / "_receipt.json").read_text())
        return {"count": count, "cpus": cpus, "steady": receipt["images_per_s_steady"], "peak_bytes": peaks[0]}


def main(options: Options) -> None:
    """Run all, print the table."""
    rows = [run(options, count, cpus) for cpus in options.cpus for count in options.counts]
    print(f"{'cores':>6}{'images':>10}{'images/s':>12}{'peak MiB':>12}")
    for row in rows:
        print(f"{row['cpus']:>6.0f}{row['count']:>10,.0f}{row['steady']:>12.2f}{row['peak_bytes'] / 2**20:>12,.0f}")
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
