"""Long runs of labelling: `make test-all` only."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.entry.conftest import run_tlray
from tests.faults import scale
from tests.faults.labels import BUCKET, SABOTAGE, check_same_labels, encode, make_options, make_picture
from tests.faults.processes import Watched, kill

IMAGES = 2000
DRIVER_KILLS = int(os.environ.get("TLRAY_TEST_KILLS", "100"))
MOST_REDONE = 0.05
ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
MOST_MEMORY_MIB = 1536
MOST_START_S = 60


@pytest.fixture(params=["local", "s3"])
def place(request, store, tmp_path):
    """A folder or prefix for inputs and output, the environment in which it can be reached, and a client of S3."""
    environment, client, proxy = store
    proxy.behave()
    if request.param == "local":
        return str(tmp_path), {}, None
    return f"s3://{BUCKET}/{tmp_path.name}", environment, client


@pytest.mark.chaos
def test_labelling_killed_at_a_hundred_random_moments_is_whole(undisturbed, place, tmp_path):
    """Drivers die, and their processes every few seconds; rows as in a calm run, little is done again."""
    root, environment, client = place
    for seed in range(IMAGES):
        put(client, f"{root}/in/{seed:04d}.png", encode(make_picture(seed, (320, 240))))
    more = {"embeddings": None, "max_failed": "0.5"}
    run_tlray(*make_options(undisturbed, f"{root}/calm", f"{root}/in", **more), env=environment)
    moments = random.Random(11)
    output, count = f"{root}/out", tmp_path / "count"
    options = make_options(undisturbed, output, f"{root}/in", **more)
    environment = {**SABOTAGE, **environment, "TLRAY_SABOTAGE": "count", "TLRAY_COUNT": str(count)}
    kills = workers = begun = 0
    while kills < DRIVER_KILLS:
        driver = Watched(*options, env=environment)
        pause_s = moments.uniform(0, 3)
        before = count.stat().st_size if count.exists() else 0
        line = moments.choice(["starting Ray", "predict:", "", ""])
        if line:
            running = driver.wait_for_any([line, "Whole", "labelled"], pause_s)
        else:  # some time behind the first new answers
            running = driver.wait_until(lambda before=before: count.exists() and count.stat().st_size > before)
            time.sleep(pause_s / 4)
        victims = driver.find_labellers()
        if running and victims and moments.random() < 0.5:
            kill(moments.choice(victims))
            workers += 1
            time.sleep(moments.uniform(0, 3))
        driver.kill_driver()
        if not running:  # it ended before its kill: whole, and begun anew
            assert "Whole" in run_tlray("verify", output, env=environment, alone=True)
            check_same_labels(*fetch_labels(client, tmp_path, output, f"{root}/calm"))
            output = f"{root}/out{begun}"
            options = make_options(undisturbed, output, f"{root}/in", **more)
            begun += 1
            continue
        kills += 1
    run_tlray(*options, env=environment)
    check_same_labels(*fetch_labels(client, tmp_path, output, f"{root}/calm"))
    assert "Whole" in run_tlray("verify", output, env=environment, alone=True)
    answered = sum(int(line) for line in count.read_text().split())
    redone = answered - IMAGES * (begun + 1)
    print(f"{kills} drivers and {workers} workers killed, {redone:,} rows answered again")
    assert redone <= MOST_REDONE * IMAGES * (kills + workers)


def put(client, uri, data):
    """Write a file or object of the test's."""
    if client is not None:
        client.put_object(Bucket=BUCKET, Key=uri.removeprefix(f"s3://{BUCKET}/"), Body=data)
        return
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    Path(uri).write_bytes(data)


def fetch_labels(client, folder, *outputs):
    """The outputs as local folders."""
    if client is None:
        return outputs
    copies = []
    for output in outputs:
        prefix = output.removeprefix(f"s3://{BUCKET}/")
        copy = folder / prefix.rpartition("/")[2]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/labels/"):
            for item in page["Contents"]:
                path = copy / "labels" / item["Key"].rpartition("/")[2]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read())
        copies.append(copy)
    return copies


def measure(*arguments):
    """Seconds and peak memory of one call of `scale`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.scale", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.chaos
def test_ten_million_rows_are_planned_and_resumed_in_bounded_memory(undisturbed, tmp_path):
    """Peak memory of the driver while it plans and while it resumes, and seconds until labelling starts."""
    table = []
    for rows in ROWS:
        output = tmp_path / str(rows)
        plan = measure(output, rows)
        measure(output, rows, "--done", rows - 10_000, "--bundle", undisturbed) if rows > 10_000 else None
        began = time.monotonic()
        driver = Watched(*make_options(undisturbed, output, scale.INPUT), "--max-failed", "0")
        driver.wait_for("predict:", timeout_s=600)
        start_s = time.monotonic() - began
        peak_mib = driver.read_peak_bytes(driver.pid) / 2**20
        driver.finish(expect=1)
        table.append((rows, plan["seconds"], plan["peak_mib"], start_s, peak_mib))
        shutil.rmtree(output)
    print(f"{'rows':>12}{'plan s':>10}{'plan MiB':>10}{'resume s':>10}{'resume MiB':>12}")
    for row in table:
        print(f"{row[0]:>12,}{row[1]:>10.1f}{row[2]:>10,.0f}{row[3]:>10.1f}{row[4]:>12,.0f}")
    _, _, plan_mib, start_s, resume_mib = table[-1]
    assert plan_mib <= MOST_MEMORY_MIB
    assert resume_mib <= MOST_MEMORY_MIB
    assert start_s <= MOST_START_S
