"""One Ray cluster and one S3 API for all of these tests; what is killed runs on a Ray of its own."""

import os

import pytest
from ray.cluster_utils import Cluster

from tests.faults import s3proxy
from tests.faults.labels import BUCKET


@pytest.fixture(scope="package")
def store():
    with s3proxy.serve() as (environment, client, proxy):
        client.create_bucket(Bucket=BUCKET)
        yield environment, client, proxy


@pytest.fixture(scope="package", autouse=True)
def cluster(store):
    """A Ray cluster whose processes can reach the store; commands join it."""
    before = dict(os.environ)
    os.environ.update(store[0])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    os.environ.clear()
    os.environ.update(before, RAY_ADDRESS=cluster.address)
    yield cluster
    os.environ.clear()
    os.environ.update(before)
    cluster.shutdown()
