"""What is said while lost training workers find no room to start again."""

from types import SimpleNamespace

import pytest

from tlray.cluster import capacity
from tlray.cluster.capacity import NodeResources
from tlray.cluster.resources import Cluster, WorkerResources
from tlray.errors import StoppedError
from tlray.training import launch
from tlray.training.launch import Launch


@pytest.fixture
def lost(monkeypatch):
    """A training of 2 workers with 7 cores each, of which some live, on a cluster of some rooms."""
    state = {"workers": 0, "rooms": [NodeResources(8, 0, 8, 0)], "said": []}
    training = Launch.__new__(Launch)
    training._cluster = Cluster(16, 0, local=False, node_cpus=(8.0, 8.0))
    training._config = SimpleNamespace(num_workers=2, wait_for_resources=None)
    training.resources = WorkerResources(0, 7.0, 1, 0.25)
    monkeypatch.setattr(launch, "count_training_workers", lambda: state["workers"])
    monkeypatch.setattr(launch, "say", state["said"].append)
    monkeypatch.setattr(capacity, "list_node_resources", lambda: state["rooms"])
    monkeypatch.setattr(capacity, "is_growing", lambda: False)
    return training, state


def test_workers_that_are_only_quiet_are_left_alone(lost):
    training, state = lost
    state["workers"] = 2
    training._check_room(1000.0)
    assert state["said"] == []


def test_lost_ones_that_find_room_are_left_alone(lost):
    training, state = lost
    state["rooms"] = [NodeResources(8, 0, 8, 0), NodeResources(8, 0, 8, 0)]
    training._check_room(1000.0)
    assert state["said"] == []


def test_what_there_is_is_said_until_the_wait_is_over(lost):
    training, state = lost
    training._check_room(31.0)
    assert state["said"] == [
        "workers were lost; waiting for room for new ones, 14.5 CPUs: the cluster has 8 CPUs (8 free); 29 s left"
    ]
    with pytest.raises(StoppedError, match=r"--num-workers 2 needs 14\.5 CPUs; the cluster has 8 CPUs .* last epoch"):
        training._check_room(61.0)
