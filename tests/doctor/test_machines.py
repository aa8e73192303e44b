from dataclasses import replace

import pytest

from tests.doctor.data import ANSWER, C
from tlray.cluster.nodes import Node
from tlray.doctor.machines import Machine, name_nodes

WORKER = Node("abcdef", "10.0.0.1", False, 4, 0, 0)
IDLE = replace(WORKER, cpus=0)


def test_nodes_that_share_an_address_are_told_apart():
    other = replace(WORKER, node_id="123456")
    assert name_nodes([WORKER, other]) == ["10.0.0.1#abcd", "10.0.0.1#1234"]
    assert name_nodes([WORKER]) == ["10.0.0.1"]


def test_only_nodes_that_share_their_address_are_renamed():
    other = replace(WORKER, node_id="123456")
    third = replace(WORKER, node_id="777777", address="10.0.0.2")
    assert name_nodes([WORKER, third, other]) == ["10.0.0.1#abcd", "10.0.0.2", "10.0.0.1#1234"]


@pytest.mark.parametrize(("offset", "is_off"), [(0.0, False), (5.0, False), (-5.0, False), (5.1, True), (-5.1, True)])
def test_a_clock_is_off_beyond_five_seconds_either_way(offset, is_off):
    assert Machine("a", WORKER, ANSWER, clock_offset_s=offset).clock_is_off is is_off


def test_a_job_uses_workers_the_head_and_the_drivers_machine_only():
    assert Machine("a", WORKER).matters
    assert Machine("a", replace(IDLE, gpus=1)).matters
    assert Machine("a", replace(IDLE, is_head=True)).matters
    assert Machine("a", IDLE, has_driver=True).matters
    assert not Machine("a", IDLE).matters


@pytest.mark.parametrize(
    ("address", "reachable"),
    [("10.0.0.10:6379", True), ("127.0.0.1:6379", False), ("localhost:6379", False), ("[::1]:6379", False)],
)
def test_a_head_on_the_loopback_address_is_out_of_reach(address, reachable):
    assert replace(C, address=address).is_reachable is reachable
