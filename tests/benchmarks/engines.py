"""Prediction by OpenVINO and by TensorFlow, whole commands in turn on the same images.

python tests/benchmarks/engines.py --model BUNDLE --images DIR [--precision bfloat16]

TensorFlow gets a copy of the bundle without its openvino/ folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import tyro


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: str
    """A bundle."""
    images: str
    """A folder of images."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    runs: int = 1
    """Times that each is measured."""


def drop_network(bundle: Path, copy: Path) -> Path:
    """Copy a bundle without its network in OpenVINO's format."""
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("openvino"))
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["files"] = {name: value for name, value in manifest["files"].items() if not name.startswith("openvino/")}
    (copy / "bundle.json").write_text(json.dumps(manifest))
    return copy


def measure_memory(process: psutil.Process) -> int:
    """Bytes of a process and its children; what they share counts once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def run(bundle: Path, options: Options, output: Path) -> None:
    """Predict, and print a row."""
    command = [sys.executable, "-m", "tlray", "predict", "--input", options.images, "--model", str(bundle)]
    command += ["--output", str(output), "--precision", options.precision]
    began, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, measure_memory(psutil.Process(process.pid)))
            time.sleep(0.5)
    seconds = time.monotonic() - began
    receipt = json.loads((output / "_receipt.json").read_text())
    shutil.rmtree(output)
    print(
        f"{', '.join(receipt['engines']):40} {seconds:7.1f} s {receipt['planned'] / seconds:8.1f} images/s"
        f" {receipt['images_per_s_steady']:8.1f} past start-up {receipt['first_label_s']:6.1f} s to the first label"
        f" {peak / 2**30:5.2f} GiB",
        flush=True,
    )


def main(options: Options) -> None:
    """Measure both in turn."""
    with tempfile.TemporaryDirectory() as folder:
        plain = drop_network(Path(options.model), Path(folder, "bundle"))
        for _ in range(options.runs):
            for bundle in (Path(options.model), plain):
                run(bundle, options, Path(folder, "labels"))


if __name__ == "__main__":
    main(tyro.cli(Options))
