"""Start Ray Train's workers from the driver, give them their task, and return the model or raise their error."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
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
    spare_train_helpers,
)
from tlray.cluster.resources import Cluster, choose_worker_threads, plan_workers
from tlray.cluster.term_signal import TermSignal
from tlray.config import TrainConfig
from tlray.console import say
from tlray.errors import StoppedError
from tlray.training import channel as channels
from tlray.training.monitor import POLL_S, SILENCE_S, TERMINATED, Outcome, TrainingMonitor, explain_end
from tlray.training.task import BuildTask, TrainingTask, WorkerSettings

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from tlray.features.build import Done

_END_S = 60.0
_DRAINING_INTERVAL_S = 1.0
_CONTROLLER_POLL_S = "0.5"
# every report waits for the controller's next poll; the default of 2 s is longer than an epoch on cached features


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
            self._thread.join(POLL_S)
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
                    if isinstance(message.event, channels.BuildRestarted) and message.sent - said > SILENCE_S:
                        said = message.sent
                        say("workers were lost; new ones go on computing the frozen base")
                for done in ray.get(self._channel.drain_done.remote()):
                    num_left -= 1
                    yield done
                if not alive and num_left:
                    raise explain_end(self._failures)
                self._thread.join(POLL_S)
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
        where = "GPUs" if self.resources.gpus else "CPUs"
        if self.resources.gpus and not self._config.allow_cpu:
            where += ", gradients summed by NCCL,"
        say(
            f"training on {len(task.train_rows):,} images, {_describe_validation(task)}; {self._config.num_workers} "
            f"workers of {task.batch_size} images a step, on {where} in {task.precision.step}"
        )
        assert self._thread is not None

        def check() -> None:
            check_lock()
            self._find_controller()
            self._save_before_preemption()

        with self._term:
            monitor = TrainingMonitor(outcome, task, self._check_room, check, self._term)
            monitor.run(self._thread, self._failures, self._channel)
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
            spare_train_helpers(trainer)
        return trainer


def _describe_validation(task: TrainingTask) -> str:
    if task.out_of_fold is not None:
        left_out, several = sum(len(trial.val_rows) for trial in task.trials), len(task.trials) > 1
        tried = f"{len(task.trials)} trials of phase 2 leave" if several else "a trial of phase 2 leaves"
        tried = f"; {tried} {left_out:,} out" if task.trials else ""
        return f"validated by folds{tried}"
    return f"validating on {len(task.val_rows):,}"
