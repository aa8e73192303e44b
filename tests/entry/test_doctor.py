"""doctor on a real cluster of tiny nodes, beside a real S3 API."""

import pytest
from ray.cluster_utils import Cluster

from tests.conftest import set_environment
from tests.entry import s3
from tests.entry.conftest import run_tlray

BUCKET = "tlray-doctor"

HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tlray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
"""
"""Put on a node's PYTHONPATH as sitecustomize.py, this makes it one where nobody installed tlray."""


@pytest.fixture(scope="module")
def client():
    with s3.serve() as (environment, client), set_environment(**environment):
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="photos/a.jpg", Body=b"a picture")
        yield client


@pytest.fixture(scope="module")
def cluster(client):
    """A head without work and a worker, which reach the bucket."""
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def run_doctor(cluster, *arguments, expect=0):
    return run_tlray("doctor", "--address", cluster.address, *arguments, expect=expect, timeout_s=120, alone=True)


def test_a_cluster_in_order_exits_0(cluster, client):
    places = ["--input", f"s3://{BUCKET}/photos", "--output", f"s3://{BUCKET}/labels"]
    output = run_doctor(cluster, *places)
    rows = [line for line in output.splitlines() if "as here" in line]
    assert len(rows) == 2
    assert " head " in rows[0]
    assert all(line.rstrip().endswith(" all") for line in rows)
    assert "error" not in output
    assert "the object store is small" in output  # 150 MiB, as ray.cluster_utils starts them
    is_open = "not required" in output and not cluster.address.startswith("127.")
    assert ("CAN RUN CODE" in output) == is_open
    assert client.list_objects_v2(Bucket=BUCKET, Prefix="labels").get("Contents", []) == []


def test_a_bucket_that_is_not_there_is_one_error_for_all_machines(cluster, tmp_path):
    inputs = ["--input", f"s3://{BUCKET}/photos", "s3://no-such-bucket/x"]
    output = run_doctor(cluster, *inputs, "--model", str(tmp_path / "none"), expect=1)
    about_input, about_model = [line for line in output.splitlines() if line.startswith("error")]
    assert about_input.startswith("error    --input s3://no-such-bucket/x cannot be read from ")
    assert "(NOT_FOUND: the bucket does not exist)" in about_input
    assert len(about_input.partition(" from ")[2].partition(" (")[0].split(", ")) == 2
    assert about_model.startswith(f"error    --model {tmp_path}/none cannot be read")


def test_machines_that_lie_or_lack_tlray_are_named(cluster, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    added = [
        cluster.add_node(num_cpus=1, num_gpus=64),
        cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)}),
    ]
    try:
        output = run_doctor(cluster, expect=1)
    finally:
        for node in added:
            cluster.remove_node(node)
    assert "4 machines, 3 cores, 64 GPUs" in output
    errors = [line for line in output.splitlines() if line.startswith("error")]
    assert len(errors) == 2
    assert "tlray is missing, or another version, on" in errors[0]
    assert "(Ray counts 64, the machine shows " in errors[1]


def test_without_an_address_it_is_this_machine(tmp_path):
    output = run_tlray("doctor", "--max-cpus", "1", "--output", str(tmp_path), env={"RAY_ADDRESS": ""}, alone=True)
    assert "this machine's own Ray: 1 machine, 1 core" in output
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_does_not_answer_is_one_sentence():
    printed = run_tlray("doctor", "--address", "127.0.0.1:1", expect=1, timeout_s=120, alone=True)
    assert "no Ray cluster answers" in printed
