"""tlray's labelling beside what else would be run, on the same images, in turn, with the limit of the cores beside it.

python tests/benchmarks/label.py --model BUNDLE --images DIR [--count 4000] [--repetitions 3] [--json FILE]

Every contestant is a whole command, timed from its start to its end; medians over the repetitions. `limit.py` says what
the limit is, `peers.py` what the others do. A contestant whose package isn't installed is left out, and said.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import limit
import pyarrow.parquet as pq
import tyro

PACKAGES = {"keras": "keras", "ray": "ray", "daft": "daft"}


@dataclass(frozen=True)
class Options:
    """What runs beside what."""

    model: str
    """A bundle."""
    images: str
    """A folder of images, used over and over until there are --count."""
    count: int = 4000
    repetitions: int = 3
    contestants: tuple[str, ...] = ("tlray auto", "tlray float32", "keras", "ray", "daft")
    json: str | None = None
    """Write the table here too."""


def write_images(options: Options, folder: Path) -> None:
    """`count` files with names of their own."""
    folder.mkdir()
    sources = sorted(path for path in Path(options.images).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for index, source in enumerate(islice(cycle(sources), options.count)):
        shutil.copy(source, folder / f"{index:06d}.jpg")


def run_contestant(options: Options, contestant: str, images: Path, output: Path) -> dict[str, float]:
    """One whole command."""
    name, _, precision = contestant.partition(" ")
    common = ["--model", options.model, "--output", str(output)]
    if name == "tlray":
        command = [sys.executable, "-m", "tlray", "predict", *common, "--input", str(images)]
        command += ["--precision", precision]
    else:
        script = str(Path(__file__).with_name("peers.py"))
        command = [sys.executable, script, name, *common, "--images", str(images)]
    began = time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{contestant} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    if name == "tlray":
        receipt = json.loads((output / "_receipt.json").read_text())
        count, steady = receipt["labelled"], receipt["images_per_s_steady"]
        first = receipt["first_label_s"]
    else:
        count, steady, first = int(done.stdout.split()[-1]), float("nan"), float("nan")
    if count != options.count:
        raise SystemExit(f"{contestant} labelled {count} of {options.count}")
    return {"images_per_s": options.count / seconds, "steady": steady, "first_label_s": first, "seconds": seconds}


def compare_labels(one: Path, other: Path) -> dict[str, Any]:
    """How often two outputs of tlray agree, and where they don't."""
    tables = [pq.read_table(output / "labels").sort_by("row_id").to_pylist() for output in (one, other)]
    differing = [
        {"uri": ours["uri"], "classes": [ours["class_name"], theirs["class_name"]],
         "probabilities": [ours["probability"], theirs["probability"]]}
        for ours, theirs in zip(*tables, strict=True)
        if ours["class_name"] != theirs["class_name"]
    ]  # fmt: skip
    return {"agreement": 1 - len(differing) / len(tables[0]), "differing": differing}


def main(options: Options) -> None:
    """Run all in turn, print the table."""
    there = [name for name in options.contestants if _is_there(name)]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in there}
    limits: dict[str, list[dict[str, Any]]] = {}
    agreement: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory() as root:
        images = Path(root, "images")
        write_images(options, images)
        for repetition in range(options.repetitions):
            for precision in [name.partition(" ")[2] for name in there if name.startswith("tlray")]:
                settings = limit.Options(options.model, str(images), precision)  # type: ignore[arg-type]
                limits.setdefault(precision, []).append(limit.measure(settings))
                print(f"limit {precision}: {limits[precision][-1]}", file=sys.stderr, flush=True)
            outputs: dict[str, Path] = {}
            for name in there:
                outputs[name] = Path(root, f"{name}-{repetition}".replace(" ", "-"))
                rows[name].append(run_contestant(options, name, images, outputs[name]))
                print(f"{name}: {rows[name][-1]}", file=sys.stderr, flush=True)
            if {"tlray auto", "tlray float32"} <= set(there):
                agreement = compare_labels(outputs["tlray auto"], outputs["tlray float32"])
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in rows.items()
    }
    best = {name: statistics.median(run["limit"] for run in runs) for name, runs in limits.items()}
    print_table(middle, best)
    if agreement is not None:
        print(f"auto and float32 agree on {agreement['agreement']:.2%}; they differ on:")
        for row in agreement["differing"]:
            print(f"  {row['uri'].rpartition('/')[2]}  {row['classes']}  {row['probabilities']}")
    if options.json:
        record = {"options": vars(options), "runs": rows, "limits": limits, "agreement": agreement}
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n")


def _is_there(contestant: str) -> bool:
    package = PACKAGES.get(contestant)
    if package is None or importlib.util.find_spec(package) is not None:
        return True
    print(f"{contestant} is left out: {package} isn't installed", file=sys.stderr)
    return False


def print_table(middle: dict[str, dict[str, float]], limits: dict[str, float]) -> None:
    """Rates, and each contestant's share of tlray's limit."""
    whole = limits.get("auto") or next(iter(limits.values()), float("nan"))
    for precision, value in limits.items():
        print(f"limit in {precision}: {value:.1f} images/s")
    print(f"{'':<16}{'seconds':>10}{'images/s':>10}{'of limit':>10}{'steady':>10}{'of limit':>10}{'first label':>13}")
    for name, row in middle.items():
        own = limits.get(name.partition(" ")[2], whole)
        print(
            f"{name:<16}{row['seconds']:>10.1f}{row['images_per_s']:>10.2f}{row['images_per_s'] / own:>10.2f}"
            f"{row['steady']:>10.2f}{row['steady'] / own:>10.2f}{row['first_label_s']:>12.1f}s"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
