"""Records of made-up runs for the tests of the pages: realistic numbers, hostile names on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.factories import make_epoch, make_receipt
from tlray.metrics.calibration import CalibrationRecord
from tlray.metrics.classification import ConfusedPair, Measurement, UncalibratedMeasurement, measure
from tlray.metrics.label_errors import DuplicatePair, LabelError, LabelErrorSummary
from tlray.metrics.thresholds import Needed, Threshold, Thresholds
from tlray.model.manifest import (
    FORMAT,
    Architecture,
    EpochRecord,
    KeptEpoch,
    Manifest,
    Metrics,
    OodPercentiles,
    PhaseBest,
    Preprocessing,
    RoleCounts,
    TrainingRecord,
)
from tlray.output.receipt import PartRecord, Receipt
from tlray.output.schema import LABEL_FIELDS
from tlray.report import PredictionFacts, gather_prediction_facts
from tlray.report.charts import Throughput
from tlray.report.evaluation import EvaluationRecord, Mistake, OodShares

MODEL_ID = "5dc4d1ca5bbdcef6d43c8a96f7df53855188da61741f9f5e1c3229d2eca96d04"
CLASSES = ["cardboard", "glass", "metal", "paper", "plastic", "trash"]
HOSTILE = [
    "<script>alert(1)</script>",
    "a \"quoted\" & 'odd' class",
    "up/../../and\\down",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe",
    "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET} \N{CJK UNIFIED IDEOGRAPH-4E00}\x1b[31m\x00\ud800",
    "x" * 5000,
]
HOSTILE_URI = "/data/<script>alert(2)</script>/" + "y" * 5000 + '"\N{RIGHT-TO-LEFT OVERRIDE}\n\x07.jpg'


def make_measurement(classes: Sequence[str], images: int, accuracy: float, seed: int = 0) -> Measurement:
    """Measure random predictions."""
    rng = np.random.default_rng(seed)
    size = len(classes)
    labels = rng.integers(0, size, images)
    predicted = np.where(rng.random(images) < accuracy, labels, rng.integers(0, size, images))
    confidence = np.clip(1 - rng.exponential(0.12, images), 1 / size + 0.01, 1)
    probabilities = np.repeat((1 - confidence[:, None]) / (size - 1), size, axis=1)
    probabilities[np.arange(images), predicted] = confidence
    return measure(probabilities, labels, classes)


def make_history(head: int = 4, finetune: int = 8, *, validation: bool = True) -> list[EpochRecord]:
    """Make two phases that learn."""
    history = []
    for epoch in range(1, head + finetune + 1):
        loss = 1.6 * 0.72**epoch + 0.12
        history.append(
            make_epoch(
                epoch,
                phase="head" if epoch <= head else "finetune",
                loss=loss,
                accuracy=1 - 0.52 * 0.76**epoch,
                val_loss=loss * 1.12 + 0.02 * (epoch % 3) if validation else None,
                val_accuracy=0.93 - 0.5 * 0.72**epoch + 0.006 * (epoch % 3) if validation else None,
                seconds=31.5,
            )
        )
    return history


def make_thresholds(classes: Sequence[str]) -> Thresholds:
    """Make thresholds where the last class does not reach the target."""
    reached = Threshold(probability=0.8124, precision=0.953, low=0.911, high=0.977, kept=0.783, images=141)
    by_class: dict[str, Threshold | None] = {
        name: replace(reached, probability=0.61 + 0.05 * (index % 7)) for index, name in enumerate(classes)
    }
    needed = {name: Needed(86, 87) if name == classes[-1] else None for name in classes}
    by_class[classes[-1]] = None
    return Thresholds(0.95, 0.9, reached, 0.78, None, by_class, [classes[-1]], needed)


def make_label_errors(uris: Sequence[str], classes: Sequence[str]) -> LabelErrorSummary:
    """List every second image as a label error, and all of them as duplicates."""
    size = len(classes)
    listed = [
        LabelError(uri, classes[index % size], classes[(index + 1) % size], 0.97 - 0.005 * index)
        for index, uri in enumerate(uris[::2])
    ]
    duplicates = [
        DuplicatePair(first, second, classes[index % size], classes[index * 2 % size], 0.9991 - 0.001 * index)
        for index, (first, second) in enumerate(zip(uris[::2], uris[1::2], strict=False))
    ]
    return LabelErrorSummary(539, len(listed), listed, duplicates)


def make_manifest(classes: Sequence[str] = CLASSES, *, validation: bool = True, test: bool = True) -> Manifest:
    """Make a trained bundle's manifest."""
    before = make_measurement(classes, 81, 0.9, seed=3)
    bins = [replace(entry, accuracy=max(0.0, entry.accuracy - 0.11)) for entry in before.bins]
    head, finetune = PhaseBest(4, 0.55, 0.83, 0.6, 0.827), PhaseBest(10, 0.19, 0.97, 0.29, 0.926)
    if not validation:
        head, finetune = (replace(best, val_loss=None, val_accuracy=None) for best in (head, finetune))
    config: dict[str, Any] = {
        "data": "s3://waste-photos/2026/train", "val_data": None, "test_data": "s3://waste-photos/2026/test",
        "weights": "/weights/inception_v3_notop.h5", "head_optimizer": "rmsprop", "finetune_optimizer": "sgd",
        "tune": "auto",
        "finetune_from": None, "lr_head": None, "lr_finetune": 0.001, "batch_size": 16, "num_workers": 2,
        "precision": "auto", "seed": 0,
    }  # fmt: skip
    return Manifest(
        format=FORMAT,
        model_id=MODEL_ID,
        architecture=Architecture("inception_v3", (1024,), len(classes), 2048, "f" * 64),
        classes=tuple(classes),
        preprocessing=Preprocessing(299, 1 / 127.5, -1.0),
        calibration=CalibrationRecord(1.3471, 81 if validation else 0, None),
        thresholds=make_thresholds(classes) if validation else None,
        training=TrainingRecord(
            config=config,
            resolved={"finetune_from": "mixed8", "lr_head": 0.001, "lr_finetune": 0.001},
            images_fingerprint="e" * 64,
            counts=RoleCounts(459, 81 if validation else 0, 179 if test else 0),
            left_out=1,
        ),
        metrics=Metrics(
            kept=KeptEpoch("finetune", 10),
            phases={"head": head, "finetune": finetune},
            validation=replace(make_measurement(classes, 81, 0.92, seed=1), loss=0.29) if validation else None,
            test=make_measurement(classes, 179, 0.91, seed=2) if test else None,
            uncalibrated=UncalibratedMeasurement(81, before.log_loss, 0.094, bins) if validation else None,
            ood_score=OodPercentiles({"50": 0.6, "90": 0.8, "95": 0.9, "99": 1.0}),
        ),
        versions={"tlray": "0.2.0", "tensorflow": "2.21.0", "keras": "3.15.1", "ray": "2.60.0"},
        files={},
    )


def make_evaluation(classes: Sequence[str], uris: Sequence[str], images: int = 179) -> EvaluationRecord:
    """Make the record of an evaluation whose mistakes and label errors are these images."""
    measured = make_measurement(classes, images, 0.9, seed=5)
    size = len(classes)
    return EvaluationRecord(
        **{field.name: getattr(measured, field.name) for field in fields(measured)},
        model_id=MODEL_ID,
        data="/photos/test",
        classes=list(classes),
        failed_by_code={"TRUNCATED": 2},
        measured="2026-11-23T06:03:35Z",
        most_confused=[ConfusedPair(classes[0], classes[1], 4)],
        thresholds=make_thresholds(classes),
        ood_score=OodShares(median=0.71, above_1=0.021),
        worst=[
            Mistake(uri, classes[index % size], classes[(index + 2) % size], 0.99 - 0.01 * index, 0.004 * index)
            for index, uri in enumerate(uris[:24])
        ],
        label_errors=make_label_errors(uris[:16], classes),
    )


def make_labels(
    start: int,
    count: int,
    rng: np.random.Generator,
    classes: Sequence[str] = CLASSES,
    *,
    review: bool = True,
    ood: bool = True,
    uri: str = "/a/{}.jpg",
) -> pa.Table:
    """Make labels of which 5% failed."""
    rows = range(start, start + count)
    predicted = rng.integers(0, len(classes), count)
    probability = rng.random(count).astype(np.float32)
    ood_score = (rng.random(count) * 1.2).astype(np.float32)
    failed = rng.random(count) < 0.05
    nothing = [None] * count
    columns = {
        "row_id": rows,
        "uri": [uri.format(row) for row in rows],
        "status": ["CORRUPT" if bad else "ok" for bad in failed],
        "error": ["it is <b>broken</b>" if bad else None for bad in failed],
        "predicted_index": pa.array(predicted, mask=failed),
        "class_name": pa.array([classes[index] for index in predicted], mask=failed),
        "probability": pa.array(probability, mask=failed),
        "model_id": [MODEL_ID] * count,
        "needs_review": pa.array(probability < 0.5, mask=failed) if review else nothing,
        "ood_score": pa.array(ood_score, mask=failed) if ood else nothing,
    }
    return pa.table({field.name: pa.array(columns.get(field.name, nothing), field.type) for field in LABEL_FIELDS})


def write_labels(folder: Path, tables: Sequence[pa.Table]) -> list[PartRecord]:
    """Write one part per table below `labels/`."""
    (folder / "labels").mkdir(parents=True)
    parts, start = [], 0
    for table in tables:
        name = f"part-{start:012d}-{start + table.num_rows - 1:012d}.parquet"
        pq.write_table(table, folder / "labels" / name, row_group_size=300)
        parts.append(PartRecord(name, table.num_rows, "0" * 64))
        start += table.num_rows
    return parts


def make_run(planned: int, failed_by_code: dict[str, int], parts: Sequence[PartRecord] = ()) -> Receipt:
    """Make the receipt of a run."""
    failed = sum(failed_by_code.values())
    return replace(
        make_receipt(),
        model_id=MODEL_ID,
        planned=planned,
        labelled=planned - failed,
        failed=failed,
        failed_by_code=failed_by_code,
        excluded=12,
        retries=3,
        parts=list(parts),
        config={"input": ["s3://waste-photos/archive"], "top_k": 0},
        started="2026-11-23T06:03:35Z",
        finished="2026-11-23T06:41:57Z",
        images_per_s=51.1,
        images_per_s_steady=56.4,
        first_label_s=16.2,
        stages={"planning": 0.6, "ray": 5.4, "predicting": 2290.0},
        versions={"tlray": "0.2.0", "ray": "2.60.0"},
        engines={"bfloat16 on 1 thread": 2},
    )


def gather(
    folder: Path, tables: Sequence[pa.Table], manifest: Manifest | None = None, timeline: Sequence[Throughput] = ()
) -> tuple[list[dict[str, Any]], PredictionFacts]:
    """Write labels as a finished run; return its rows and the facts gathered from it."""
    parts = write_labels(folder, tables)
    rows = pa.concat_tables(tables).to_pylist()
    failed = Counter(row["status"] for row in rows if row["status"] != "ok")
    receipt = make_run(len(rows), dict(failed), parts)
    return rows, gather_prediction_facts(str(folder), receipt, manifest or make_manifest(), timeline)
