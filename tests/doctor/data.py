"""Clusters and reports for the tests of `tlray doctor`."""

from dataclasses import replace

from tlray.cluster.nodes import Node
from tlray.doctor.inspect_node import Location, NodeReport, Trouble
from tlray.doctor.machines import ClusterReport, Machine

GB = 10**9
VERSIONS = {
    "python": "3.11.9",
    "ray": "2.60.0",
    "tensorflow": "2.21.0",
    "keras": "3.15.1",
    "openvino": "2026.4.1",
    "tlray": "0.1.0",
}
PLACES = (
    Location("--input", "s3://photos/2024", "s3://photos/2024/a.jpg", found=True),
    Location("--input", "/shared/more", "/shared/more"),
    Location("--model", "s3://models/first", "s3://models/first/bundle.json", found=True),
    Location("--output", "s3://labels/2024", "s3://labels/2024", writes=True),
    Location("--output", "/shared/labels", "/shared", writes=True),
)
NOTHING = (None,) * len(PLACES)
ANSWER = NodeReport(4, 256 * GB, 64 * GB, 400 * GB, VERSIONS, token=True, troubles=NOTHING)
DENIED = Trouble("DENIED", "access denied")
GONE = Trouble("NOT_FOUND", "there is no such file or folder")


def make_cluster(workers=4):
    """Return a cluster of a head that takes no work, where the driver runs, and workers with 4 GPUs."""
    head = Node("id0", "10.0.0.10", is_head=True, cpus=0, gpus=0, object_store_bytes=2 * GB)
    machines = [Machine("head", head, replace(ANSWER, gpus=0), has_driver=True)]
    for index in range(1, workers + 1):
        node = Node(f"id{index}", f"10.0.0.{10 + index}", False, cpus=32, gpus=4, object_store_bytes=20 * GB)
        machines.append(Machine(f"worker{index}", node, ANSWER))
    return ClusterReport("10.0.0.10:6379", False, tuple(machines), PLACES, VERSIONS, NOTHING)


def change(cluster, index, *, node=None, report=None, **fields):
    """Return the cluster with one machine's node, report or other fields changed."""
    machines = list(cluster.machines)
    machine = machines[index]
    if node is not None:
        fields["node"] = replace(machine.node, **node)
    if report is not None:
        fields["report"] = replace(machine.report, **report)
    if "silence" in fields:
        fields["report"] = None
    machines[index] = replace(machine, **fields)
    return replace(cluster, machines=tuple(machines))


def change_all(cluster, indices, **changes):
    for index in indices:
        cluster = change(cluster, index, **changes)
    return cluster


def meet(location, trouble):
    """Return the troubles of a machine that has one with one location."""
    return {"troubles": tuple(trouble if index == location else None for index in range(len(PLACES)))}


C = make_cluster()
WORKERS = (1, 2, 3, 4)
