"""Faults 50 to 52, and the jobs on several Ray nodes: submitted with a token, over S3, with nodes that are killed.

Where this machine allows it, each node has a network and an address of its own.
"""

import contextlib
import io
import json
import signal
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.entry import s3
from tests.entry.conftest import PRETRAINED, WEIGHTS, run_tlray
from tests.faults.conftest import LONG_OPTIONS, check_same_history
from tests.faults.raynodes import HEAD, Bridge, RayNodes, explain_no_namespaces

BUCKET = "tlray-cluster"
ARCHIVE = f"s3://{BUCKET}/archive"
NUM_IMAGES = 600
PROBABILITY_TOLERANCE = 1e-5
WORKERS = ("one", "two", "three")
SECRET = "the-submitters-own-secret"


def fill(client, small):
    """The archive: the digits over and over; and the class folders to train on."""
    client.create_bucket(Bucket=BUCKET)
    pictures = sorted(small.rglob("*.png"))
    for index in range(NUM_IMAGES):
        body = pictures[index % len(pictures)].read_bytes()
        client.put_object(Bucket=BUCKET, Key=f"archive/{index:04d}.png", Body=body)
    for picture in pictures:
        name = picture.relative_to(small).as_posix()
        client.put_object(Bucket=BUCKET, Key=f"train/{name}", Body=picture.read_bytes())


def read_json(client, key):
    return json.loads(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())


def read_labels(client, prefix):
    """As `by_name`, of an output in the bucket."""
    tables = []
    for item in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/labels/")["Contents"]:
        body = client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
        tables.append(pq.read_table(io.BytesIO(body)))
    return by_name(pa.concat_tables(tables))


def by_name(table):
    """Status, predicted index and probability by file name; no name comes twice."""
    names = [uri.rpartition("/")[2] for uri in table["uri"].to_pylist()]
    assert len(set(names)) == len(names)
    values = zip(*(table[column].to_pylist() for column in ("status", "predicted_index", "probability")), strict=True)
    return dict(zip(names, values, strict=True))


@pytest.fixture(scope="module")
def store(small):
    with s3.serve(bind="0.0.0.0") as (environment, client):
        fill(client, small)
        yield environment, client


@pytest.fixture(scope="module")
def nodes(store, hidden, undisturbed, tmp_path_factory):
    """A head that takes no work, and three workers of 2 cores; one claims a GPU.

    The last one sees neither the hidden folder nor the bundle and the weights, which it gets from the driver.
    """
    environment, apart = store[0], explain_no_namespaces() is None
    with contextlib.ExitStack() as stack:
        bridge = stack.enter_context(Bridge()) if apart else None
        if bridge:
            port = environment["AWS_ENDPOINT_URL"].rpartition(":")[2]
            environment = {**environment, "AWS_ENDPOINT_URL": f"http://{bridge.gateway}:{port}"}
        nodes = stack.enter_context(RayNodes(tmp_path_factory.mktemp("nodes"), environment, bridge=bridge))
        nodes.add("one", 2, gpus=1)
        nodes.add("two", 2)
        nodes.add("three", 2, hide=(hidden, undisturbed, *([WEIGHTS.parent] if PRETRAINED else [])) if apart else ())
        yield nodes


@pytest.fixture(scope="module")
def hidden(small, tmp_path_factory):
    """A folder of photographs."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "0.png").write_bytes(next(small.rglob("*.png")).read_bytes())
    return folder


@pytest.fixture(scope="module")
def expected(undisturbed, small, tmp_path_factory):
    """What one local run answers, by file name."""
    output = tmp_path_factory.mktemp("expected") / "labels"
    options = ["--model", str(undisturbed), "--input", str(small), "--output", str(output), "--precision", "float32"]
    run_tlray("predict", *options)
    rows = pq.read_table(output / "labels").to_pylist()
    by_name = {row["uri"].rpartition("/")[2]: (row["predicted_index"], row["probability"]) for row in rows}
    names = [picture.name for picture in sorted(small.rglob("*.png"))]
    return {f"{index:04d}.png": by_name[names[index % len(names)]] for index in range(NUM_IMAGES)}


def check_labels(rows, expected):
    """One row for every image, with the answers of the local run."""
    assert sorted(rows) == sorted(expected)
    for name, (status, index, probability) in rows.items():
        assert status == "ok"
        assert index == expected[name][0]
        assert probability == pytest.approx(expected[name][1], abs=PROBABILITY_TOLERANCE)


@pytest.mark.chaos
def test_engines_on_gpus_are_fed_with_pixels(nodes, store, undisturbed, expected):
    """The GPU is claimed only: the road is the one of GPUs, the engine computes on the CPU where that is allowed."""
    options = ["--model", str(undisturbed), "--input", ARCHIVE, "--output", f"s3://{BUCKET}/gpu"]
    options += ["--precision", "float32", "--gpus-per-engine", "0.5", "--batch-size", "32"]
    assert "TensorFlow sees none there; install tlray[gpu]" in nodes.submit("predict", *options, expect=1)
    output = nodes.submit("predict", *options, "--allow-cpu")
    assert "2 engines, 0.5 GPU each; the cores fetch and decode for them" in output
    check_labels(read_labels(store[1], "gpu"), expected)


def wait_until(condition, process, timeout_s=180):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


# ---- the job API ----------------------------------------------------------------------------------------------------


def ask(nodes, path):
    """What the job server answers; it listens on the head's loopback address only."""
    script = (
        "import sys, urllib.request as r; "
        "print(r.urlopen(r.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})).read().decode())"
    )
    answer = nodes.run([sys.executable, "-c", script, f"{nodes.job_server}{path}", nodes.token])
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_a_job_ends_with_its_own_exit_code_and_tells_no_secret(nodes, tmp_path):
    options = ["--model", f"s3://{BUCKET}/no-bundle", "--input", ARCHIVE, "--output", str(tmp_path / "labels")]
    before = dict(nodes.environment)
    nodes.environment |= {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
    try:
        output = nodes.submit("predict", *options, expect=2)
    finally:
        nodes.environment = before
    assert "is not a bundle" in output
    job_id = output.partition("submitted ")[2].split()[0]
    jobs = ask(nodes, "/api/jobs/")
    (job,) = [job for job in json.loads(jobs) if job["submission_id"] == job_id]
    assert job["metadata"]["command"] == "predict"
    for text in (jobs, ask(nodes, f"/api/jobs/{job['submission_id']}/logs"), output):
        assert SECRET not in text
        assert nodes.token not in text


@pytest.mark.parametrize("token", [None, "0" * 32])
def test_without_the_token_nothing_is_submitted(nodes, tmp_path, token):
    before = dict(nodes.environment)
    nodes.environment.pop("RAY_AUTH_TOKEN")
    nodes.environment |= {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_TOKEN": token}
    try:
        output = nodes.submit("verify", str(tmp_path), expect=2)
    finally:
        nodes.environment = before
    assert "asks for a token" in output


def test_ctrl_c_leaves_the_job_running_and_says_how_to_stop_it(nodes, undisturbed, tmp_path):
    command = ["submit", "predict", "--address", nodes.job_server, "--", "--model", undisturbed, "--input", ARCHIVE]
    process = nodes.start_tlray(*command, "--output", tmp_path / "labels", "--max-engines", "1")
    shown = ""
    while "predict: 600 images" not in shown:
        line = process.stdout.readline()
        assert line, shown
        shown += line
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 130, rest
    assert "runs on without this terminal" in rest
    (stop,) = [line.split()[1:] for line in rest.splitlines() if line.lstrip().startswith("stop")]
    job_id = stop[-1]
    assert json.loads(ask(nodes, f"/api/jobs/{job_id}"))["status"] == "RUNNING"
    assert nodes.run(stop).returncode == 0
    assert json.loads(ask(nodes, f"/api/jobs/{job_id}"))["status"] == "STOPPED"


def test_a_path_that_one_machine_cannot_see_is_refused(nodes, hidden, undisturbed, tmp_path):
    if reason := explain_no_namespaces():
        pytest.skip(reason)
    options = ["--model", str(undisturbed), "--input", str(hidden), "--output", str(tmp_path / "labels")]
    output = nodes.submit("predict", *options, expect=2)
    assert f"--input: {hidden}/0.png is not there on {nodes.get_address('three')}, or another file" in output
    assert "WARNING" not in output


# ---- 50: no room ----------------------------------------------------------------------------------------------------


def test_50_more_gpus_than_the_cluster_has(nodes, tmp_path):
    options = ["--data", f"s3://{BUCKET}/train", "--output", str(tmp_path / "bundle"), "--num-workers", "2"]
    options += ["--gpus-per-worker", "1", "--wait-for-resources", "2", "--weights", "none"]
    output = nodes.submit("train", *options, expect=1)
    assert "waiting for 2 GPUs and 2.5 CPUs (--num-workers 2): the cluster has 1 GPU (1 free) and 6 CPUs" in output
    assert "--num-workers 2 needs 2 GPUs and 2.5 CPUs; the cluster has 1 GPU (1 free)" in output
    assert not (tmp_path / "bundle").exists()


# ---- 52: machines are lost ------------------------------------------------------------------------------------------


def test_52_21_a_node_is_lost_while_labelling(nodes, store, undisturbed, expected):
    _, client = store
    prefix = "lost-node"
    command = ["submit", "predict", "--address", nodes.job_server, "--", "--model", undisturbed, "--input", ARCHIVE]
    command += ["--output", f"s3://{BUCKET}/{prefix}", "--max-engines", "3"]
    command += ["--precision", "float32", "--gpus-per-engine", "0"]
    process = nodes.start_tlray(*command, "--rows-per-part", "64")
    wait_until(lambda: nodes.find("EngineActor") == sorted(WORKERS), process)
    wait_until(lambda: client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/labels/")["KeyCount"] >= 1, process)
    nodes.kill("three")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    check_labels(read_labels(client, prefix), expected)
    assert read_json(client, f"{prefix}/_receipt.json")["labelled"] == NUM_IMAGES
    nodes.add("three", 2)


@pytest.mark.chaos
def test_52_a_node_is_lost_while_training(nodes, store, undisturbed):
    _, client = store
    options = ["--data", f"s3://{BUCKET}/train", "--output", f"s3://{BUCKET}/bundle", *LONG_OPTIONS]
    options += ["--cache-dir", f"s3://{BUCKET}/cache", "--num-workers", "2", "--batch-size", "4"]
    options += ["--gpus-per-worker", "0"]  # TensorFlow does not see those that the nodes claim
    process = nodes.start_tlray("submit", "train", "--address", nodes.job_server, "--", *options)
    shown = ""
    while "epoch 6/10" not in shown:
        line = process.stdout.readline()
        assert line, shown
        shown += line
    busy = nodes.find("RayTrainWorker")
    assert len(busy) == 2
    nodes.kill(busy[1])
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, shown + output
    assert "workers were lost; 2 new ones go on after epoch" in output
    theirs = json.loads((undisturbed / "training" / "history.json").read_text())
    check_same_history(read_json(client, "bundle/training/history.json"), theirs)
    nodes.add(busy[1], 2)


@pytest.mark.chaos
def test_52_50_the_head_is_lost_and_the_same_job_goes_on_on_a_cluster_that_grows(
    nodes, store, undisturbed, expected, tmp_path
):
    """The last one: it leaves no head behind."""
    _, client = store
    prefix = "moved"
    options = ["--model", str(undisturbed), "--input", ARCHIVE, "--output", f"s3://{BUCKET}/{prefix}"]
    options += ["--precision", "float32", "--gpus-per-engine", "0", "--rows-per-part", "32"]
    shown = nodes.submit("predict", *options, "--max-engines", "1", more=["--detach"])
    assert "ray job logs --address" in shown
    deadline = time.monotonic() + 180
    while client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/labels/")["KeyCount"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    nodes.kill(HEAD)
    assert "Contents" not in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/_receipt.json")
    growing = {"cpu": {"CPU": 1, "most": 2}}
    with RayNodes(tmp_path, store[0], growing=growing) as others:
        shown = others.submit("predict", *options, "--min-engines", "2", "--max-engines", "3")
    assert "resuming:" in shown
    assert "waiting for 1.75 CPUs (--min-engines 2)" in shown
    assert "which grows by itself" in shown
    assert "2 engines (up to 3 as the cluster grows) of 1 thread" in shown
    check_labels(read_labels(client, prefix), expected)
