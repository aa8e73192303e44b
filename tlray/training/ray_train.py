"""The entry point of Ray Train's workers, and the backend that sets TF_CONFIG for them.

`ray.train.tensorflow` sets TF_CONFIG too, but it imports TensorFlow on the driver and in Ray Train's controller (5 to
10 s of a core each), and requires the legacy Keras.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions
import ray.train.collective
import ray.util
from ray.train.backend import Backend, BackendConfig

from tlray.cluster.connect import explain_failure
from tlray.errors import StoppedError, TlrayError
from tlray.features.build import ShardBuilder
from tlray.model.tf_imports import import_keras, show_booked_gpus
from tlray.storage import adopt
from tlray.training.channel import ChannelHandle, Failed, send
from tlray.training.task import BuildTask, TrainingTask, WorkerSettings

if TYPE_CHECKING:
    from tlray.training.worker import Worker

_TASK_POLL_S = 0.2


@dataclass
class MultiWorkerConfig(BackendConfig):
    """Configuration of the backend for `MultiWorkerMirroredStrategy`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Class of the backend."""
        return _MultiWorkerBackend


class _MultiWorkerBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        addresses = worker_group.execute(_find_address)
        ranks = range(len(worker_group))
        ray.get([worker_group.execute_single_async(rank, _set_tf_config, addresses, rank) for rank in ranks])


def _find_address() -> str:
    """Return this worker's host with a free port."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})


def run_worker(config: dict[str, WorkerSettings]) -> None:
    """Train to the end; rank 0 hands the finished model to the driver.

    Raises:
        TlrayError: an error that a restart would not fix.
    """
    settings = config["settings"]
    adopt(settings.options)
    if ray.get(settings.channel.is_closed.remote()):
        return  # the driver has given up, which Ray Train does not know
    booked = show_booked_gpus()
    import_keras()
    from tlray.model.tf_runtime import prepare_gpus
    from tlray.training.worker import Worker  # imports TensorFlow

    try:
        sees_gpu = prepare_gpus(booked, allow_cpu=settings.allow_cpu)
        if booked and settings.allow_cpu:
            _check_same_devices(sees_gpu=sees_gpu)
        worker = Worker(settings)
        task = _await_task(settings.channel, worker.group.rank)
        if task is not None:
            _run_task(worker, task)
    except TlrayError as error:
        send(settings.channel, Failed(error))
        raise


def _check_same_devices(*, sees_gpu: bool) -> None:
    """Raise `StoppedError` where this worker sees a GPU and rank 0 none, or the other way round."""
    first_sees: bool = ray.train.collective.broadcast_from_rank_zero(sees_gpu)
    if sees_gpu != first_sees:
        here, there = ("a GPU", "none") if sees_gpu else ("none", "one")
        raise StoppedError(
            f"TensorFlow sees {here} on {socket.gethostname()} and {there} on the first worker's machine; install "
            "tlray[gpu] on all, or give --gpus-per-worker 0"
        )


def _run_task(worker: Worker, task: TrainingTask) -> None:
    try:
        worker.run(task)
    finally:
        shutil.rmtree(task.images.keep_in, ignore_errors=True)


def _await_task(channel: ChannelHandle, rank: int) -> TrainingTask | None:
    """Wait for the task, and compute features that the driver asks for before; None if the driver has given up."""
    with contextlib.ExitStack() as stack:
        builder: ShardBuilder | None = None
        while not ray.get(channel.is_closed.remote()):
            task: TrainingTask | None = ray.get(channel.get_task.remote())
            if task is not None:
                return task
            index = ray.get(channel.take_index.remote(rank))
            if index is None:
                time.sleep(_TASK_POLL_S)
                continue
            try:
                if builder is None:
                    builder = stack.enter_context(contextlib.closing(_make_builder(channel)))
                done = builder.build(index)
            except ray.exceptions.RayError:
                raise
            except Exception as error:  # new workers would fail like this one
                raise explain_failure(error, "computing the frozen base") from error
            ray.get(channel.put_done.remote(rank, index, done))
    return None


def _make_builder(channel: ChannelHandle) -> ShardBuilder:
    task: BuildTask = ray.get(channel.get_build_task.remote())
    return ShardBuilder(task.cache, task.works, ray.get(task.places), on_gpu=False)
