"""Ray Train fitted to tlray: how it tells TensorFlow's workers of each other, and what a local run does without.

`ray.train.tensorflow` sets TF_CONFIG too, but importing it imports TensorFlow on the driver and in Ray Train's
controller: 5 to 10 s of a core each that no one uses. It also asks for the legacy Keras.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.util
from ray.train.backend import Backend, BackendConfig

from tlray.errors import TlrayError
from tlray.model.tf_imports import import_keras
from tlray.training.channel import Message
from tlray.training.task import TrainingTask, WorkerSettings

_TASK_POLL_S = 0.2


@dataclass
class MultiWorkerConfig(BackendConfig):
    """Asks Ray Train to set up `MultiWorkerMirroredStrategy`'s cluster."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets it up."""
        return _MultiWorkerBackend


class _MultiWorkerBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        addresses = worker_group.execute(_find_address)
        ray.get(
            [
                worker_group.execute_single_async(rank, _set_tf_config, addresses, rank)
                for rank in range(len(worker_group))
            ]
        )


def _find_address() -> str:
    """An address of this worker that is free now."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})


def run_worker(config: dict[str, Any]) -> None:
    """Train to the end; rank 0 hands the finished model to the driver.

    Raises:
        DivergedError: the loss is not finite.
        WeightsError: the weights are of another network.
        StoppedError: something that a second try would not mend.
    """
    setting: WorkerSettings = config["setting"]
    if ray.get(setting.channel.is_closed.remote()):
        return  # the driver has given up; Ray Train tried again only because it does not know
    import_keras()
    from tlray.training.worker import Worker  # TensorFlow, which a worker with nothing to do need not wait for

    worker = Worker(setting)
    task = _await_task(setting.channel)
    if task is None:
        return
    try:
        worker.run(task)
    except TlrayError as error:
        ray.get(setting.channel.send.remote(Message("failed", {"error": error}, time.time())))
        raise
    finally:
        shutil.rmtree(task.images.keep_in, ignore_errors=True)


def _await_task(channel: Any) -> TrainingTask | None:
    """The task, as soon as the driver knows it; None where the driver has given up."""
    while not ray.get(channel.is_closed.remote()):
        task: TrainingTask | None = ray.get(channel.get_task.remote())
        if task is not None:
            return task
        time.sleep(_TASK_POLL_S)
    return None
