"""The accuracy and calibration of tlray's recipes beside ten lines of scikit-learn, on the same images.

    python tests/benchmarks/accuracy.py --data DIR/train --test-data DIR/test --weights FILE.h5 --backbone mobilenet_v2

The probe is a logistic regression on the standardized output of the frozen base, with its penalty chosen by the
log-loss of 5-fold cross-validation: `StandardScaler` and `LogisticRegressionCV`. Each side is a process of its own, one
after the other, and each run of tlray computes its own features. Prints accuracy and log-loss on the test images with
their standard errors over seeds, the calibration error beside the 99% quantile of what perfect probabilities of the
same confidences would show, and seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

DRAWS = 2000

PROBE = """
import io, json, os, sys
import numpy as np
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tlray.images.batch import decode_images
from tlray.images.limits import Limits
from tlray.metrics.classification import measure
from tlray.model.backbones import BACKBONES
from tlray.model.network import build_base
from tlray.sources.labelled import scan

given = json.loads(sys.argv[1])
entry = BACKBONES[given["backbone"]]
base = build_base(given["backbone"], given["image_size"], weights=open(given["weights"], "rb").read(), seed=0)

def embed(root, classes):
    found = scan(os.path.abspath(root), classes, option="--data")
    features = []
    for start in range(0, len(found.places), 32):
        rows = range(start, min(start + 32, len(found.places)))
        fetched = found.places.fetch(rows, Limits().max_bytes)
        pixels = decode_images(fetched, len(rows), given["image_size"], Limits()).pixels
        features.append(np.asarray(base(pixels * entry.scale + entry.offset, training=False)).mean((1, 2)))
    return np.concatenate(features), found.table["label"].to_numpy(), found.classes

x, y, classes = embed(given["data"], None)
probe = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=10, cv=5, scoring="neg_log_loss", max_iter=2000))
probe.fit(x, y)
features, labels, _ = embed(given["test_data"], classes)
found = measure(probe.predict_proba(features), labels, classes)
print(json.dumps({"accuracy": found.accuracy, "log_loss": found.log_loss, "ece": found.ece,
                  "bins": [[entry.images, entry.confidence] for entry in found.bins]}))
"""

TLRAY = """
import json, sys
import tlray
found = tlray.train(tlray.TrainConfig(**json.loads(sys.argv[1]))).metrics.test
print(json.dumps({"accuracy": found.accuracy, "log_loss": found.log_loss, "ece": found.ece,
                  "bins": [[entry.images, entry.confidence] for entry in found.bins]}))
"""


@dataclass(frozen=True)
class Options:
    """What is compared."""

    data: str
    """Class folders to train on."""
    test_data: str
    """Class folders to test on."""
    weights: str
    """Weights of the base without its top."""
    backbone: str = "mobilenet_v2"
    image_size: int = 224
    seeds: tuple[int, ...] = (0, 1, 2)
    sides: tuple[str, ...] = ("probe", "seed", "tuned")
    """probe, or recipes of tlray."""
    json: str | None = None
    """Write the results here too."""


def run_side(options: Options, side: str, seed: int, folder: Path) -> dict[str, Any]:
    """Run one side to the end; its last line is the result, to which its seconds are added."""
    names = ("data", "test_data", "weights", "backbone", "image_size")
    given = {name: getattr(options, name) for name in names}
    if side != "probe":
        cache = str(folder / f"cache-{side}-{seed}")
        given |= {"recipe": side, "seed": seed, "output": str(folder / f"{side}-{seed}"), "cache_dir": cache}
    began = time.monotonic()
    script = PROBE if side == "probe" else TLRAY
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, json.dumps(given)], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"side": side, "seed": seed, **result, "seconds": time.monotonic() - began}


def bound_ece(bins: list[list[float]], quantile: float) -> float:
    """Return a quantile of the calibration error of perfect probabilities, drawn from the bins' confidences."""
    images, confidences = np.array([images for images, _ in bins]), np.array([confidence for _, confidence in bins])
    right = np.random.default_rng(0).binomial(images.astype(int), np.minimum(confidences, 1), (DRAWS, len(images)))
    errors = np.abs(right - images * confidences).sum(axis=1) / images.sum()
    return float(np.quantile(errors, quantile))


def main(options: Options) -> None:
    """Run all sides, and print a line for each."""
    results = []
    with tempfile.TemporaryDirectory() as root:
        for side in options.sides:
            for seed in options.seeds[: 1 if side == "probe" else None]:
                results.append(run_side(options, side, seed, Path(root)))
    print(f"{'side':8} {'seeds':>5} {'accuracy':>16} {'log-loss':>16} {'ECE':>7} {'99%':>7} {'seconds':>8}")
    for side in options.sides:
        own = [result for result in results if result["side"] == side]
        texts = []
        for name in ("accuracy", "log_loss"):
            values = np.array([result[name] for result in own])
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
            texts.append(f"{values.mean():.3f} +- {error:.3f}")
        ece, seconds = (np.mean([result[name] for result in own]) for name in ("ece", "seconds"))
        bound = np.mean([bound_ece(result["bins"], 0.99) for result in own])
        print(f"{side:8} {len(own):5} {texts[0]:>16} {texts[1]:>16} {ece:7.3f} {bound:7.3f} {seconds:8.0f}")
    if options.json:
        Path(options.json).write_text(json.dumps({"options": asdict(options), "results": results}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
