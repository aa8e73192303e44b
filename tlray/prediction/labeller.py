"""The engine's process: batches of pixels -> answers by `ANSWER_FIELDS`; whatever goes wrong stays with its row."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from tlray.bundle import unpack
from tlray.errors import Code, StoppedError
from tlray.lean import import_tensorflow
from tlray.prediction.dispatcher import MAX_TRIES
from tlray.prediction.schema import ANSWER_FIELDS, TOP_FIELDS
from tlray.reader import OK

Batch = dict[str, npt.NDArray[Any]]

UNKNOWN = -1
"""A width or height that is not known, where a batch can hold no null."""


class Labeller:
    """One engine in one process.

    Args:
        files: what inference needs of the bundle, by name; in a list, so that Ray doesn't tie restarts to it.
        classes: names by index.
        image_size_px: side of the square input.
        batch_size: images in one step of the engine.
        num_threads: TensorFlow's; None on GPUs.
        num_engines: how many of these the run has.
        top_k: how many classes to list beside the first.
        dispatcher: the run's `Dispatcher`.
    """

    def __init__(
        self,
        files: list[ray.ObjectRef[dict[str, bytes]]],
        classes: tuple[str, ...],
        image_size_px: int,
        batch_size: int,
        num_threads: int | None,
        num_engines: int,
        top_k: int,
        dispatcher: list[Any],
    ) -> None:
        self._dispatcher = dispatcher[0]
        ray.get(self._dispatcher.start_engine.remote(num_engines))
        import_tensorflow()
        from tlray.engine import Engine

        self._classes = np.array(classes, object)
        self._top_k = top_k
        self._fields = ANSWER_FIELDS + (TOP_FIELDS if top_k else [])
        with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
            unpack(ray.get(files[0]), Path(folder))
            self._engine = Engine(Path(folder, "saved_model"), image_size_px, batch_size, num_threads=num_threads)

    def __call__(self, batch: Batch) -> pa.Table:
        """Answer a batch as the reading stage made it."""
        key = ("batch", int(batch["row_id"][0]))
        tries: int | None = ray.get(self._dispatcher.start_batch.remote(key))
        if tries is None:
            return self._make_table({field.name: [] for field in self._fields})
        status = batch["status"].astype(object)
        error = batch["error"].astype(object)
        readable = np.flatnonzero(status == OK)
        pixels = batch["image"] if len(readable) == len(status) else batch["image"][readable]
        probabilities = None if tries else self._try_predict(pixels)
        if probabilities is None:
            probabilities = self._predict_one_by_one(key, batch["row_id"][readable], pixels, readable, status, error)
        wrong = readable[~np.isfinite(probabilities).all(axis=1)]
        unexplained = wrong[status[wrong] == OK]
        status[unexplained] = Code.MODEL_ERROR.value
        error[unexplained] = "the model answered with a number that is not finite"
        self._dispatcher.leave.remote(key)
        return self._make_answers(batch, status, error, probabilities[status[readable] == OK])

    def _try_predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32] | None:
        """Probabilities, None where the engine failed on some image among these."""
        try:
            return self._engine.predict(np.ascontiguousarray(pixels))
        except Exception:  # whatever TensorFlow raises: the rows are tried one by one
            return None

    def _predict_one_by_one(
        self,
        key: tuple[str, int],
        row_ids: npt.NDArray[np.int64],
        pixels: npt.NDArray[np.uint8],
        readable: npt.NDArray[np.int64],
        status: npt.NDArray[np.object_],
        error: npt.NDArray[np.object_],
    ) -> npt.NDArray[np.float32]:
        """Probabilities `[N, C]`, NaN for a row that the engine fails or dies on, whose status says so."""
        answers = np.full((len(pixels), len(self._classes)), np.nan, np.float32)
        failures: list[Exception] = []
        for index, row_id in enumerate(row_ids):
            if ray.get(self._dispatcher.suspect.remote(key, int(row_id))) >= MAX_TRIES:
                status[readable[index]] = Code.CRASHED.value
                error[readable[index]] = f"the model's process died on it {MAX_TRIES} times"
                continue
            try:
                answers[index] = self._engine.predict(np.ascontiguousarray(pixels[index : index + 1]))[0]
            except Exception as failure:
                failures.append(failure)
                status[readable[index]] = Code.MODEL_ERROR.value
                error[readable[index]] = f"the model failed: {type(failure).__name__}"
        if len(failures) == len(pixels) > 1:
            told = " ".join(str(failures[0]).split())[:200]
            raise StoppedError(
                f"the model fails on every image of a batch ({type(failures[0]).__name__}: {told}); "
                "where memory is short, a smaller --batch-size takes less"
            )
        return answers

    def _make_answers(
        self,
        batch: Batch,
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
            "retries": batch["retries"],
        }
        if self._top_k:
            tops: list[list[Any]] = [[None] * count for _ in range(3)]
            for position, row in enumerate(answered):
                tops[0][row] = order[position].tolist()
                tops[1][row] = self._classes[order[position]].tolist()
                tops[2][row] = chances[position].tolist()
            columns |= dict(zip((field.name for field in TOP_FIELDS), tops, strict=True))
        return self._make_table(columns)

    def _make_table(self, columns: dict[str, Any]) -> pa.Table:
        arrays = [pa.array(columns[field.name], field.type) for field in self._fields]
        return pa.table(arrays, schema=pa.schema(self._fields))


def _null_unknown(values: npt.NDArray[np.int32]) -> list[int | None]:
    return [None if value == UNKNOWN else int(value) for value in values]
