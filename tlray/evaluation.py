"""Measure a bundle on labelled images, and list its mistakes and likely label errors.

tlray evaluate --model bundle/ --data photos/ --output evaluation/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tlray import report, storage
from tlray.cluster.connect import connect
from tlray.cluster.resources import EngineBounds
from tlray.config import EvaluateConfig
from tlray.console import Stage, now
from tlray.errors import OK, OutputError, StoppedError
from tlray.metrics.classification import list_confused, measure
from tlray.metrics.label_errors import (
    MAX_IMAGES,
    NO_LABEL_ERRORS,
    LabelErrorSummary,
    find_label_errors,
    list_label_errors,
    summarize_label_errors,
    write_label_errors,
)
from tlray.metrics.thresholds import describe_thresholds
from tlray.model.bundle import Bundle, load_bundle
from tlray.notebook import Card, Shown, name_classes
from tlray.output.schema import EMBEDDING, RequestedColumns
from tlray.report.evaluation import EvaluationRecord, Mistake, OodShares
from tlray.sources.labelled import LabelledImages, scan
from tlray.storage.records import dump_record

RESULT = "evaluation.json"
LABEL_ERRORS = "label_errors.csv"

_LOOKED_AT = 16
_MAX_WORST = 60


@dataclass(frozen=True, repr=False)
class EvaluateSummary(Shown):
    """The result of an evaluation; `output` is None if nothing was written."""

    model_id: str
    classes: tuple[str, ...]
    output: str | None
    result: EvaluationRecord

    def describe(self) -> Card:
        """Return what a notebook shows: accuracy, calibration and the classes."""
        result = self.result
        interval = f"95% interval {result.accuracy_low:.3f} to {result.accuracy_high:.3f}"
        figures = [
            ("accuracy", f"{result.accuracy:.3f} of {result.images:,} images ({interval})"),
            ("log-loss", f"{result.log_loss:.3f}"),
            ("calibration error", f"{result.ece:.3f}"),
            ("classes", name_classes(self.classes)),
        ]
        if result.most_confused:
            worst = result.most_confused[0]
            figures.append(("most confused", f"{worst.true} taken for {worst.predicted}, {worst.images:,} images"))
        if self.output is not None:
            figures.append(("report", f"{self.output}/report.html"))
        shares = {name: one.images / max(result.images, 1) for name, one in result.by_class.items()}
        return Card("Evaluated", figures, shares)


@dataclass(frozen=True)
class _LabelledPredictions:
    """A bundle's predictions for N labelled images; NaN where an image failed.

    Attributes:
        probabilities: float32 `[N, C]`.
        ood_score: float32 `[N]`.
        features: float32 `[K, D]`, of the images compared with each other to find label errors.
        places: int64 `[N]`, an image's row in `features`, or -1.
        failed: number of failed images by code.
    """

    probabilities: npt.NDArray[np.float32]
    ood_score: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    places: npt.NDArray[np.int64]
    failed: dict[str, int]


def evaluate(config: EvaluateConfig) -> EvaluateSummary:
    """Predict labelled images with a bundle and compare.

    Raises:
        UsageError: a value, folder, bundle or output cannot be used; nothing was started.
        StoppedError: prediction ended early.
    """
    config.check()
    storage.configure(config.s3_options)
    opened = load_bundle(config.model)
    output = None if config.output is None else storage.resolve(config.output)
    if output is not None:
        if storage.has_content(output):
            ours = {RESULT, LABEL_ERRORS, report.NAME}  # an earlier evaluation may have been stopped
            if any(entry.name not in ours for entry in storage.iter_files(output)):
                raise OutputError(f"--output {output} already holds something else; give a new folder or prefix")
        storage.check_writable(output)
    images = scan(storage.resolve(config.data), opened.classes, label_column=config.label_column)
    predictions = _predict(config, opened, images)
    measured = np.flatnonzero(np.isfinite(predictions.probabilities).all(axis=1))
    if len(measured) == 0:
        count = images.table.num_rows
        raise StoppedError(f"none of {count:,} images of {config.data} could be labelled; nothing to measure")
    uris = images.table["uri"].take(pa.array(measured)).to_pylist()
    labels = images.table["label"].to_numpy()[measured]
    probabilities, ood_score = predictions.probabilities[measured], predictions.ood_score[measured]
    measurement = measure(probabilities, labels, opened.classes)
    label_errors, listed = _find_label_errors(predictions, measured, uris, labels, opened.classes)
    ood_shares = None
    if not np.isnan(ood_score).any():
        ood_shares = OodShares(float(np.median(ood_score)), float((ood_score > 1).mean()))
    result = EvaluationRecord(
        **{field.name: getattr(measurement, field.name) for field in fields(measurement)},
        model_id=opened.model_id,
        data=config.data,
        classes=list(opened.classes),
        failed_by_code=predictions.failed,
        measured=now(),
        most_confused=list_confused(measurement.confusion, opened.classes),
        thresholds=describe_thresholds(
            probabilities, labels, opened.classes, config.target_precision, config.confidence
        ),
        ood_score=ood_shares,
        worst=_list_worst(probabilities, labels, uris, opened.classes),
        label_errors=label_errors,
    )
    if output is not None:
        storage.put(storage.join(output, LABEL_ERRORS), listed)
        read = report.make_reader(images.places, config.limits)
        storage.put(storage.join(output, report.NAME), report.render_evaluation(result, read))
        storage.put(storage.join(output, RESULT), dump_record(result))
    return EvaluateSummary(opened.model_id, opened.classes, output, result)


def _predict(config: EvaluateConfig, bundle: Bundle, images: LabelledImages) -> _LabelledPredictions:
    # these import Ray, which must come after connect has set its environment
    from tlray.cluster.capacity import demand_engines, wait_for
    from tlray.cluster.checks import check_seen
    from tlray.prediction.pipeline import predict_files

    count, num_classes = len(images.places), len(bundle.classes)
    chosen = np.random.default_rng(0).permutation(count)[:MAX_IMAGES]
    places = np.full(count, -1)
    places[chosen] = np.arange(len(chosen))
    predictions = _LabelledPredictions(
        probabilities=np.full((count, num_classes), np.nan, np.float32),
        ood_score=np.full(count, np.nan, np.float32),
        features=np.zeros((len(chosen), bundle.num_features), np.float32),
        places=places,
        failed={},
    )
    columns = RequestedColumns(top_k=num_classes, embedding_size=bundle.num_features)
    with connect(config.address, config.max_cpus, verbose=config.verbose) as cluster:
        bounds = EngineBounds(allow_cpu=config.allow_cpu)
        cluster = wait_for(demand_engines(cluster, bounds), cluster, config.wait_for_resources)
        if not cluster.local:
            check_seen("--data", images.places.list_files(range(min(count, _LOOKED_AT))))
        with Stage("evaluate", count) as stage:
            for block in predict_files(
                images.places, bundle, cluster, config.limits, config.batch_size, config.precision, columns, bounds
            ):
                stage.advance(block.num_rows)
                for code in block["status"].to_pylist():
                    if code != OK:
                        predictions.failed[code] = predictions.failed.get(code, 0) + 1
                good = block.filter(pc.equal(block["status"], OK)).combine_chunks()
                if good.num_rows == 0:
                    continue
                rows = good["row_id"].to_numpy()
                indices, probabilities = (
                    np.asarray(good[name].combine_chunks().flatten()).reshape(-1, num_classes)
                    for name in ("top_indices", "top_probabilities")
                )
                predictions.probabilities[rows[:, None], indices] = probabilities
                predictions.ood_score[rows] = good["ood_score"].to_numpy()
                if bundle.num_features:
                    features = np.asarray(good[EMBEDDING].combine_chunks().flatten()).reshape(-1, bundle.num_features)
                    kept = places[rows] >= 0
                    predictions.features[places[rows[kept]]] = features[kept]
    return predictions


def _find_label_errors(
    predictions: _LabelledPredictions,
    measured: npt.NDArray[np.int64],
    uris: Sequence[str],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
) -> tuple[LabelErrorSummary, bytes]:
    """Return the summary and the CSV file of label errors among the images with features."""
    kept = np.flatnonzero(predictions.places[measured] >= 0)
    features = predictions.features[predictions.places[measured[kept]]]
    found = find_label_errors(features, labels[kept], len(classes)) if features.shape[1] else NO_LABEL_ERRORS
    chosen = [uris[index] for index in kept.tolist()]
    listed = write_label_errors(list_label_errors(found, chosen, labels[kept], classes))
    return summarize_label_errors(found, chosen, labels[kept], classes), listed


def _list_worst(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], uris: Sequence[str], classes: Sequence[str]
) -> list[Mistake]:
    """List the mistakes, those with the highest probability first."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MAX_WORST]
    return [
        Mistake(
            uri=uris[row],
            true=classes[int(labels[row])],
            predicted=classes[int(predicted[row])],
            probability=float(confidence[row]),
            true_probability=float(probabilities[row, labels[row]]),
        )
        for row in worst.tolist()
    ]
