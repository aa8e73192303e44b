"""Uses of Ray's private API, as far as they can be tested without a cluster."""

import inspect
import json
from types import SimpleNamespace

import pytest
import ray

from tlray.cluster import ray_private


class Client:
    """Ray's job client, as far as its requests go."""

    def _do_request(self, method, endpoint, *, data=None, **options):
        return method, endpoint, data, options

    def list_jobs(self):
        return self._do_request("GET", "/api/jobs/")


def test_requests_of_a_job_client_get_a_timeout():
    client = Client()
    ray_private.bound_requests(client, 60.0)
    assert client.list_jobs() == ("GET", "/api/jobs/", None, {"timeout": 60.0})
    assert client._do_request("PUT", "/x", data=b"1", timeout=1.0) == ("PUT", "/x", b"1", {"timeout": 1.0})
    assert Client().list_jobs()[3] == {}


def test_rays_job_client_passes_options_of_requests_on():
    sdk = pytest.importorskip("ray.dashboard.modules.dashboard_sdk")
    kinds = [option.kind for option in inspect.signature(sdk.SubmissionClient._do_request).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD in kinds


def test_blocks_are_mapped_by_the_internal_method_with_all_options():
    calls = []

    class Dataset:
        def map_batches_internal(self, actor, **options):
            calls.append((actor, options))
            return "mapped"

    assert ray_private.map_blocks(Dataset(), Client, batch_size=None, num_gpus=1) == "mapped"
    assert calls == [(Client, {"batch_size": None, "num_gpus": 1})]


def test_what_is_replaced_in_ray_is_there_and_comes_back():
    from ray._private import utils, worker
    from ray._private.node import Node
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinators

    replaced = [
        (ray_private.silence_messages(), [(worker, "listen_error_messages")]),
        (
            ray_private.spare_helpers(verbose=False),
            [
                *((Node, name) for name in ("start_api_server", "start_monitor", "start_log_monitor")),
                (utils, "get_dashboard_dependency_error"),
            ],
        ),
        (ray_private.spare_helpers(verbose=True), [(Node, "start_api_server"), (Node, "start_monitor")]),
        (
            ray_private.spare_data_helpers(),
            [(coordinators, "get_or_create_autoscaling_coordinator"), (stats, "get_or_create_stats_actor")],
        ),
    ]
    for context, places in replaced:
        before = [getattr(*place) for place in places]
        log_monitor = Node.start_log_monitor
        with context:
            assert all(getattr(*place) is not old for place, old in zip(places, before, strict=True))
            assert (Node.start_log_monitor is log_monitor) == ((Node, "start_log_monitor") not in places)
        assert [getattr(*place) for place in places] == before


def test_ray_data_may_use_the_whole_machine(monkeypatch):
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import DefaultAutoscalingCoordinator
    from ray.data._internal.stats import _StatsManager

    nodes = [
        {"NodeID": "here", "Alive": True, "Resources": {"CPU": 2.0}},
        {"NodeID": "gone", "Alive": False, "Resources": {}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    puts = []
    monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or value)
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(ray, "get", lambda ref, timeout=None: ref)
    with ray_private.spare_data_helpers():
        coordinator = DefaultAutoscalingCoordinator("a run")
        coordinator.request_resources([{"CPU": 1}], 60)
        coordinator.get_reserved_resources()
        assert coordinator.get_reserved_resources() == {"here": {"CPU": 2.0}}
        assert puts == [{"here": {"CPU": 2.0}}]  # once
        coordinator.cancel_request()
        ids = {_StatsManager.gen_dataset_id_from_stats_actor() for _ in range(3)}
        assert len(ids) == 3
        _StatsManager.update_iteration_metrics(None, "a run")


def test_ray_trains_trainer_is_started_as_it_is_replaced():
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    assert DataParallelTrainer._initialize_and_run_controller
    assert DataParallelTrainer._create_default_callbacks
    assert "scaling_policy" in inspect.signature(TrainController.__init__).parameters


def test_a_local_ray_train_asks_for_no_machines():
    from ray.train import ScalingConfig
    from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

    given = {}
    trainer = SimpleNamespace(
        scaling_config=ScalingConfig(num_workers=2),
        _create_default_callbacks=lambda: ["kept"],
        _initialize_and_run_controller=lambda **options: given.update(options),
    )
    ray_private.spare_train_helpers(trainer)
    trainer._initialize_and_run_controller(scaling_policy="another", failure_policy="as it was")
    assert given["failure_policy"] == "as it was"
    policy = given["scaling_policy"]
    policy.after_controller_start(SimpleNamespace(run_id="a"))
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == 2
    assert trainer._create_default_callbacks() == ["kept"]


def test_ray_data_has_the_internal_method():
    from ray.data import Dataset

    assert {"batch_size", "num_gpus", "compute"} <= set(inspect.signature(Dataset.map_batches_internal).parameters)


def test_ray_trains_controller_is_registered_with_the_channel(monkeypatch):
    from ray.train.v2._internal.execution.callback import ControllerCallback

    registered = []
    channel = SimpleNamespace(put_controller=SimpleNamespace(remote=registered.append))
    callback = ray_private.make_controller_callback(channel)
    assert isinstance(callback, ControllerCallback)
    assert hasattr(ControllerCallback, "after_controller_start")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor="controller"))
    callback.after_controller_start(None)
    assert [ray.cloudpickle.loads(handle) for handle in registered] == ["controller"]


def test_only_an_actors_own_placement_groups_are_removed(monkeypatch):
    from ray import util
    from ray._private import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    numbers = [bytes([number]) * 18 for number in range(3)]
    makers = [b"a" * 16, b"b" * 16, b"a" * 16]
    groups = [
        PlacementGroupTableData(placement_group_id=number, creator_actor_id=maker).SerializeToString()
        for number, maker in zip(numbers, makers, strict=True)
    ]
    accessor = SimpleNamespace(get_placement_group_table=lambda: groups)
    monkeypatch.setattr(state, "state", SimpleNamespace(_connect_and_get_accessor=lambda: accessor))
    removed = []
    monkeypatch.setattr(util, "remove_placement_group", lambda group: removed.append(group.id.binary()))
    ray_private.remove_placement_groups(SimpleNamespace(_actor_id=SimpleNamespace(binary=lambda: makers[0])))
    assert removed == [numbers[0], numbers[2]]


def test_ray_trains_snapshot_is_a_json_file():
    assert ray_private.get_train_snapshot_name() == "checkpoint_manager_snapshot.json"


@pytest.fixture
def autoscaler(monkeypatch):
    """Stand-ins for both autoscalers; v2 refuses unless `now` is set."""
    import ray.autoscaler.v2.sdk
    import ray.experimental.internal_kv

    state = {"status": None, "now": None}

    def get_status(address):
        assert address == "10.0.0.1:6379"
        if state["now"] is None:
            raise RuntimeError("autoscaler v2 is not enabled")
        return state["now"]

    monkeypatch.setattr(ray.experimental.internal_kv, "_internal_kv_get", lambda key: state["status"])
    monkeypatch.setattr(ray.autoscaler.v2.sdk, "get_cluster_status", get_status)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    return state


def name(*types):
    return [SimpleNamespace(ray_node_type_name=kind) for kind in types]


def test_node_types_come_from_both_autoscalers(autoscaler):
    report = {"autoscaler_report": {"node_type_mapping": {"10.0.0.2": "gpu_workers", "10.0.0.1": "head"}}}
    autoscaler["status"] = json.dumps(report).encode()
    assert ray_private.list_node_types() == ["gpu_workers", "head"]
    autoscaler["now"] = SimpleNamespace(active_nodes=name("cpu_workers"), idle_nodes=name("spare"))
    assert ray_private.list_node_types() == ["gpu_workers", "head", "cpu_workers", "spare"]


@pytest.mark.parametrize(
    "report", [{}, {"autoscaler_report": None}, {"autoscaler_report": {"node_type_mapping": None}}]
)
def test_without_an_autoscaler_there_are_no_node_types(autoscaler, report):
    assert ray_private.list_node_types() == []
    autoscaler["status"] = json.dumps(report)
    assert ray_private.list_node_types() == []


def test_training_workers_that_are_running_or_starting_are_counted(monkeypatch):
    from ray._private import state

    actors = {
        "1": {"ActorClassName": "RayTrainWorker", "State": "ALIVE"},
        "2": {"ActorClassName": "RayTrainWorker", "State": "PENDING_CREATION"},
        "3": {"ActorClassName": "RayTrainWorker", "State": "DEAD"},
        "4": {"ActorClassName": "TrainController", "State": "ALIVE"},
    }
    asked = []
    monkeypatch.setattr(state, "actors", lambda job_id: asked.append(job_id.hex()) or actors)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01000000"))
    assert ray_private.count_training_workers() == 2
    assert asked == ["01000000"]
