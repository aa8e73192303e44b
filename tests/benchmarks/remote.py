"""Prediction through an S3 API with latency beside local files, the same images, in turn.

python -m tests.benchmarks.remote --model BUNDLE --images DIR [--count 400] [--latency-ms 20] [--repetitions 3]

The S3 server (moto behind a proxy) runs on the same cores, so that what it takes is missing from the remote side.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import tyro

from tests.faults import s3proxy

BUCKET = "archive"


@dataclass(frozen=True)
class Options:
    """What is labelled from where."""

    model: str
    """A bundle."""
    images: str
    """A folder of images, used over and over."""
    count: int = 400
    latency_ms: float = 20.0
    repetitions: int = 3
    json: str | None = None
    """Write the table here too."""


def run(options: Options, source: str, output: Path) -> dict[str, float]:
    """One whole command: rates of its receipt."""
    command = [sys.executable, "-m", "tlray", "predict", "--model", options.model, "--input", source]
    subprocess.run([*command, "--output", str(output)], check=True, stdout=subprocess.DEVNULL)
    receipt = json.loads((output / "_receipt.json").read_text())
    return {name: receipt[name] for name in ("images_per_s", "images_per_s_steady", "first_label_s")}


def main(options: Options) -> None:
    """Both in turn, then medians."""
    found = sorted(path for path in Path(options.images).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    results: dict[str, list[dict[str, float]]] = {"local": [], "s3": []}
    with tempfile.TemporaryDirectory() as root, s3proxy.serve() as (environment, client, proxy):
        local = Path(root, "images")
        local.mkdir()
        client.create_bucket(Bucket=BUCKET)
        for index, source in enumerate(islice(cycle(found), options.count)):
            data, name = source.read_bytes(), f"{index:06d}.jpg"
            (local / name).write_bytes(data)
            client.put_object(Bucket=BUCKET, Key=name, Body=data)
        os.environ.update(environment)
        proxy.latency_s = options.latency_ms / 1000
        for repetition in range(options.repetitions):
            for name, source in (("local", str(local)), ("s3", f"s3://{BUCKET}/")):
                results[name].append(run(options, source, Path(root, f"{name}-{repetition}")))
    rates = {name: statistics.median(each["images_per_s_steady"] for each in runs) for name, runs in results.items()}
    for name, runs in results.items():
        first = statistics.median(each["first_label_s"] for each in runs)
        print(f"{name:<6}{rates[name]:>8.2f} images/s past the first labels, which came after {first:.1f} s")
    print(f"s3 / local {rates['s3'] / rates['local']:.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
