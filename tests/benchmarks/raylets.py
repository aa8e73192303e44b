"""Several real nodes of Ray on this machine, for benchmarks of what happens between machines."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 512 * 2**20


@contextlib.contextmanager
def start(nodes: int, cpus: int, gpus: int = 0, **environment: str) -> Iterator[Cluster]:
    """Nodes beside a head that takes no work, their processes in this environment; GPUs are only claimed."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as logs:
        # a folder of its own: in Ray's usual one lies the address of whatever cluster this machine runs
        os.environ.update(environment, RAY_TMPDIR=logs)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(nodes):
                cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=OBJECT_STORE_BYTES)
            yield cluster
        finally:
            cluster.shutdown()
            os.environ.clear()
            os.environ.update(before)
