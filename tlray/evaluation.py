"""How good a bundle is on labelled images, where it fails, and which of their labels look wrong.

tlray evaluate --model bundle/ --data photos/ --output evaluation/
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tlray import report, storage
from tlray.config import EvaluateConfig
from tlray.console import Stage, now
from tlray.errors import OutputError, StoppedError
from tlray.metrics.classification import Measurement, measure
from tlray.metrics.label_errors import (
    MAX_IMAGES,
    NO_LABEL_ERRORS,
    find_label_errors,
    list_label_errors,
    summarize_label_errors,
    write_label_errors,
)
from tlray.metrics.thresholds import choose_thresholds
from tlray.model.bundle import Bundle, load_bundle
from tlray.output.schema import EMBEDDING
from tlray.sources.labelled import scan

RESULT = "evaluation.json"
LABEL_ERRORS = "label_errors.csv"

_LOOKED_AT = 16
_MAX_WORST = 60
_MAX_PAIRS = 20


@dataclass(frozen=True)
class EvaluateSummary:
    """What an evaluation found.

    Attributes:
        model_id: the bundle's identity.
        classes: class names by index.
        measurement: metrics over the images that could be decoded.
        failed: how many could not, by code.
        output: where evaluation.json, report.html and label_errors.csv lie, or None.
        result: what evaluation.json holds.
    """

    model_id: str
    classes: tuple[str, ...]
    measurement: Measurement
    failed: dict[str, int]
    output: str | None
    result: dict[str, Any]


@dataclass(frozen=True)
class _LabelledPredictions:
    """A bundle's answers to N labelled images, NaN where there are none.

    Attributes:
        probabilities: float32 `[N, C]`.
        ood_score: float32 `[N]`.
        features: float32 `[K, D]`, of those images that are held against each other.
        places: `[N]`, an image's place among them, or -1.
        failed: images without an answer, by code.
    """

    probabilities: npt.NDArray[np.float32]
    ood_score: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    places: npt.NDArray[np.int64]
    failed: dict[str, int]


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
        if storage.has_content(output):
            ours = {RESULT, LABEL_ERRORS, report.NAME}  # also of one that was stopped
            if any(entry.name not in ours for entry in storage.iter_files(output)):
                raise OutputError(f"--output {output} already holds something else; give a new folder or prefix")
        storage.check_writable(output)
    images = scan(storage.resolve(config.data), opened.classes)

    answers = _answer(config, opened, images.table)
    measured = np.flatnonzero(np.isfinite(answers.probabilities).all(axis=1))
    if len(measured) == 0:
        raise StoppedError(
            f"none of {images.table.num_rows:,} images of {config.data} could be labelled; nothing to measure"
        )
    uris = images.table["uri"].take(pa.array(measured)).to_pylist()
    labels = images.table["label"].to_numpy()[measured]
    probabilities, ood_score = answers.probabilities[measured], answers.ood_score[measured]
    measurement = measure(probabilities, labels, opened.classes)
    label_errors, listed = _find_label_errors(answers, measured, uris, labels, opened.classes)
    result = {
        "model_id": opened.model_id,
        "data": config.data,
        "classes": list(opened.classes),
        "failed_by_code": answers.failed,
        "measured": now(),
        **asdict(measurement),
        "most_confused": list_confused(measurement.confusion, opened.classes),
        "thresholds": choose_thresholds(probabilities, labels, opened.classes, config.target_precision),
        "uncalibrated": None,
        "ood_score": None
        if np.isnan(ood_score).any()
        else {"median": float(np.median(ood_score)), "above_1": float((ood_score > 1).mean())},
        "worst": _list_worst(probabilities, labels, uris, opened.classes),
        "label_errors": label_errors,
    }
    if output is not None:
        storage.put(storage.join(output, LABEL_ERRORS), listed)
        page = report.render_evaluation(result, report.read_files)
        storage.put(storage.join(output, report.NAME), page)
        storage.put(storage.join(output, RESULT), (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    return EvaluateSummary(opened.model_id, opened.classes, measurement, answers.failed, output, result)


def list_confused(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Pairs of a true class and another that was predicted for it, the most frequent first."""
    cells = [
        (count, row, column)
        for row, counts in enumerate(confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    cells.sort(key=lambda cell: -cell[0])
    pairs = [{"true": classes[row], "predicted": classes[column], "images": count} for count, row, column in cells]
    return pairs[:_MAX_PAIRS]


def _answer(config: EvaluateConfig, bundle: Bundle, table: pa.Table) -> _LabelledPredictions:
    """Label the images on Ray."""
    from tlray.cluster import connect as runtime
    from tlray.cluster.capacity import demand_engines, wait_for
    from tlray.cluster.checks import check_seen
    from tlray.cluster.resources import EngineBounds
    from tlray.errors import OK
    from tlray.output.schema import RequestedColumns
    from tlray.prediction.pipeline import predict_files

    count, num_classes = table.num_rows, len(bundle.classes)
    chosen = np.random.default_rng(0).permutation(count)[:MAX_IMAGES]
    places = np.full(count, -1)
    places[chosen] = np.arange(len(chosen))
    answers = _LabelledPredictions(
        probabilities=np.full((count, num_classes), np.nan, np.float32),
        ood_score=np.full(count, np.nan, np.float32),
        features=np.zeros((len(chosen), bundle.num_features), np.float32),
        places=places,
        failed={},
    )
    columns = RequestedColumns(top_k=num_classes, embedding_size=bundle.num_features)
    uris = table["uri"].to_pylist()
    with runtime.connect(config.address, config.max_cpus, verbose=config.verbose) as cluster:
        cluster = wait_for(demand_engines(cluster, EngineBounds()), cluster, config.wait_for_resources)
        if not cluster.local:
            check_seen("--data", [(uri, None) for uri in uris[:_LOOKED_AT]])
        with Stage("evaluate", count) as stage:
            for block in predict_files(
                uris, bundle, cluster, config.limits, config.batch_size, config.precision, columns
            ):
                stage.advance(block.num_rows)
                for code in block["status"].to_pylist():
                    if code != OK:
                        answers.failed[code] = answers.failed.get(code, 0) + 1
                good = block.filter(pc.equal(block["status"], OK)).combine_chunks()
                if good.num_rows == 0:
                    continue
                rows = good["row_id"].to_numpy()
                order, chances = (
                    np.asarray(good[name].combine_chunks().flatten()).reshape(-1, num_classes)
                    for name in ("top_indices", "top_probabilities")
                )
                answers.probabilities[rows[:, None], order] = chances
                answers.ood_score[rows] = good["ood_score"].to_numpy()
                if bundle.num_features:
                    features = np.asarray(good[EMBEDDING].combine_chunks().flatten()).reshape(-1, bundle.num_features)
                    kept = places[rows] >= 0
                    answers.features[places[rows[kept]]] = features[kept]
    return answers


def _find_label_errors(
    answers: _LabelledPredictions,
    measured: npt.NDArray[np.int64],
    uris: Sequence[str],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
) -> tuple[dict[str, Any], bytes]:
    """As `summarize_label_errors`, and all of them as a CSV file, of the images whose features were kept."""
    kept = np.flatnonzero(answers.places[measured] >= 0)
    features = answers.features[answers.places[measured[kept]]]
    found = find_label_errors(features, labels[kept], len(classes)) if features.shape[1] else NO_LABEL_ERRORS
    chosen = [uris[index] for index in kept.tolist()]
    listed = write_label_errors(list_label_errors(found, chosen, labels[kept], classes))
    return summarize_label_errors(found, chosen, labels[kept], classes), listed


def _list_worst(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], uris: Sequence[str], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Mistakes, the surest first."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MAX_WORST]
    return [
        {
            "uri": uris[row],
            "true": classes[int(labels[row])],
            "predicted": classes[int(predicted[row])],
            "probability": float(confidence[row]),
            "true_probability": float(probabilities[row, labels[row]]),
        }
        for row in worst.tolist()
    ]
