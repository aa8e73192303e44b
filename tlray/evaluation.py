"""How good a bundle is on labelled folders: accuracy, precision, recall and F1 by class, the confusion matrix."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.bundle import load_bundle
from tlray.config import EvaluateConfig
from tlray.errors import OutputError
from tlray.pictures import draw_confusion
from tlray.sources.classes import scan

RESULT = "evaluation.json"
PICTURE = "confusion.png"


@dataclass(frozen=True)
class Measurement:
    """Metrics over labelled images.

    Attributes:
        images: how many were measured.
        accuracy: share whose most probable class is the true one.
        by_class: class name -> precision, recall, f1 (each in [0, 1], 0 where undefined) and images.
        macro_f1: plain mean of the classes' F1.
        confusion: `[C][C]` counts; row: true class, column: predicted class.
    """

    images: int
    accuracy: float
    by_class: dict[str, dict[str, float]]
    macro_f1: float
    confusion: list[list[int]]


@dataclass(frozen=True)
class EvaluateSummary:
    """What an evaluation found.

    Attributes:
        model_id: the bundle's identity.
        classes: class names by index.
        measurement: metrics over the images that could be decoded.
        failed: how many could not, by code.
        output: where evaluation.json and confusion.png lie, or None.
    """

    model_id: str
    classes: tuple[str, ...]
    measurement: Measurement
    failed: dict[str, int]
    output: str | None


def measure(
    labels: npt.NDArray[np.integer[Any]], predicted: npt.NDArray[np.integer[Any]], classes: Sequence[str]
) -> Measurement:
    """Compare true with predicted class indices, both `[N]`."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    indices = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=indices, average=None, zero_division=0.0
    )
    by_class = {
        name: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "images": int(support[index]),
        }
        for index, name in enumerate(classes)
    }
    return Measurement(
        images=len(labels),
        accuracy=float((labels == predicted).mean()) if len(labels) else 0.0,
        by_class=by_class,
        macro_f1=float(f1.mean()),
        confusion=confusion_matrix(labels, predicted, labels=indices).tolist(),
    )


def evaluate(config: EvaluateConfig) -> EvaluateSummary:
    """Label labelled images with a bundle and compare.

    Raises:
        UsageError: a value, folder, bundle or output cannot be used; nothing was started.
        StoppedError: labelling ended early.
    """
    config.check()
    storage.configure(config.s3_options)
    opened = load_bundle(config.model)
    output = None if config.output is None else storage.resolve(config.output)
    if output is not None:
        if storage.has_content(output) and not storage.exists(storage.join(output, RESULT)):
            raise OutputError(f"--output {output} already holds something else; give a new folder or prefix")
        storage.check_writable(output)
    images = scan(storage.resolve(config.data), opened.classes)

    from tlray import runtime
    from tlray.prediction.pipeline import label_files
    from tlray.progress import Stage
    from tlray.reader import OK

    labels = images.table["label"].to_numpy()
    predicted = np.full(len(labels), -1, np.int64)
    failed: dict[str, int] = {}
    with (
        runtime.connect(config.address, config.max_cpus, verbose=config.verbose) as cluster,
        Stage("evaluate", len(labels)) as stage,
    ):
        uris = images.table["uri"].to_pylist()
        for block in label_files(uris, opened, cluster, config.limits, config.batch_size, config.precision):
            for row in block.select(["row_id", "status", "predicted_index"]).to_pylist():
                if row["status"] == OK:
                    predicted[row["row_id"]] = row["predicted_index"]
                else:
                    failed[row["status"]] = failed.get(row["status"], 0) + 1
            stage.advance(block.num_rows)
    answered = predicted >= 0
    measurement = measure(labels[answered], predicted[answered], opened.classes)
    if output is not None:
        result = {
            "model_id": opened.model_id,
            "data": config.data,
            "classes": list(opened.classes),
            "failed_by_code": failed,
            "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **asdict(measurement),
        }
        storage.put(storage.join(output, PICTURE), draw_confusion(measurement.confusion, opened.classes))
        storage.put(storage.join(output, RESULT), (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    return EvaluateSummary(opened.model_id, opened.classes, measurement, failed, output)
