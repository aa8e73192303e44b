"""Seconds until something comes: help, a bad config, one image's answer, a job's first label.

python tests/benchmarks/startup.py --model BUNDLE --images DIR [--repetitions 3]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Options:
    """What is started."""

    model: str
    """A bundle."""
    images: str
    """A folder of images; a hundred are enough."""
    repetitions: int = 3
    json: str | None = None
    """Write the medians here too."""


def run(*arguments: str, expect: int = 0) -> float:
    """Seconds of one command."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "tlray", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != expect:
        raise SystemExit(done.stdout + done.stderr)
    return time.monotonic() - began


def main(options: Options) -> None:
    """Run each in turn, print the medians."""
    image = str(min(path for path in Path(options.images).rglob("*") if path.is_file()))
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        for repetition in range(options.repetitions):
            output = str(Path(root, str(repetition)))
            job = ["predict", "--model", options.model, "--input", options.images, "--output", output]
            for name, spent in (
                ("help", run("--help")),
                ("help of a command", run("predict", "--help")),
                ("bad config", run("predict", "--model", options.model, "--input", "x", "--batch-size", "0", expect=2)),
                ("one image", run("predict", "--model", options.model, "--input", image)),
                ("job of one image", run(*job[:4], image, *job[5:])),
            ):
                seconds.setdefault(name, []).append(spent)
            receipt = json.loads(Path(output, "_receipt.json").read_text())
            seconds.setdefault("job's first label", []).append(receipt["first_label_s"])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<20}{median:>8.2f} s")
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
