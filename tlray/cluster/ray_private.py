"""Every use that tlray makes of Ray's private parts, as of Ray 2.60: what an update of Ray has to be held against.

Ray is imported inside the functions: most commands never call them.
"""

from __future__ import annotations

import contextlib
import functools
import json
from typing import Any

HEAD_RESOURCE = "node:__internal_head__"
"""A resource that the head alone has."""


def read_free_resources() -> dict[str, dict[str, float]]:
    """What nobody has booked, by node id and name of the resource."""
    from ray._private.state import available_resources_per_node

    free: dict[str, dict[str, float]] = available_resources_per_node()
    return free


def list_node_types() -> list[str]:
    """Types of machines that the older and the newer autoscaler tell of; without one, Ray names each node_ID."""
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    types: list[str] = []
    if status := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):
        report = json.loads(status).get("autoscaler_report") or {}
        types += (report.get("node_type_mapping") or {}).values()
    with contextlib.suppress(Exception):  # a cluster without the newer one may refuse in several ways
        now = get_cluster_status(ray.get_runtime_context().gcs_address)
        types += [node.ray_node_type_name for node in (*now.active_nodes, *now.idle_nodes)]
    return types


def is_token_required() -> bool:
    """Whether this process asks those who call it for Ray's token."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def get_session_folder() -> str:
    """Ray's own folder on this machine, where it spills objects."""
    from ray._private.worker import global_worker

    node: Any = global_worker.node
    folder: str = node.get_session_dir_path()
    return folder


def count_training_workers() -> int:
    """Training workers of this process's job that live, or have room and are starting."""
    import ray
    from ray._private.state import actors

    job = ray.get_runtime_context().get_job_id()
    return sum(
        "RayTrainWorker" in actor["ActorClassName"] and actor["State"] != "DEAD"
        for actor in actors(job_id=ray.JobID.from_hex(job)).values()
    )


def get_train_snapshot_name() -> str:
    """File of Ray Train's own notes in a run's folder."""
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

    name: str = CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    return name


def make_controller_callback(channel: Any) -> Any:
    """A callback by which Ray Train's controller makes itself known at a `Channel`, so that it can be ended at once."""
    import ray
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class AnnounceController(ControllerCallback):
        def after_controller_start(self, train_run_context: Any) -> None:
            """In the controller's own process."""
            channel.put_controller.remote(ray.get_runtime_context().current_actor)

    return AnnounceController()


def bound_requests(client: Any, timeout_s: float) -> None:
    """Let a job client's requests end: Ray waits for ever for a tunnel whose other end is gone."""
    client._do_request = functools.partial(client._do_request, timeout=timeout_s)


def map_blocks(dataset: Any, actor: type, **options: Any) -> Any:
    """As `Dataset.map_batches`, which takes no blocks as they are (`batch_size=None`) where GPUs are asked for."""
    return dataset.map_batches_internal(actor, **options)
