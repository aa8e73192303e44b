"""One Ray cluster and one S3 API for all of these tests; what is killed runs on a Ray of its own."""

import pytest

from tests.conftest import set_environment, start_cluster
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
    with set_environment(**store[0]), start_cluster(2):
        yield
