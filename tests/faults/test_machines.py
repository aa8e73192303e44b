"""A machine of a cluster that alone cannot reach the store; one that is about to be taken away."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.conftest import set_environment
from tests.entry import s3
from tests.entry.conftest import run_tlray
from tests.faults.labels import SABOTAGE, check_same_labels, encode, make_options, make_picture
from tests.faults.processes import Watched

BUCKET = "tlray-machines"
NUM_IMAGES = 300
NUM_DRAINED = 6004
NOTICE_S = 120


@pytest.mark.chaos
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


def drain(cluster, node):
    """Announce to Ray that a machine will be taken away, as on a spot notice."""
    command = [Path(sys.executable).parent / "ray", "drain-node", "--address", cluster.address]
    command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(NOTICE_S)], check=True, capture_output=True)


def has_engine(node):
    """Whether an engine runs on a node of this machine."""
    for child in psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "EngineActor" in " ".join(child.cmdline()):
                return True
    return False


@pytest.mark.chaos
def test_60_a_machine_that_is_drained_hands_its_work_over_within_the_notice(undisturbed, tmp_path):
    """Its engine starts anew on another machine; no row is predicted twice."""
    (tmp_path / "in").mkdir()
    for index in range(NUM_DRAINED):
        path = tmp_path / "in" / f"{index:04d}.jpg"
        if index < 100:
            path.write_bytes(encode(make_picture(index, (640, 480)), "JPEG"))
        else:
            path.hardlink_to(tmp_path / "in" / f"{index % 100:04d}.jpg")
    run_tlray(*make_options(undisturbed, tmp_path / "calm", tmp_path / "in"))
    counts = [tmp_path / "here", tmp_path / "there"]
    here, there = ({**SABOTAGE, "TLRAY_SABOTAGE": "count", "TLRAY_COUNT": str(count)} for count in counts)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, "env_vars": here}
    )
    try:
        node = cluster.add_node(num_cpus=1, env_vars=there)
        options = make_options(undisturbed, tmp_path / "out", tmp_path / "in", batch_size=8, rows_per_part=100)
        driver = Watched(*options, "--max-engines", "2", env={"RAY_ADDRESS": cluster.address})
        assert driver.wait_until(counts[1].exists)
        drain(cluster, node)
        began = time.monotonic()
        assert driver.wait_until(lambda: not has_engine(node), timeout_s=NOTICE_S)
        handed_over_s = time.monotonic() - began
        printed = driver.finish()
    finally:
        cluster.shutdown()
    print(f"handed over in {handed_over_s:.1f} s")
    assert "engines  3 in" in printed
    check_same_labels(tmp_path / "out", tmp_path / "calm")
    batches = [int(line) for count in counts for line in count.read_text().split()]
    assert sum(batches) == NUM_DRAINED, printed
    assert set(batches) == {8, NUM_DRAINED % 8}  # nothing was taken for an image that kills, and tried alone
