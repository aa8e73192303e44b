"""tlray's training beside plain Keras following the same procedure, on the same images, one after the other.

    python tests/benchmarks/train.py --data DIR/train --test-data DIR/test --weights FILE.h5

Same head, optimizers, rates, epochs, augmentation and global batch; no validation, the last epoch is kept. Plain Keras
(`plain_keras.py`) runs with `ImageDataGenerator` and with `tf.data`, the faster counts; tlray with 5 views, with 2, and
once more with 2 where the features are there. Every run is a process of its own, timed from its start to its end.
Prints a table and, with --json FILE, writes it. Absolute times mean something only beside each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from job import Job

STAGES = ("start-up", "frozen base", "phase 1", "phase 2", "saving")

RUN_TLRAY = """
import json, sys
import tlray
summary = tlray.train(tlray.TrainConfig(**json.loads(sys.argv[1])))
test = summary.metrics.test.accuracy
print(json.dumps({"seconds": summary.seconds, "test": test, "loss": [record.loss for record in summary.history]}))
"""


@dataclass(frozen=True)
class Options(Job):
    """What runs beside what."""

    num_workers: int = 2
    seeds: tuple[int, ...] = (0,)
    sides: tuple[str, ...] = ("generator", "tf.data", "views 5", "views 2", "hit 2")
    precisions: tuple[Literal["auto", "float32", "bfloat16"], ...] = ("auto",)
    """Of tlray's runs; give float32 and bfloat16 to see both."""
    json: str | None = None
    """Write the table here too."""


def run_keras(options: Options, form: str, seed: int) -> dict[str, Any]:
    """One run of `plain_keras.py`."""
    command = [sys.executable, str(Path(__file__).with_name("plain_keras.py")), "--form", form, "--seed", str(seed)]
    for name, value in options.describe().items():
        command += ["--" + name.replace("_", "-"), str(value)]
    return run_process(command)


def run_tlray(options: Options, views: int, precision: str, seed: int, folder: Path, name: str) -> dict[str, Any]:
    """One training in a process of its own."""
    config = {
        **{name: value for name, value in options.describe().items() if name != "global_batch"},
        "output": str(folder / f"bundle-{name}-{precision}-{seed}".replace(" ", "-")),
        "num_workers": options.num_workers,
        "batch_size": options.global_batch // options.num_workers,
        "seed": seed,
        "views": views,
        "precision": precision,
        "recipe": "seed",
        "val_fraction": 0.0,
        "cache": "on",
        "cache_dir": str(folder / f"cache-{views}"),
    }
    return run_process([sys.executable, "-c", RUN_TLRAY, json.dumps(config)])


def run_process(command: list[str]) -> dict[str, Any]:
    """Run to the end; the last line is the result, to which the whole wall time is added."""
    began = time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ})
    wall_s = time.monotonic() - began
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    # importing and leaving Python are start-up too
    result["seconds"]["start-up"] += wall_s - sum(result["seconds"].values())
    return {**result, "wall": wall_s}


def main(options: Options) -> None:
    """Run all sides, print the table."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        for seed in options.seeds:
            for side in options.sides:
                kind, _, number = side.partition(" ")
                if kind in ("generator", "tf.data"):
                    rows.append({"side": f"keras {side}", "seed": seed, **run_keras(options, side, seed)})
                else:
                    for precision in options.precisions:
                        result = run_tlray(options, int(number), precision, seed, Path(root), side)
                        rows.append({"side": f"tlray {side} {precision}", "seed": seed, **result})
                print(f"{rows[-1]['side']}, seed {seed}: {rows[-1]['wall']:.0f} s", file=sys.stderr, flush=True)
    print_table(rows)
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "results": rows}, indent=2) + "\n")


def print_table(rows: list[dict[str, Any]]) -> None:
    """Means over seeds; ratios to the faster plain Keras, whole and past start-up."""
    means: dict[str, dict[str, float]] = {}
    for side in dict.fromkeys(row["side"] for row in rows):
        mine = [row for row in rows if row["side"] == side]
        values = {stage: sum(row["seconds"].get(stage, 0.0) for row in mine) / len(mine) for stage in STAGES}
        values |= {name: sum(row[name] for row in mine) / len(mine) for name in ("wall", "test")}
        values["past"] = values["wall"] - values["start-up"]
        means[side] = values
    keras = [values for side, values in means.items() if side.startswith("keras")]
    best = min(keras, key=lambda values: values["wall"]) if keras else None
    headings = [*STAGES, "wall", "ratio", "past s-up", "ratio", "test"]
    print(f"{'':<24}" + "".join(f"{heading:>12}" for heading in headings))
    for side, values in means.items():
        ratios = [values[name] / best[name] if best else float("nan") for name in ("wall", "past")]
        numbers = [*(values[stage] for stage in STAGES), values["wall"], ratios[0], values["past"], ratios[1]]
        cells = [f"{number:>12.2f}" if number < 10 else f"{number:>12.1f}" for number in numbers]
        print(f"{side:<24}" + "".join(cells) + f"{values['test']:>12.3f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
