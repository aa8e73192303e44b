"""Ray Train's side of a training on the driver: start the workers, show what they send, end with what went wrong."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tlray import storage
from tlray.cluster.ray_private import count_training_workers, get_train_snapshot_name, make_controller_callback
from tlray.cluster.resources import Cluster, plan_workers
from tlray.config import TrainConfig, describe_run
from tlray.console import Stage, say
from tlray.errors import StoppedError, TlrayError
from tlray.training.dataset import Images

if TYPE_CHECKING:
    from tlray.training.task import TrainingTask

_POLL_S = 0.25
_END_S = 60.0
_SILENCE_S = 30.0
_CONTROLLER_POLL_S = "0.5"
# a report waits for the controller's next look, 2 s apart by default: longer than an epoch on cached features


@dataclass
class Outcome:
    """What the workers sent.

    Attributes:
        history: one record an epoch.
        model: files, architecture and the kept epoch's record.
        stages: when each stage began, seconds since the epoch.
        starts: how often the workers were started.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] | None = None
    stages: dict[str, float] = field(default_factory=dict)
    starts: int = 0


class Launch:
    """The workers of one training: started, told what to do, watched.

    On a local cluster without GPUs they may start before their task is known: they import TensorFlow and connect while
    the driver reads images and engines compute the frozen base. Elsewhere they would hold what the engines need.
    """

    def __init__(self, config: TrainConfig, cluster: Cluster, checkpoints: str) -> None:
        """Start nothing yet.

        Args:
            config, cluster: the training, and where.
            checkpoints: folder of this run's states.
        """
        from tlray.cluster.nodes import stay_here
        from tlray.training.channel import Channel

        self._config = config
        self._cluster = cluster
        self._checkpoints = checkpoints
        self._channel = Channel.options(scheduling_strategy=stay_here()).remote()  # type: ignore[attr-defined]
        self._thread: threading.Thread | None = None
        self._failures: list[BaseException] = []
        self.resources = plan_workers(cluster, config.num_workers, config.gpus_per_worker)
        self.may_start_early = cluster.local and not self.resources.gpus

    def start(self) -> None:
        """Let Ray Train start the workers."""
        trainer = self._make_trainer()

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                self._failures.append(error)

        self._thread = threading.Thread(target=fit, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End Ray Train, and with its controller all workers; nothing that they do is needed any more.

        Its thread must have ended before this process leaves the cluster: it would crash inside Ray.
        """
        import ray
        import ray.exceptions

        deadline = time.monotonic() + _END_S
        with contextlib.suppress(ray.exceptions.RayError):  # with the channel gone, no worker waits at it
            ray.get(self._channel.close.remote())
            while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline:
                controller = ray.get(self._channel.get_controller.remote())
                if controller is not None:
                    ray.kill(controller)
                self._thread.join(_POLL_S)

    def run(self, task: TrainingTask) -> Outcome:
        """Give the workers their task and watch until the model is there.

        Raises:
            TlrayError: what a worker raised; StoppedError for anything else that ended training.
        """
        import ray

        if self._thread is None:
            self.start()
        ray.get(self._channel.put_task.remote(task))
        counts = [len(rows) for rows in (task.train_rows, task.val_rows)]
        say(
            f"training on {counts[0]:,} images, validating on {counts[1]:,}; {self._config.num_workers} workers of "
            f"{task.batch_size} images a step, on {'GPUs' if self.resources.gpus else 'CPUs'} in {task.precision.step}"
        )
        assert self._thread is not None
        watch = _TrainingMonitor(sum(phase.epochs for phase in task.phases), sum(counts), self._check_room)
        outcome = watch.run(self._thread, self._failures, self._channel)
        self.close()
        return outcome

    def _check_room(self, silent_s: float) -> None:
        """Say so where lost workers find no room to start again, which Ray Train tries without end and a word.

        Args:
            silent_s: seconds since a worker was last heard of.

        Raises:
            StoppedError: they found none for as long as a job waits for room.
        """
        from tlray.cluster.capacity import (
            Demand,
            choose_wait,
            describe_resources,
            has_room,
            is_growing,
            list_node_resources,
        )

        if self._cluster.local or count_training_workers() >= self._config.num_workers:
            return
        workers, resources = self._config.num_workers, self.resources
        readers = workers * resources.num_readers * resources.reader_cpus
        all_cpus = workers * resources.worker_cpus + readers
        demand = Demand(f"--num-workers {workers}", workers, resources.worker_cpus, resources.gpus, all_cpus)
        rooms = list_node_resources()
        if has_room(rooms, demand):
            return
        wait_s = choose_wait(self._config.wait_for_resources, growing=is_growing())
        has = describe_resources(rooms, gpus=resources.gpus > 0)
        if silent_s > wait_s:
            raise StoppedError(
                f"workers were lost, and there is no room for new ones: {demand.option} needs {demand}; {has}; the "
                "same command goes on behind the last epoch, with fewer --num-workers too"
            )
        say(f"workers were lost; waiting for room for new ones, {demand}: {has}; {wait_s - silent_s:.0f} s left")

    def _make_trainer(self) -> Any:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _CONTROLLER_POLL_S)
        if self._cluster.local:  # nobody takes this machine away with notice, and the watcher is one more process
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        from tlray.training.ray_train import MultiWorkerConfig, run_worker
        from tlray.training.task import WorkerSettings

        config, resources = self._config, self.resources
        filesystem, path = storage.make_arrow_filesystem(self._checkpoints)
        # Ray Train's own notes, which a kill may have left half written; workers find their state without them
        storage.delete(storage.join(self._checkpoints, get_train_snapshot_name()))
        setting = WorkerSettings(
            channel=self._channel,
            checkpoints=self._checkpoints,
            num_threads=int(self._cluster.cpus) if self._cluster.local else max(1, int(resources.worker_cpus)),
            collective_timeout_s=config.collective_timeout,
        )
        return DataParallelTrainer(
            run_worker,
            train_loop_config={"setting": setting},
            backend_config=MultiWorkerConfig(),
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=resources.gpus > 0,
                # GPUs of one machine sum fastest; cores of one machine share its memory's bandwidth
                placement_strategy="PACK" if resources.gpus else "SPREAD",
                resources_per_worker={
                    "CPU": resources.worker_cpus,
                    **({"GPU": resources.gpus} if resources.gpus else {}),
                },
            ),
            run_config=RunConfig(
                name=path.rpartition("/")[2],
                storage_path=path.rpartition("/")[0],
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=config.max_failures),
                callbacks=[make_controller_callback(self._channel)],
            ),
        )


def name_run(config: TrainConfig, images: Images) -> str:
    """Folder of a run's checkpoints: the same for every command that may go on with them."""
    from tlray.model.bundle import hash_json

    fingerprint = hash_json({**describe_run(config), "images": images.fingerprint})
    return storage.join(storage.resolve(config.resolved_storage_path), f"run-{fingerprint[:16]}")


class _TrainingMonitor:
    """Shows what the workers send while Ray Train runs in its thread."""

    def __init__(self, epochs: int, images_an_epoch: int, check_room: Callable[[float], None]) -> None:
        self._check_room = check_room
        self._epochs = epochs
        self._images_an_epoch = images_an_epoch
        self._outcome = Outcome()
        self._failure: TlrayError | None = None

    def run(self, thread: threading.Thread, failures: list[BaseException], channel: Any) -> Outcome:
        """Until the model is there.

        Args:
            thread: runs Ray Train.
            failures: what it raised.
            channel: where workers send to.

        Raises:
            TlrayError: as `Launch.run`.
        """
        import ray

        heard = looked = time.monotonic()
        with Stage("train", self._epochs * self._images_an_epoch) as stage:
            while self._outcome.model is None:
                alive = thread.is_alive()
                for message in ray.get(channel.drain.remote()):
                    self._take(message.kind, message.body, message.sent, stage)
                    heard = looked = time.monotonic()
                if time.monotonic() - looked > _SILENCE_S:
                    looked = time.monotonic()
                    self._check_room(looked - heard)
                if self._failure is not None:  # Ray Train would try again what cannot succeed
                    raise self._failure
                if not alive and self._outcome.model is None:
                    if failures:
                        raise _explain(failures[0]) from failures[0]
                    raise StoppedError("training stopped without a model; the same command goes on from the last epoch")
                thread.join(_POLL_S)
        return self._outcome

    def _take(self, kind: str, body: dict[str, Any], sent: float, stage: Stage) -> None:
        outcome = self._outcome
        if kind == "images":
            stage.advance(body["count"])
        elif kind == "resumed":
            outcome.starts += 1
            outcome.history = list(body["history"])
            stage.move_to(len(outcome.history) * self._images_an_epoch)
            self._say_start(len(outcome.history), body["num_workers"], stage)
        elif kind == "stage":
            outcome.stages.setdefault(body["name"], sent)
        elif kind == "epoch":
            outcome.history.append(body)
            self._say_epoch(body, stage)
        elif kind == "model":
            outcome.model = self._fetch_model(body)
        elif kind == "failed":
            self._failure = body["error"]

    def _fetch_model(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """Its files' bytes; None where their worker has died meanwhile: another one will send them again."""
        import ray
        import ray.exceptions

        try:
            files, predictions = ray.get([body["files"][0], body["predictions"][0]])
        except ray.exceptions.RayError:
            return None
        return {**body, "predictions": predictions, "files": {name: data.tobytes() for name, data in files.items()}}

    def _say_start(self, epochs: int, num_workers: int, stage: Stage) -> None:
        behind = f"behind epoch {epochs}" if epochs else "from the beginning"
        if self._outcome.starts > 1:
            stage.say(f"workers were lost; {num_workers} new ones go on {behind}")
        elif epochs:
            stage.say(f"an earlier run was stopped; going on {behind} with {num_workers} workers")

    def _say_epoch(self, record: dict[str, Any], stage: Stage) -> None:
        val = ""
        if record["val_loss"] is not None:
            val = f", val loss {record['val_loss']:.4f} accuracy {record['val_accuracy']:.4f}"
        stage.say(
            f"epoch {record['epoch']}/{self._epochs} ({record['phase']}): loss {record['loss']:.4f} "
            f"accuracy {record['accuracy']:.4f}{val}  {record['seconds']:.1f} s"
        )


def _explain(error: BaseException) -> TlrayError:
    """What happened first: one worker's own error makes the others fail at their next sum."""
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from tlray.cluster.connect import explain_failure

    causes: list[BaseException] = [error]
    if isinstance(error, WorkerGroupError):
        causes = list(error.worker_failures.values())
    elif isinstance(error, ControllerError):
        causes = [error.controller_failure]
    reasons = [explain_failure(cause, "training") for cause in causes]
    return next((reason for reason in reasons if type(reason) is not StoppedError), reasons[0])
