"""Start Ray Train's workers from the driver, show their progress, and return the model or raise their error."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions

from tlray import storage
from tlray.cluster import capacity
from tlray.cluster.connect import explain_failure
from tlray.cluster.nodes import stay_here
from tlray.cluster.ray_private import (
    count_training_workers,
    get_train_snapshot_name,
    list_draining_nodes,
    make_controller_callback,
    remove_placement_groups,
    spare_helpers,
)
from tlray.cluster.resources import Cluster, choose_worker_threads, plan_workers
from tlray.cluster.term_signal import TermSignal
from tlray.config import TrainConfig
from tlray.console import Stage, say
from tlray.errors import StoppedError, TlrayError
from tlray.model.manifest import EpochRecord
from tlray.training import channel as channels
from tlray.training.task import BuildTask, TrainingTask, WorkerSettings

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from tlray.features.build import Done

_POLL_S = 0.25
_END_S = 60.0
_SILENCE_S = 30.0
_DRAINING_INTERVAL_S = 1.0
_TERM_S = 25.0
"""Longest wait for a checkpoint after SIGTERM; Kubernetes gives 30 s."""

TERMINATED = "training was stopped by SIGTERM; the same command continues after the last checkpoint"
_CONTROLLER_POLL_S = "0.5"
# every report waits for the controller's next poll; the default of 2 s is longer than an epoch on cached features


@dataclass
class Outcome:
    """The result of a training so far: `stages` by Unix time of their start, `starts` of the workers."""

    history: list[EpochRecord] = field(default_factory=list)
    model: channels.TrainedModel | None = None
    stages: dict[str, float] = field(default_factory=dict)
    starts: int = 0


class ChannelLostError(StoppedError):
    """The process that carries the messages of driver and workers has died."""


class Launch:
    """Starts the workers of one training, gives them their task, and follows them.

    On a local cluster without GPUs they may start before their task is known: they import TensorFlow while the driver
    reads images, and compute the frozen base of a few images. Elsewhere they would hold resources that engines need.
    """

    def __init__(self, config: TrainConfig, cluster: Cluster, checkpoints: str, num_lost: int = 0) -> None:
        """Start the channel, but no worker.

        Args:
            checkpoints: folder of this run's states.
            num_lost: number of launches that lost their channel before.
        """
        self._num_lost = num_lost
        self._config = config
        self._cluster = cluster
        self._checkpoints = checkpoints
        self._channel = channels.Channel.options(scheduling_strategy=stay_here()).remote()  # type: ignore[attr-defined]
        self._thread: threading.Thread | None = None
        self._failures: list[BaseException] = []
        self._controller: ActorHandle[Any] | None = None
        self._term = TermSignal(self._ask_to_save, "saving a checkpoint")
        self._draining: frozenset[str] = frozenset()
        self._looked_at = 0.0
        self.resources = plan_workers(cluster, config.num_workers, config.gpus_per_worker)
        self.may_start_early = cluster.local and not self.resources.gpus

    def start(self) -> None:
        """Start Ray Train in a thread."""
        trainer = self._make_trainer()

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                self._failures.append(error)

        self._thread = threading.Thread(target=fit, daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """Kill Ray Train's controller, and with it all workers; free what it had booked. Return whether it has ended.

        Its thread must end before this process leaves the cluster, or it would crash inside Ray. The process may also
        stay, as a notebook does, and train again.
        """
        deadline = time.monotonic() + _END_S
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._channel.close.remote())
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline:
            self._find_controller()
            with contextlib.suppress(ray.exceptions.RayError):
                if self._controller is not None:
                    ray.kill(self._controller)
            self._thread.join(_POLL_S)
        self._find_controller()
        with contextlib.suppress(ray.exceptions.RayError):
            if self._controller is not None:
                remove_placement_groups(self._controller)
        return self._thread is None or not self._thread.is_alive()

    def _count_restarts(self) -> int:
        """Return how often the workers may start again; -1 for no limit."""
        most = self._config.max_failures
        return most if most < 0 else max(0, most - self._num_lost)

    def _find_controller(self) -> None:
        """Remember Ray Train's controller once it has started, as long as the channel can tell."""
        if self._controller is None:
            with contextlib.suppress(ray.exceptions.RayError):
                if (pickled := ray.get(self._channel.get_controller.remote())) is not None:
                    self._controller = ray.cloudpickle.loads(pickled)

    def build(self, task: BuildTask) -> Iterator[Done]:
        """Let the workers compute features while they wait for their task; yield one `Done` a shard.

        Raises:
            ChannelLostError: another launch may compute what is missing.
            TlrayError: a worker's error; StoppedError if anything else ended the workers.
        """
        if self._thread is None:
            self.start()
        assert self._thread is not None
        try:
            ray.get(self._channel.put_build_task.remote(task))
            num_left, said = len(task.indices), 0.0
            while num_left:
                alive = self._thread.is_alive()
                self._find_controller()
                for message in ray.get(self._channel.drain.remote()):
                    if isinstance(message.event, channels.Failed):
                        raise message.event.error
                    if isinstance(message.event, channels.BuildRestarted) and message.sent - said > _SILENCE_S:
                        said = message.sent
                        say("workers were lost; new ones go on computing the frozen base")
                for done in ray.get(self._channel.drain_done.remote()):
                    num_left -= 1
                    yield done
                if not alive and num_left:
                    raise _explain_end(self._failures)
                self._thread.join(_POLL_S)
        except ray.exceptions.RayError as error:
            raise ChannelLostError(str(explain_failure(error, "computing the frozen base"))) from error

    def run(self, task: TrainingTask, check_lock: Callable[[], None], outcome: Outcome) -> None:
        """Give the workers their task and wait for the model; `outcome` gets what they tell.

        Raises:
            ChannelLostError: another launch may go on after the last checkpoint.
            TlrayError: a worker's error, or that of `check_lock`; StoppedError if anything else ended the training.
        """
        try:
            self._run(task, check_lock, outcome)
        except ray.exceptions.RayError as error:  # of the channel: those of workers come by Ray Train's thread
            if self._term.received:  # Ray's processes end at SIGTERM too, where a whole group gets it
                raise StoppedError(TERMINATED) from error
            raise ChannelLostError(str(explain_failure(error, "training"))) from error

    def _run(self, task: TrainingTask, check_lock: Callable[[], None], outcome: Outcome) -> None:
        if self._thread is None:
            self.start()
        ray.get(self._channel.put_task.remote(task))
        counts = [len(rows) for rows in (task.train_rows, task.val_rows)]
        where = "GPUs" if self.resources.gpus else "CPUs"
        if self.resources.gpus and not self._config.allow_cpu:
            where += ", gradients summed by NCCL,"
        say(
            f"training on {counts[0]:,} images, validating on {counts[1]:,}; {self._config.num_workers} workers of "
            f"{task.batch_size} images a step, on {where} in {task.precision.step}"
        )
        assert self._thread is not None

        def check() -> None:
            check_lock()
            self._find_controller()
            self._save_before_preemption()

        epochs = sum(phase.epochs for phase in task.phases)
        with self._term:
            watch = _TrainingMonitor(outcome, epochs, sum(counts), self._check_room, check, self._term)
            watch.run(self._thread, self._failures, self._channel)
        self.close()

    def _ask_to_save(self) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the workers go on after the last checkpoint
            ray.get(self._channel.ask_to_save.remote())

    def _save_before_preemption(self) -> None:
        """Ask for a checkpoint when a machine is about to be taken away."""
        if self._cluster.local or time.monotonic() - self._looked_at < _DRAINING_INTERVAL_S:
            return
        self._looked_at = time.monotonic()
        with contextlib.suppress(Exception):  # the cluster's head may be busy
            draining = list_draining_nodes()
            if draining - self._draining:
                say("a machine is about to be taken away: saving a checkpoint")
                self._ask_to_save()
            self._draining = draining

    def _check_room(self, silent_s: float) -> None:
        """Say if lost workers find no room to restart; Ray Train retries forever without a message.

        Args:
            silent_s: seconds since the workers' last message.

        Raises:
            StoppedError: they found none within --wait-for-resources.
        """
        if self._cluster.local or count_training_workers() >= self._config.num_workers:
            return
        workers, resources = self._config.num_workers, self.resources
        readers = workers * resources.num_readers * resources.reader_cpus
        all_cpus = workers * resources.worker_cpus + readers
        demand = capacity.Demand(f"--num-workers {workers}", workers, resources.worker_cpus, resources.gpus, all_cpus)
        rooms = capacity.list_node_resources()
        if capacity.has_room(rooms, demand):
            return
        wait_s = capacity.choose_wait(self._config.wait_for_resources, growing=capacity.is_growing())
        has = capacity.describe_resources(rooms, gpus=resources.gpus > 0)
        if silent_s > wait_s:
            raise StoppedError(
                f"workers were lost, and there is no room for new ones: {demand.option} needs {demand}; {has}; the "
                "same command goes on after the last checkpoint, with fewer --num-workers too"
            )
        say(f"workers were lost; waiting for room for new ones, {demand}: {has}; {wait_s - silent_s:.0f} s left")

    def _make_trainer(self) -> DataParallelTrainer:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _CONTROLLER_POLL_S)
        # a worker that is there but answers nothing may be missed at a report too, where Ray Train waits without end
        for name in ("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"):
            os.environ[name] = str(self._config.collective_timeout)
        if self._cluster.local:  # this machine is not preempted, and the watcher is one more process
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        from tlray.training.ray_train import MultiWorkerConfig, run_worker

        config, resources = self._config, self.resources
        filesystem, path = storage.make_arrow_filesystem(self._checkpoints)
        # Ray Train's own snapshot may be half written after a kill; workers find their state without it
        storage.delete(storage.join(self._checkpoints, get_train_snapshot_name()))
        settings = WorkerSettings(
            channel=self._channel,
            checkpoints=self._checkpoints,
            num_threads=choose_worker_threads(self._cluster, config.num_workers, resources),
            collective_timeout_s=config.collective_timeout,
            options=storage.get_options(),
            allow_cpu=config.allow_cpu,
        )
        trainer = DataParallelTrainer(
            run_worker,
            train_loop_config={"settings": settings},
            backend_config=MultiWorkerConfig(),
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=resources.gpus > 0,
                # GPUs of one machine reduce fastest; cores of one machine share its memory bandwidth
                placement_strategy="PACK" if resources.gpus else "SPREAD",
                resources_per_worker={"CPU": resources.worker_cpus}
                | ({"GPU": resources.gpus} if resources.gpus else {}),
            ),
            run_config=RunConfig(
                name=path.rpartition("/")[2],
                storage_path=path.rpartition("/")[0],
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=self._count_restarts()),
                callbacks=[make_controller_callback(self._channel)],
            ),
        )
        if self._cluster.local:
            spare_helpers(trainer)
        return trainer


class _TrainingMonitor:
    """Collects and prints the workers' messages while Ray Train runs in its thread."""

    def __init__(
        self,
        outcome: Outcome,
        epochs: int,
        images_an_epoch: int,
        check_room: Callable[[float], None],
        check: Callable[[], None],
        term: TermSignal,
    ) -> None:
        """Make the monitor; `check` is called at every look, and may raise."""
        self._term = term
        self._check_room = check_room
        self._check = check
        self._epochs = epochs
        self._images_an_epoch = images_an_epoch
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
        with Stage("train", self._epochs * self._images_an_epoch) as stage:
            while self._outcome.model is None:
                alive = thread.is_alive()
                self._check()
                self._note_term()
                for message in ray.get(channel.drain.remote()):
                    self._take(message.event, message.sent, stage)
                    heard = looked = time.monotonic()
                if time.monotonic() - looked > _SILENCE_S:
                    looked = time.monotonic()
                    self._check_room(looked - heard)
                if self._failure is not None:  # Ray Train would retry it
                    raise self._failure
                self._check_term()
                if not alive and self._outcome.model is None:
                    raise _explain_end(failures)
                thread.join(_POLL_S)

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
            case channels.Resumed(history, num_workers, images):
                outcome.starts += 1
                outcome.history = list(history)
                stage.move_to(len(history) * self._images_an_epoch + images)
                self._say_start(len(history), images, num_workers, stage)
            case channels.StageBegan(name):
                outcome.stages.setdefault(name, sent)
            case channels.EpochEnded(record):
                outcome.history.append(record)
                self._has_saved = True
                self._say_epoch(record, stage)
            case channels.PartSaved(images):
                self._has_saved = True
                stage.say(f"checkpoint: {images:,} images of epoch {len(outcome.history) + 1}")
            case channels.ModelReady():
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

    def _say_start(self, epochs: int, images: int, num_workers: int, stage: Stage) -> None:
        resumed = f"after epoch {epochs}" if epochs else "from the beginning"
        if images:
            resumed = f"after {images:,} images of epoch {epochs + 1}"
        if self._outcome.starts > 1:
            stage.say(f"workers were lost; {num_workers} new ones go on {resumed}")
        elif epochs or images:
            stage.say(f"an earlier run was stopped; going on {resumed} with {num_workers} workers")

    def _say_epoch(self, record: EpochRecord, stage: Stage) -> None:
        val = ""
        if record.val_loss is not None:
            val = f", val loss {record.val_loss:.4f} accuracy {record.val_accuracy:.4f}"
        stage.say(
            f"epoch {record.epoch}/{self._epochs} ({record.phase}): loss {record.loss:.4f} "
            f"accuracy {record.accuracy:.4f}{val}  {record.seconds:.1f} s"
        )


def _explain_end(failures: list[BaseException]) -> TlrayError:
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
