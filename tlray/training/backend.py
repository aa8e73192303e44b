"""Ray Train fitted to tlray: how it tells TensorFlow's workers of each other, and what a local run does without.

`ray.train.tensorflow` sets TF_CONFIG too, but importing it imports TensorFlow on the driver and in Ray Train's
controller: 5 to 10 s of a core each that no one uses. It also asks for the legacy Keras.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
import ray.util
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class Trainer(DataParallelTrainer):
    """Ray Train whose controller can be ended at once: it makes itself known at a `Channel`."""

    def __init__(self, *arguments: Any, channel: Any, **options: Any) -> None:
        """As `DataParallelTrainer`, and the channel."""
        super().__init__(*arguments, **options)
        self._channel = channel

    def _create_default_callbacks(self) -> list[Any]:
        return [*super()._create_default_callbacks(), _Introduction(self._channel)]


class _Introduction(ControllerCallback):
    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def after_controller_start(self, train_run_context: Any) -> None:
        """In the controller's own process."""
        self._channel.put_controller.remote(ray.get_runtime_context().current_actor)


class LocalTrainer(Trainer):
    """Ray Train without two helpers, each a process that takes 3 s of a core to start.

    One hands out Ray Train's own datasets, which tlray does not use; the other clears up behind a controller that died,
    which the end of a local cluster does too.
    """

    def _create_default_callbacks(self) -> list[Any]:
        spared = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, spared)]


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
