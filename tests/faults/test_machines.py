"""A machine of a cluster that alone cannot reach the store."""

import json

from ray.cluster_utils import Cluster

from tests.conftest import set_environment
from tests.entry import s3
from tests.entry.conftest import run_tlray
from tests.faults.labels import SABOTAGE, encode, make_options, make_picture

BUCKET = "tlray-machines"
NUM_IMAGES = 300


def test_a_machine_that_reads_nothing_gives_its_rows_back(undisturbed, tmp_path):
    with s3.serve() as (environment, client), set_environment(**environment):
        client.create_bucket(Bucket=BUCKET)
        for index in range(NUM_IMAGES):
            client.put_object(Bucket=BUCKET, Key=f"in/{index:03d}.png", Body=encode(make_picture(index)))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            blind = {"PYTHONPATH": SABOTAGE["PYTHONPATH"], "TLRAY_SABOTAGE": "blind"}
            cluster.add_node(num_cpus=1, env_vars=blind)
            options = make_options(undisturbed, tmp_path / "out", f"s3://{BUCKET}/in", retry_for=1, batch_size=4)
            printed = run_tlray(*options, env={"RAY_ADDRESS": cluster.address}, alone=True)
        finally:
            cluster.shutdown()
    receipt = json.loads((tmp_path / "out" / "_receipt.json").read_text())
    assert (receipt["labelled"], receipt["failed_by_code"]) == (NUM_IMAGES, {}), printed
    assert "rows again that could not be reached" in printed
