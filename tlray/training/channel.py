"""Messages between driver and workers while Ray Train runs: the task, its progress, the finished model."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import ray

from tlray.errors import TlrayError
from tlray.metrics.calibration import Calibration
from tlray.metrics.intervals import LossGain
from tlray.model.manifest import Architecture, EpochRecord

if TYPE_CHECKING:
    from tlray.features.build import Done
    from tlray.training.predictions import RowPredictions
    from tlray.training.task import BuildTask, TrainingTask

StageName = Literal["trial", "phase 1", "phase 2", "saving"]

ChannelHandle: TypeAlias = Any
"""Handle of a `Channel` actor, which Ray leaves untyped."""

_PROGRESS_INTERVAL_S = 0.5
_POLL_S = 0.2


@dataclass(frozen=True)
class Resumed:
    """A worker group goes on with a trial or with the training itself.

    Attributes:
        history: the epochs finished before.
        images: those that a begun epoch has taken.
        trial: number of the trial, from 1; 0 for the training itself.
    """

    history: list[EpochRecord]
    num_workers: int
    images: int = 0
    trial: int = 0


@dataclass(frozen=True)
class StageBegan:
    """A stage has begun."""

    name: StageName


@dataclass(frozen=True)
class ImagesTrained:
    """A number of images were trained or validated on since the last such event."""

    count: int


@dataclass(frozen=True)
class EpochEnded:
    """An epoch has ended, and its checkpoint is written."""

    record: EpochRecord


@dataclass(frozen=True)
class TrialEnded:
    """The first trial has ended.

    Attributes:
        gain: of phase 2 over phase 1 on the images that it held out; None if there is no phase 1.
        keeps: whether phase 2 is trained.
        images: number of images held out.
    """

    gain: LossGain | None
    keeps: bool
    images: int


@dataclass(frozen=True)
class PartSaved:
    """A checkpoint within an epoch is written, after this number of its images."""

    images: int


@dataclass(frozen=True)
class BuildRestarted:
    """A worker begins again with features that its lost predecessor had begun."""


@dataclass(frozen=True)
class ModelReady:
    """The finished model.

    Attributes:
        files: Ray reference to uint8 arrays by file name; in a list, so that Ray doesn't resolve it.
        architecture, calibration: as in `bundle.json`.
        history: records of all epochs; of a phase 2 that was not kept after its trial, those of the trial.
        kept: the epoch that became the model.
        predictions: Ray reference to predictions by role; also in a list.
        finetune_gain: of phase 2 over phase 1's best epoch on the validation images; None if not compared.
    """

    files: list[ray.ObjectRef[dict[str, npt.NDArray[np.uint8]]]]
    architecture: Architecture
    history: list[EpochRecord]
    kept: EpochRecord
    calibration: Calibration
    predictions: list[ray.ObjectRef[dict[str, RowPredictions]]]
    finetune_gain: LossGain | None


@dataclass(frozen=True)
class TrainedModel:
    """The model that rank 0 sent: `ModelReady` with its references fetched."""

    files: dict[str, bytes]
    architecture: Architecture
    kept: EpochRecord
    calibration: Calibration
    predictions: dict[str, RowPredictions]
    finetune_gain: LossGain | None = None


@dataclass(frozen=True)
class Failed:
    """A worker raised an error that a restart would not fix."""

    error: TlrayError


Event: TypeAlias = (
    Resumed | StageBegan | ImagesTrained | EpochEnded | TrialEnded | PartSaved | BuildRestarted | ModelReady | Failed
)


class Message(NamedTuple):
    """An event and the Unix time at which it was sent."""

    event: Event
    sent: float


@ray.remote(num_cpus=0)
class Channel:
    """An actor that outlives the workers and carries their messages; their prints do not reach the driver."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._closed = False
        self._save_asked = False
        self._task: TrainingTask | None = None
        self._build_task: BuildTask | None = None
        self._untaken: list[int] = []
        self._taken: dict[int, int] = {}
        self._done: list[Done] = []
        self._predictions: dict[int, dict[str, RowPredictions]] = {}
        self._controller: bytes | None = None

    def send(self, message: Message) -> None:
        """Append a message."""
        self._messages.put(message)

    def drain(self) -> list[Message]:
        """Remove and return all waiting messages."""
        return [self._messages.get() for _ in range(self._messages.qsize())]

    def put_task(self, task: TrainingTask) -> None:
        """Set the workers' task."""
        self._task = task

    def get_task(self) -> TrainingTask | None:
        """Return the task; None before it is known."""
        return self._task

    def put_build_task(self, task: BuildTask) -> None:
        """Set the features that workers compute while they wait for their task."""
        self._build_task, self._untaken, self._taken = task, list(reversed(task.indices)), {}

    def get_build_task(self) -> BuildTask | None:
        """Return the features to compute; None before they are known."""
        return self._build_task

    def take_index(self, rank: int) -> int | None:
        """Return an index for a worker to build, first the one that its predecessor left; None if none is left."""
        if rank in self._taken:
            self._messages.put(Message(BuildRestarted(), time.time()))
        elif self._untaken and self._build_task is not None and rank < self._build_task.num_builders:
            self._taken[rank] = self._untaken.pop()
        return self._taken.get(rank)

    def put_done(self, rank: int, index: int, done: Done) -> None:
        """Store what a worker has built; of an index that its rank has not taken, it is dropped."""
        if rank in self._taken and self._taken[rank] == index:
            del self._taken[rank]
            self._done.append(done)

    def drain_done(self) -> list[Done]:
        """Remove and return what workers have built since the last call."""
        done, self._done = self._done, []
        return done

    def put_controller(self, controller: bytes) -> None:
        """Set the handle of Ray Train's controller, pickled: to open it takes this process 3 s of a core."""
        self._controller = controller

    def get_controller(self) -> bytes | None:
        """Return the controller's pickled handle; None before it has started."""
        return self._controller

    def put_predictions(self, rank: int, predictions: dict[str, RowPredictions]) -> None:
        """Store a worker's predictions by role; those of its replacement overwrite them."""
        self._predictions[rank] = predictions

    def count_predicted(self) -> int:
        """Return the number of workers that have stored predictions."""
        return len(self._predictions)

    def get_predictions(self) -> dict[int, dict[str, RowPredictions]]:
        """Return the predictions by rank and role."""
        return self._predictions

    def ask_to_save(self) -> None:
        """Ask the workers for a checkpoint as soon as they can."""
        self._save_asked = True

    def take_save_request(self) -> bool:
        """Return whether a checkpoint was asked for since the last call."""
        asked, self._save_asked = self._save_asked, False
        return asked

    def close(self) -> None:
        """Tell the workers, also those that Ray Train starts later, that they are no longer needed."""
        self._closed = True

    def is_closed(self) -> bool:
        """Return whether the driver has received the model or has given up."""
        return self._closed


class WorkerReporter:
    """Reports a worker group's progress to the driver; ranks other than 0 send nothing."""

    def __init__(self, channel: ChannelHandle, rank: int) -> None:
        self._channel = channel
        self._rank = rank
        self._count = 0
        self._last = time.monotonic()

    def count(self, images: int) -> None:
        """Count images, and report them at most every half second."""
        self._count += images
        if time.monotonic() - self._last >= _PROGRESS_INTERVAL_S:
            self.report(ImagesTrained(self._count))
            self._count = 0
            self._last = time.monotonic()

    def report(self, event: Event) -> None:
        """Send an event from rank 0."""
        if self._rank == 0:
            send(self._channel, event)

    def wait_for_end(self) -> None:
        """Wait until the driver closes the channel."""
        while not ray.get(self._channel.is_closed.remote()):
            time.sleep(_POLL_S)


def send(channel: ChannelHandle, event: Event) -> None:
    """Send an event from any rank."""
    ray.get(channel.send.remote(Message(event, time.time())))
