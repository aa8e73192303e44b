"""Every use of Ray's private API, written for Ray 2.60: check these functions when Ray is updated.

They import Ray themselves: most commands never call them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

HEAD_RESOURCE = "node:__internal_head__"
"""A resource that only the head has."""


def read_free_resources() -> dict[str, dict[str, float]]:
    """Return the free resources by node id and resource name."""
    from ray._private.state import available_resources_per_node

    free: dict[str, dict[str, float]] = available_resources_per_node()
    return free


def list_draining_nodes() -> frozenset[str]:
    """Return the ids of the machines that are about to be taken away, and take no new work."""
    from ray._private.state import state

    return frozenset(state.get_draining_nodes())


def drain_this_node(reason: str, deadline_s: float) -> None:
    """Announce that this machine will be taken away in some seconds; `ray drain-node` cannot do so for its own.

    Raises:
        ConnectionError: Ray does not run on this machine.
        RuntimeError: Ray refuses.
    """
    import ray
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]  # made at import
        DRAIN_NODE_REASON_PREEMPTION,
    )

    deadline_ms = int((time.time() + deadline_s) * 1000)
    with ray.init(address="auto", log_to_driver=False):
        node_id = ray.get_runtime_context().get_node_id()
        worker: Any = global_worker
        accepted, refusal = worker.gcs_client.drain_node(node_id, DRAIN_NODE_REASON_PREEMPTION, reason, deadline_ms)
    if not accepted:
        raise RuntimeError(refusal)


def list_node_types() -> list[str]:
    """Return the node types that autoscaler v1 and v2 report; without an autoscaler Ray names them node_ID."""
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    types: list[str] = []
    if status := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):
        report = json.loads(status).get("autoscaler_report") or {}
        types += (report.get("node_type_mapping") or {}).values()
    with contextlib.suppress(Exception):  # several kinds of errors without autoscaler v2
        now = get_cluster_status(ray.get_runtime_context().gcs_address)
        types += [node.ray_node_type_name for node in (*now.active_nodes, *now.idle_nodes)]
    return types


def is_token_required() -> bool:
    """Return whether Ray requires its token in this process."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def get_session_folder() -> str:
    """Return Ray's session folder on this machine, where it spills objects."""
    from ray._private.worker import global_worker

    node: Any = global_worker.node
    folder: str = node.get_session_dir_path()
    return folder


def count_training_workers() -> int:
    """Return the number of this job's training workers that are running or starting."""
    import ray
    from ray._private.state import actors

    job = ray.get_runtime_context().get_job_id()
    return sum(
        "RayTrainWorker" in actor["ActorClassName"] and actor["State"] != "DEAD"
        for actor in actors(job_id=ray.JobID.from_hex(job)).values()
    )


def get_train_snapshot_name() -> str:
    """Return the name of the file in which Ray Train keeps its state in a run's folder."""
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

    name: str = CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    return name


def make_controller_callback(channel: Any) -> Any:
    """Return a callback that registers Ray Train's controller with a `Channel`, so that it can be ended at once."""
    import ray
    from ray import cloudpickle
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class AnnounceController(ControllerCallback):
        def after_controller_start(self, train_run_context: Any) -> None:
            """Register the controller; called in its process."""
            channel.put_controller.remote(cloudpickle.dumps(ray.get_runtime_context().current_actor))

    return AnnounceController()


def remove_placement_groups(creator: Any) -> None:
    """Remove the placement groups that an actor made: if it was killed, they stay booked until its job ends."""
    from ray import PlacementGroupID
    from ray._private import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  # made at import
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    table = state.state._connect_and_get_accessor().get_placement_group_table()
    for group in map(PlacementGroupTableData.FromString, table):
        if group.creator_actor_id == creator._actor_id.binary():
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


@contextlib.contextmanager
def spare_helpers(*, verbose: bool) -> Iterator[None]:
    """Let a Ray that starts in this context, on this machine alone, do without processes that serve clusters.

    They are the servers of its dashboard and of the dashboard's agent, its autoscaler, and without `verbose` what
    forwards logs. Each takes 1 to 2 s of a core to start, and `ray.init` waits for most of them.
    """
    from ray._private import ray_constants, utils
    from ray._private.node import Node

    def register_no_server(node: Node, **_: object) -> None:
        """Give the agent an address: without one it asks for it every second, and logs that it has none."""
        key, namespace = ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD
        node.get_gcs_client().internal_kv_put(key, b"127.0.0.1:0", True, namespace)

    with _REPLACING, contextlib.ExitStack() as stack:
        stack.enter_context(_replace(Node, "start_api_server", register_no_server))
        for name in ("start_monitor", *(() if verbose else ("start_log_monitor",))):
            stack.enter_context(_replace(Node, name, lambda *_, **__: None))
        stack.enter_context(_replace(utils, "get_dashboard_dependency_error", lambda: ImportError("not used")))
        yield


def silence_messages() -> contextlib.AbstractContextManager[None]:
    """Keep a Ray that is started or joined in this context from printing messages: 20 lines for each process that dies.

    tlray says itself what was lost, and goes on.
    """
    from ray._private import worker

    return _replace(worker, "listen_error_messages", lambda *_: None)


@contextlib.contextmanager
def spare_data_helpers() -> Iterator[None]:
    """Let Ray Data in this context, on this machine alone, do without three processes that its runs wait for.

    One allots machines to runs: here each may use the whole machine. One keeps figures for the dashboard. One tells on
    which machine an actor is. Each takes 1 to 4 s of a core to start.
    """
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinators
    from ray.data._internal.execution.operators import actor_pool_map_operator
    from ray.data._internal.utils import cached_ray_internals

    # this machine does not change, and a put may wait where the object store is full
    coordinator = _LocalActor(get_reserved_resources=functools.cache(_put_resources))
    tracker = _LocalActor(get_actor_locations=_put_no_locations)  # Ray Data falls back to what Ray knows
    with (
        _replace(actor_pool_map_operator, "get_or_create_actor_location_tracker", lambda: tracker),
        _replace(cached_ray_internals, "get_or_create_actor_location_tracker", lambda: tracker),
        _replace(coordinators, "get_or_create_autoscaling_coordinator", lambda: coordinator),
        _replace(stats, "get_or_create_stats_actor", lambda: _LocalActor(gen_dataset_id=_put_id)),
    ):
        yield


_REPLACING = threading.RLock()
"""Held while Ray starts: two threads would restore each other's replacements."""


@contextlib.contextmanager
def _replace(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _LocalActor:
    """An object of this process that is called as an actor; methods without a function here do nothing."""

    def __init__(self, **functions: Callable[[], Any]) -> None:
        self._functions = functions

    def __getattr__(self, name: str) -> _LocalMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        return _LocalMethod(self._functions.get(name, lambda: None))


@dataclass(frozen=True)
class _LocalMethod:
    function: Callable[[], Any]

    def remote(self, *_: object, **__: object) -> Any:
        """Return the reference that the function gives."""
        return self.function()


def _put_resources() -> Any:
    import ray

    return ray.put({node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]})


def _put_id() -> Any:
    import ray

    return ray.put(uuid.uuid4().hex)


def _put_no_locations() -> Any:
    import ray

    return ray.put({})


def spare_train_helpers(trainer: Any) -> None:
    """Make a local Ray Train do without three helpers, each a process that takes 3 to 4 s of a core to start.

    One hands out Ray Train's own datasets, which tlray does not use; one clears up behind a controller that died, as
    `remove_placement_groups` and the end of a local cluster do; one asks for machines, of which there are no more.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class LocalScalingPolicy(FixedScalingPolicy):
        def _send_resource_request(self) -> None:
            pass

        _maybe_send_resource_request = _cancel_resource_request = _send_resource_request

    create, run = trainer._create_default_callbacks, trainer._initialize_and_run_controller
    spared = (DatasetsCallback, PlacementGroupCleanerCallback)
    trainer._create_default_callbacks = lambda: [item for item in create() if not isinstance(item, spared)]
    policy = LocalScalingPolicy(trainer.scaling_config)
    trainer._initialize_and_run_controller = lambda **options: run(**{**options, "scaling_policy": policy})


def bound_requests(client: Any, timeout_s: float) -> None:
    """Give a job client's requests a timeout; Ray has none and would wait forever for a dead tunnel."""
    client._do_request = functools.partial(client._do_request, timeout=timeout_s)


def map_blocks(dataset: Any, actor: type, **options: Any) -> Any:
    """Return `Dataset.map_batches` of whole blocks (`batch_size=None`), which it refuses itself for actors on GPUs."""
    return dataset.map_batches_internal(actor, **options)
