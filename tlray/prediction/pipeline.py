"""The labelling pipeline on Ray Data: read and decode in tasks, answer in engine actors, stream the answers back.

Blocks come back in any order; their row ids say where they belong.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from tlray.bundle import Bundle, unpack
from tlray.errors import Code
from tlray.lean import import_tensorflow
from tlray.limits import Limits
from tlray.prediction.schema import ANSWER_FIELDS, TOP_FIELDS
from tlray.reader import OK, read_images
from tlray.runtime import explain_failure
from tlray.shares import DATA_TASK_CPUS, Cluster, share_engines

_MAX_ROWS_PER_TASK = 1024
_UNKNOWN = -1


def label_rows(
    rows: pa.Table, bundle: Bundle, cluster: Cluster, limits: Limits, batch_size: int, *, top_k: int = 0
) -> Iterator[pa.Table]:
    """Label rows; one answer for each, whatever happens to its image.

    Args:
        rows: `row_id int64, uri string`.
        bundle: what to label with.
        cluster: the connected cluster.
        limits: of decoding.
        batch_size: images in one step of the engine.
        top_k: how many classes to list beside the first; 0 for none.

    Yields:
        Tables by `ANSWER_FIELDS`, and `TOP_FIELDS` where `top_k` is above 0.

    Raises:
        StoppedError: Ray gave up on a task or an engine.
    """
    shares = share_engines(cluster, rows.num_rows, batch_size)
    per_task = max(1, min(_MAX_ROWS_PER_TASK, math.ceil(rows.num_rows / (4 * max(1, int(cluster.cpus))))))
    blocks = [rows.slice(start, per_task).combine_chunks() for start in range(0, rows.num_rows, per_task)]
    dataset = (
        ray.data.from_blocks(blocks)
        .map_batches(
            _read_batch,
            fn_kwargs={"image_size_px": bundle.image_size_px, "limits": limits},
            batch_size=batch_size,
            num_cpus=DATA_TASK_CPUS,
        )
        .map_batches(
            Labeller,
            fn_constructor_kwargs={
                "files": [ray.put(bundle.read_inference_files())],  # in a list, so that Ray doesn't tie restarts to it
                "classes": bundle.classes,
                "image_size_px": bundle.image_size_px,
                "batch_size": batch_size,
                "num_threads": shares.num_threads,
                "top_k": min(top_k, len(bundle.classes)),
            },
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=shares.actors),
            num_cpus=shares.num_cpus,
            num_gpus=shares.num_gpus or None,
        )
    )
    dataset.context.target_max_block_size = max(2**20, batch_size * bundle.image_size_px**2 * 3)
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    except ray.exceptions.RayError as error:
        raise explain_failure(error, "labelling") from error


class Labeller:
    """One engine in one process."""

    def __init__(
        self,
        files: list[ray.ObjectRef[dict[str, bytes]]],
        classes: tuple[str, ...],
        image_size_px: int,
        batch_size: int,
        num_threads: int | None,
        top_k: int,
    ) -> None:
        import_tensorflow()
        from tlray.engine import Engine

        self._classes = np.array(classes, object)
        self._top_k = top_k
        with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
            unpack(ray.get(files[0]), Path(folder))
            self._engine = Engine(Path(folder, "saved_model"), image_size_px, batch_size, num_threads=num_threads)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        """Answer a batch as `_read_batch` made it."""
        status = batch["status"].astype(object)
        error = batch["error"].astype(object)
        readable = status == OK
        pixels = batch["image"] if readable.all() else batch["image"][readable]
        probabilities = self._engine.predict(np.ascontiguousarray(pixels))
        finite = np.isfinite(probabilities).all(axis=1)
        if not finite.all():
            wrong = np.flatnonzero(readable)[~finite]
            status[wrong] = Code.MODEL_ERROR.value
            error[wrong] = "the model answered with a number that is not finite"
            probabilities = probabilities[finite]
        return self._make_answers(batch, status, error, probabilities)

    def _make_answers(
        self,
        batch: dict[str, npt.NDArray[Any]],
        status: npt.NDArray[np.object_],
        error: npt.NDArray[np.object_],
        probabilities: npt.NDArray[np.float32],
    ) -> pa.Table:
        count = len(status)
        answered = np.flatnonzero(status == OK)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : max(1, self._top_k)]
        chances = np.take_along_axis(probabilities, order, axis=1)
        index: list[int | None] = [None] * count
        chance: list[float | None] = [None] * count
        for position, row in enumerate(answered):
            index[row] = int(order[position, 0])
            chance[row] = float(chances[position, 0])
        columns: dict[str, Any] = {
            "row_id": batch["row_id"],
            "status": status,
            "error": [text or None for text in error],
            "predicted_index": index,
            "class_name": [None if value is None else self._classes[value] for value in index],
            "probability": chance,
            "width": _null_unknown(batch["width"]),
            "height": _null_unknown(batch["height"]),
        }
        fields = ANSWER_FIELDS
        if self._top_k:
            fields = ANSWER_FIELDS + TOP_FIELDS
            tops: list[list[Any]] = [[None] * count for _ in range(3)]
            for position, row in enumerate(answered):
                tops[0][row] = order[position].tolist()
                tops[1][row] = self._classes[order[position]].tolist()
                tops[2][row] = chances[position].tolist()
            columns |= dict(zip((field.name for field in TOP_FIELDS), tops, strict=True))
        return pa.table(
            {field.name: pa.array(columns[field.name], field.type) for field in fields}, schema=pa.schema(fields)
        )


def _read_batch(batch: dict[str, npt.NDArray[Any]], image_size_px: int, limits: Limits) -> dict[str, npt.NDArray[Any]]:
    images = read_images(batch["uri"].tolist(), image_size_px, limits)
    return {
        "row_id": batch["row_id"],
        "image": images.pixels,
        "status": np.array(images.status, object),
        "error": np.array([error or "" for error in images.errors], object),  # None would come out as NaN
        "width": np.array([_UNKNOWN if value is None else value for value in images.widths], np.int32),
        "height": np.array([_UNKNOWN if value is None else value for value in images.heights], np.int32),
    }


def _null_unknown(values: npt.NDArray[np.int32]) -> list[int | None]:
    return [None if value == _UNKNOWN else int(value) for value in values]
