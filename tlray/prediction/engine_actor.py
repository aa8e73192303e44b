"""The process of an engine: predict batches of images; a fault affects only its own row."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.exceptions

from tlray.cluster.nodes import restart_elsewhere
from tlray.errors import OK, Code, StoppedError
from tlray.images.batch import ImageBatch
from tlray.images.limits import Limits
from tlray.model.bundle import MANIFEST, Bundle, unpack
from tlray.model.engine import open_engine
from tlray.model.engines.interface import Predictions
from tlray.model.manifest import Manifest
from tlray.model.precision import PrecisionName
from tlray.model.tf_imports import show_booked_gpus
from tlray.output.schema import EMBEDDING, TOP_FIELDS, RequestedColumns
from tlray.prediction import batches
from tlray.prediction.batches import Columns, open_images
from tlray.prediction.dispatcher import MAX_TRIES, Handle, Key, Order
from tlray.storage.records import parse_record

_LOOK_INTERVAL_S = 3.0


@dataclass(frozen=True)
class BatchPredictions:
    """N decoded images and their predictions, NaN for failed ones.

    Shapes: probabilities `[N, C]`, ood_score `[N]`, embeddings `[N, D]`, or `[N, 0]` if they are not requested.
    """

    images: ImageBatch
    probabilities: npt.NDArray[np.float32]
    ood_score: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]

    def put(self, rows: npt.NDArray[np.int64], predictions: Predictions) -> None:
        """Take an engine's predictions of some rows."""
        self.probabilities[rows] = predictions.probabilities
        if predictions.ood_score is not None:
            self.ood_score[rows] = predictions.ood_score
        if self.embeddings.shape[1] and predictions.embeddings is not None:
            self.embeddings[rows] = predictions.embeddings


class EngineActor:
    """One engine in one process.

    Args:
        files: the bundle's files for inference, by name, and those that TensorFlow needs besides; in a list, so that
            Ray's restarts do not depend on them.
        num_threads: threads of the engine; None on GPUs.
        allow_cpu: compute on cores where TensorFlow does not see a booked GPU.
        num_engines: number of engines of the run.
        dispatcher: the run's `Dispatcher`, in a list for the same reason.
    """

    def __init__(
        self,
        files: list[ray.ObjectRef[dict[str, bytes]]],
        limits: Limits,
        batch_size: int,
        num_threads: int | None,
        allow_cpu: bool,
        precision: PrecisionName,
        num_engines: int,
        columns: RequestedColumns,
        dispatcher: list[Handle],
    ) -> None:
        self._dispatcher = dispatcher[0]
        self._node = ray.get_runtime_context().get_node_id()
        ray.get(self._dispatcher.start_engine.remote(num_engines))
        booked = show_booked_gpus()
        self._limits = limits
        self._columns = columns
        with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
            contents: dict[str, bytes] = ray.get(files[0])
            unpack(contents, Path(folder))
            bundle = Bundle(Path(folder), "", parse_record(Manifest, contents[MANIFEST]))
            self._engine = open_engine(
                bundle,
                batch_size,
                num_threads=num_threads,
                precision=precision,
                booked_gpus=booked,
                allow_cpu=allow_cpu,
                fetch_saved_model=lambda: unpack(ray.get(files[1]), bundle.path),
            )
        self._classes = np.array(bundle.classes, object)
        self._image_size_px = bundle.image_size_px
        self._dispatcher.note_engine.remote(str(self._engine.form))
        self._working = threading.Lock()
        self._worked_at = time.monotonic()
        threading.Thread(target=self._move_when_idle, name="move", daemon=True).start()

    def __call__(self, batch: Columns) -> pa.Table:
        """Predict a batch of the reading stage; return a table by `RequestedColumns.fields`, empty if the run stops."""
        with self._working:
            labels = self._label(batches.unpack(batch))
            self._worked_at = time.monotonic()
            return labels

    def _move_when_idle(self) -> None:
        """End the process on a drained machine also where no batch comes, as Ray gives it none."""
        while True:
            time.sleep(_LOOK_INTERVAL_S)
            with self._working:
                idle_s = time.monotonic() - self._worked_at
                # its last labels may still be on their way
                with contextlib.suppress(ray.exceptions.RayError):  # the dispatcher starts again, or the run ends
                    if idle_s > _LOOK_INTERVAL_S and ray.get(self._dispatcher.look.remote(0, self._node)) is Order.MOVE:
                        restart_elsewhere()

    def _label(self, batch: Columns) -> pa.Table:
        key = "batch", int(batch["row_id"][0])
        order, tries = ray.get(self._dispatcher.start_batch.remote(key, self._node))
        if order is Order.MOVE:
            restart_elsewhere()
        if order is Order.STOP:
            return pa.schema(self._columns.fields).empty_table()
        predicted = None if tries else self._predict_together(batch)
        predicted = predicted or self._predict_one_by_one(key, batch)
        self._dispatcher.leave.remote(key)
        return make_labels(batch, predicted, self._classes, self._columns)

    def _expect(self, images: ImageBatch, count: int) -> BatchPredictions:
        sizes = (count, len(self._classes)), (count,), (count, self._columns.embedding_size)
        return BatchPredictions(images, *(np.full(size, np.nan, np.float32) for size in sizes))

    def _predict_together(self, batch: Columns) -> BatchPredictions | None:
        """Predict all rows at once; None if the engine fails."""
        images = open_images(batch, slice(None), self._image_size_px, self._limits)
        predicted = self._expect(images, len(images.status))
        readable = np.flatnonzero(np.array(images.status, object) == OK)
        if len(readable):
            pixels = images.pixels if len(readable) == len(images.status) else images.pixels[readable]
            try:
                predicted.put(readable, self._engine.predict(pixels))
            except Exception:  # TensorFlow may raise anything; the rows are then tried one by one
                return None
        return predicted

    def _predict_one_by_one(self, key: Key, batch: Columns) -> BatchPredictions:
        """Predict a batch that failed or whose process died; a row that fails again gets an error status."""
        row_ids = batch["row_id"]
        side = self._image_size_px
        images = ImageBatch(np.empty((0, side, side, 3), np.uint8), [], [], [], [])
        predicted = self._expect(images, len(row_ids))
        failures: list[Exception] = []
        num_tried = 0
        for index, row_id in enumerate(row_ids):
            if ray.get(self._dispatcher.isolate.remote(key, int(row_id))) >= MAX_TRIES:
                images.append(Code.CRASHED.value, f"{MAX_TRIES} processes died while reading it", None, None)
                continue
            one = open_images(batch, slice(index, index + 1), side, self._limits)
            images.append(one.status[0], one.errors[0], one.widths[0], one.heights[0])
            if one.status[0] != OK:
                continue
            num_tried += 1
            try:
                predicted.put(np.array([index]), self._engine.predict(one.pixels))
            except Exception as failure:
                failures.append(failure)
                images.status[-1] = Code.MODEL_ERROR.value
                images.errors[-1] = f"the model failed: {type(failure).__name__}"
        if len(failures) == num_tried > 1:
            cause = " ".join(str(failures[0]).split())[:200]
            raise StoppedError(
                f"the model fails on every image of a batch ({type(failures[0]).__name__}: {cause}); "
                "if memory is short, give a smaller --batch-size"
            )
        return predicted


def make_labels(
    batch: Columns, predicted: BatchPredictions, classes: npt.NDArray[np.object_], requested: RequestedColumns
) -> pa.Table:
    """Return the table of a batch by `RequestedColumns.fields`; a prediction that is not finite fails its row."""
    images, probabilities = predicted.images, predicted.probabilities
    for row in np.flatnonzero(~np.isfinite(probabilities).all(axis=1)):
        if images.status[row] == OK:
            images.status[row] = Code.MODEL_ERROR.value
            images.errors[row] = "a probability is not finite"
    failed = np.array(images.status, object) != OK
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : max(1, requested.top_k)]
    chances = np.take_along_axis(probabilities, order, axis=1)
    names = classes[order]
    needs_review = pa.nulls(len(order), pa.bool_())
    if requested.min_probabilities is not None or requested.max_ood is not None:
        is_doubtful = np.zeros(len(order), bool)
        if requested.min_probabilities is not None:
            is_doubtful |= chances[:, 0] < requested.min_probabilities[order[:, 0]]
        if requested.max_ood is not None:
            is_doubtful |= ~(predicted.ood_score <= requested.max_ood)  # NaN is doubtful
        needs_review = pa.array(is_doubtful, mask=failed)
    columns: dict[str, object] = {
        "row_id": batch["row_id"],
        "status": images.status,
        "error": images.errors,
        "predicted_index": pa.array(order[:, 0], mask=failed),
        "class_name": pa.array(names[:, 0], mask=failed),
        "probability": pa.array(chances[:, 0], mask=failed),
        "width": images.widths,
        "height": images.heights,
        "ood_score": pa.array(predicted.ood_score, mask=failed | np.isnan(predicted.ood_score)),
        "needs_review": needs_review,
        "retries": batch["retries"],
    }
    if requested.embedding_size:
        values = pa.array(predicted.embeddings.ravel())
        columns[EMBEDDING] = pa.FixedSizeListArray.from_arrays(values, requested.embedding_size, mask=pa.array(failed))
    if requested.top_k:
        for field, values in zip(TOP_FIELDS, (order.tolist(), names.tolist(), chances.tolist()), strict=True):
            rows = zip(values, failed, strict=True)
            columns[field.name] = [None if without else value for value, without in rows]
    arrays = [_make_array(columns[field.name], field.type) for field in requested.fields]
    return pa.table(arrays, schema=pa.schema(requested.fields))


def _make_array(values: object, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)
