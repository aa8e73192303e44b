"""Inputs and outputs of every engine, and the batches in which it computes."""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tlray.model.precision import FloatName

_TIMED_RUNS = 5


@dataclass(frozen=True)
class Form:
    """The form in which an engine computes.

    Attributes:
        precision: input type of convolutions and products.
        threads: threads on a CPU; None lets the library choose.
        library: that computes; OpenVINO on CPUs only.
        xla: True if XLA compiles TensorFlow's graph; tried on GPUs only, since it was no faster on CPUs.
        note: faults of the faster forms that were tried.
    """

    precision: FloatName
    device: Literal["CPU", "GPU"]
    threads: int | None = None
    library: Literal["OpenVINO", "TensorFlow"] = "TensorFlow"
    xla: bool = False
    note: str = ""

    def __str__(self) -> str:
        threads = f" on {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else f" on a {self.device}"
        extra = ", XLA" if self.xla else ", OpenVINO" if self.library == "OpenVINO" else ""
        return f"{self.precision}{extra}{threads}{f' ({self.note})' if self.note else ''}"


class Predictions(NamedTuple):
    """Predictions of an engine for N images, all float32.

    Attributes:
        probabilities: `[N, C]`, calibrated.
        ood_score: `[N]`; None if the bundle has no reference features.
        embeddings: `[N, D]`, pooled features; None if the model gives none.
    """

    probabilities: npt.NDArray[np.float32]
    ood_score: npt.NDArray[np.float32] | None
    embeddings: npt.NDArray[np.float32] | None


class Engine(abc.ABC):
    """A loaded network that predicts batches of decoded images; its first prediction takes longer.

    Smaller batches are padded to the batch size, so that a library tunes itself to one shape.

    Args:
        folder: of the network's files.
        image_size_px: side S of the network's input.
        batch_size: images of a whole batch.
        form: to compute in.
    """

    FAILURES: ClassVar[tuple[type[Exception], ...]]
    """Errors of a network that the library cannot open or run."""

    def __init__(self, folder: Path, image_size_px: int, batch_size: int, form: Form) -> None:
        self.form = form
        self._batch_size = batch_size
        self._pixels = np.zeros((batch_size, image_size_px, image_size_px, 3), np.uint8)

    @abc.abstractmethod
    def _run(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        """Predict a whole batch."""

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        """Predict uint8 images `[N, S, S, 3]`; N is 1 or more."""
        parts = [
            _take(self._run_padded(pixels[start : start + self._batch_size]), len(pixels) - start)
            for start in range(0, len(pixels), self._batch_size)
        ]
        return parts[0] if len(parts) == 1 else _join(parts)

    def predict_golden(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probabilities `[N, C]` of a few images."""
        return self.predict(pixels).probabilities

    def time_batch(self) -> float:
        """Return the seconds of a batch, the least of a few runs."""
        seconds = []
        for _ in range(_TIMED_RUNS):
            began = time.perf_counter()
            self._run_padded(self._pixels)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    def _run_padded(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        if len(pixels) < self._batch_size:
            self._pixels[: len(pixels)] = pixels
            pixels = self._pixels
        return self._run(pixels)


def _take(predictions: Predictions, count: int) -> Predictions:
    probabilities, *others = predictions
    return Predictions(probabilities[:count], *(None if values is None else values[:count] for values in others))


def _join(parts: Sequence[Predictions]) -> Predictions:
    ood_score = [part.ood_score for part in parts if part.ood_score is not None]
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Predictions(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate(ood_score) if ood_score else None,
        np.concatenate(embeddings) if embeddings else None,
    )
