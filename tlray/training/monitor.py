"""Follow Ray Train's workers: print what they tell, keep their history, and explain their end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ray
import ray.exceptions

from tlray.cluster.connect import explain_failure
from tlray.cluster.term_signal import TermSignal
from tlray.console import Stage
from tlray.errors import StoppedError, TlrayError
from tlray.model.manifest import EpochRecord
from tlray.training import channel as channels
from tlray.training.task import PhasePlan, TrainingTask

POLL_S = 0.25
"""Interval at which workers are looked at."""

SILENCE_S = 30.0
"""Seconds without a message after which a loss of workers is said."""

TERMINATED = "training was stopped by SIGTERM; the same command continues after the last checkpoint"
_TERM_S = 25.0
"""Longest wait for a checkpoint after SIGTERM; Kubernetes gives 30 s."""


@dataclass
class Outcome:
    """The result of a training so far: `stages` by Unix time of their start, `starts` of the workers."""

    history: list[EpochRecord] = field(default_factory=list)
    model: channels.TrainedModel | None = None
    stages: dict[str, float] = field(default_factory=dict)
    starts: int = 0


@dataclass(frozen=True)
class Course:
    """The epochs of a training or of a trial, and the images of each, validation included."""

    epochs: int
    images: int

    @property
    def total(self) -> int:
        """Images of all epochs."""
        return self.epochs * self.images


def plan_course(task: TrainingTask, phases: Sequence[PhasePlan], *, is_trial: bool = False) -> Course:
    """Return the course of some phases of a task, without its trials, or of a trial, which validates no epoch."""
    images = len(task.train_rows) + (0 if is_trial else len(task.val_rows))
    return Course(sum(phase.epochs for phase in phases), images)


class TrainingMonitor:
    """Collects and prints the workers' messages while Ray Train runs in its thread."""

    def __init__(
        self,
        outcome: Outcome,
        task: TrainingTask,
        check_room: Callable[[float], None],
        check: Callable[[], None],
        term: TermSignal,
    ) -> None:
        """Make the monitor; `check` is called at every look, and may raise."""
        self._term = term
        self._check_room = check_room
        self._check = check
        self._task = task
        self._course = plan_course(task, task.phases)
        self._trials = [plan_course(trial, trial.phases, is_trial=True) for trial in task.trials]
        self._in_trial = 0  # its number, from 1
        self._num_ended = 0
        self._outcome = outcome
        self._failure: TlrayError | None = None
        self._has_saved = False
        self._terminated_at: float | None = None

    def run(self, thread: threading.Thread, failures: list[BaseException], channel: channels.ChannelHandle) -> None:
        """Fill the outcome until the model has come; `thread` runs Ray Train and adds its error to `failures`.

        Raises:
            TlrayError: as `Launch.run`.
        """
        heard = looked = time.monotonic()
        with Stage("train", self._count_tried() + self._course.total) as stage:
            while self._outcome.model is None:
                alive = thread.is_alive()
                self._check()
                self._note_term()
                for message in ray.get(channel.drain.remote()):
                    self._take(message.event, message.sent, stage)
                    heard = looked = time.monotonic()
                if time.monotonic() - looked > SILENCE_S:
                    looked = time.monotonic()
                    self._check_room(looked - heard)
                if self._failure is not None:  # Ray Train would retry it
                    raise self._failure
                self._check_term()
                if not alive and self._outcome.model is None:
                    raise explain_end(failures)
                thread.join(POLL_S)

    def _note_term(self) -> None:
        """Remember when SIGTERM came; checkpoints from now on may have been asked for by it."""
        if self._term.received and self._terminated_at is None:
            self._terminated_at, self._has_saved = time.monotonic(), False

    def _check_term(self) -> None:
        """Raise `StoppedError` after SIGTERM, once a checkpoint is written or needless, or none has come for long."""
        if self._terminated_at is None:
            return
        needless = self._outcome.starts == 0 or "saving" in self._outcome.stages
        if self._has_saved or needless or time.monotonic() - self._terminated_at > _TERM_S:
            raise StoppedError(TERMINATED)

    def _take(self, event: channels.Event, sent: float, stage: Stage) -> None:
        outcome = self._outcome
        match event:
            case channels.ImagesTrained(count):
                stage.advance(count)
            case channels.Resumed():
                self._resume(event, stage)
            case channels.StageBegan(name):
                outcome.stages.setdefault(name, sent)
            case channels.EpochEnded(record):
                if not self._in_trial:
                    outcome.history.append(record)
                self._num_ended += 1
                self._has_saved = True
                self._say_epoch(record, stage)
            case channels.TrialEnded():
                _say_trial(event, stage)
                if not event.keeps:
                    self._trials = self._trials[:1]
                    self._course = plan_course(self._task, [one for one in self._task.phases if one.name == "head"])
                    stage.set_total(self._count_tried() + self._course.total)
            case channels.PartSaved(images):
                self._has_saved = True
                whose = f" of {self._name_trial(self._in_trial)}" if self._in_trial else ""
                stage.say(f"checkpoint: {images:,} images of epoch {self._num_ended + 1}{whose}")
            case channels.ModelReady():
                outcome.history = list(event.history)
                outcome.model = self._fetch_model(event)
            case channels.Failed(error):
                self._failure = error

    def _fetch_model(self, model: channels.ModelReady) -> channels.TrainedModel | None:
        """Fetch the model's files; None if their worker has died, since its replacement sends them again."""
        try:
            files, predictions = ray.get([model.files[0], model.predictions[0]])
        except ray.exceptions.RayError:
            return None
        contents = {name: data.tobytes() for name, data in files.items()}
        return channels.TrainedModel(
            contents, model.architecture, model.kept, model.calibration, predictions, model.finetune_gain
        )

    def _resume(self, event: channels.Resumed, stage: Stage) -> None:
        """Note where workers go on: new ones, or after their trial."""
        epochs, images = len(event.history), event.images
        follows_trial = bool(self._trials) and event.trial != 1
        self._in_trial, self._num_ended = event.trial, epochs
        course = self._trials[event.trial - 1] if event.trial else self._course
        stage.move_to(self._count_tried(event.trial - 1 if event.trial else None) + epochs * course.images + images)
        if not event.trial:
            self._outcome.history = list(event.history)
        if not follows_trial:
            self._outcome.starts += 1
        whose = f" of {self._name_trial(event.trial)}" if event.trial else ""
        resumed = f"after epoch {epochs}{whose}" if epochs else "from the beginning"
        if images:
            resumed = f"after {images:,} images of epoch {epochs + 1}{whose}"
        if self._outcome.starts > 1 and not (follows_trial and not epochs and not images):
            stage.say(f"workers were lost; {event.num_workers} new ones go on {resumed}")
        elif epochs or images:
            stage.say(f"an earlier run was stopped; going on {resumed} with {event.num_workers} workers")

    def _count_tried(self, num_trials: int | None = None) -> int:
        """Return the images of the first trials, of all by default."""
        return sum(course.total for course in self._trials[:num_trials])

    def _name_trial(self, number: int) -> str:
        return f"trial {number}" if len(self._trials) > 1 else "the trial"

    def _say_epoch(self, record: EpochRecord, stage: Stage) -> None:
        val = ""
        if record.val_loss is not None:
            val = f", val loss {record.val_loss:.4f} accuracy {record.val_accuracy:.4f}"
        course = self._trials[self._in_trial - 1] if self._in_trial else self._course
        named = f"epoch {record.epoch}/{course.epochs}"
        if self._in_trial:
            named = f"{self._name_trial(self._in_trial).removeprefix('the ')}, {named}"
        stage.say(
            f"{named} ({record.phase}): loss {record.loss:.4f} "
            f"accuracy {record.accuracy:.4f}{val}  {record.seconds:.1f} s"
        )


def _say_trial(event: channels.TrialEnded, stage: Stage) -> None:
    if event.gain is not None:
        change = "saves" if event.gain.mean > 0 else "adds"
        decision = "phase 2 is trained on all images" if event.keeps else "phase 2 is left out"
        gain = f"{change} {abs(event.gain.mean):.3f} of log-loss"
        stage.say(f"trial: phase 2 {gain} on {event.images:,} images held out; {decision}")


def explain_end(failures: list[BaseException]) -> TlrayError:
    """Return why Ray Train has ended before the model has come."""
    if not failures:
        return StoppedError("training stopped without a model; run the same command to resume")
    reason = _explain(failures[0])
    reason.__cause__ = failures[0]
    return reason


def _explain(error: BaseException) -> TlrayError:
    """Return the error that came first: when one worker fails, the others fail at their next sum."""
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    causes: list[BaseException] = [error]
    if isinstance(error, WorkerGroupError):
        causes = list(error.worker_failures.values())
    elif isinstance(error, ControllerError):
        causes = [error.controller_failure]
    reasons = [explain_failure(cause, "training") for cause in causes]
    return next((reason for reason in reasons if type(reason) is not StoppedError), reasons[0])
