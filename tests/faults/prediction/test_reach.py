"""A bad way to the bytes: gone, changed, denied, throttled, cut off."""

import time

import pyarrow.parquet as pq
import pytest

from tests.entry.conftest import run_tlray
from tests.faults.labels import BUCKET, encode, make_options, make_picture, read_receipt, read_rows


@pytest.fixture
def proxy(store):
    """The proxy, behaving well again."""
    store[2].behave()
    return store[2]


HURRY = {"retry_for": 1, "outage_patience": 3}


def upload(store, prefix, count):
    for seed in range(count):
        store[1].put_object(Bucket=BUCKET, Key=f"{prefix}/{seed:03d}.png", Body=encode(make_picture(seed)))
    return f"s3://{BUCKET}/{prefix}"


def test_04_05_07_09_vanished_changed_throttled_reset(store, proxy, undisturbed, tmp_path):
    environment, client, _ = store
    source = upload(store, "rough", 12)
    run_tlray("plan", "--input", source, "--output", str(tmp_path / "out"), env=environment)
    client.delete_object(Bucket=BUCKET, Key="rough/003.png")
    client.put_object(Bucket=BUCKET, Key="rough/004.png", Body=encode(make_picture(99)))
    proxy.throttle["005.png"] = 3
    proxy.cut["006.png"] = 2
    printed = run_tlray(*make_options(undisturbed, tmp_path / "out", source), env=environment)
    status = {name: row["status"] for name, row in read_rows(tmp_path / "out").items()}
    assert status.pop("003.png") == "NOT_FOUND"
    assert status.pop("004.png") == "CHANGED"
    assert set(status.values()) == {"ok"}
    assert read_receipt(tmp_path / "out")["retries"] == 5
    assert "5 requests were asked again" in printed


def test_06_denied(store, proxy, undisturbed, tmp_path):
    environment = store[0]
    source = upload(store, "shut", 30)
    proxy.denied.add("shut/")
    began = time.monotonic()
    printed = run_tlray(*make_options(undisturbed, tmp_path / "out", source), expect=1, env=environment)
    assert "inputs cannot be reached (DENIED: access denied" in printed
    assert time.monotonic() - began < 200
    assert not (tmp_path / "out" / "_receipt.json").exists()
    proxy.denied.clear()
    run_tlray(*make_options(undisturbed, tmp_path / "out", source), env=environment)
    assert read_receipt(tmp_path / "out")["labelled"] == 30


def test_54_a_forbidden_prefix_becomes_rows_in_the_end(store, proxy, undisturbed, tmp_path):
    """25 neighbours that are denied among 125: the command ends, and asks for few of them more than once a pass."""
    environment = store[0]
    source = upload(store, "mixed/a", 50).removesuffix("/a")
    upload(store, "mixed/b", 25)
    upload(store, "mixed/c", 50)
    proxy.denied.add("mixed/b/")
    options = make_options(undisturbed, tmp_path / "out", source, rows_per_part=30, **HURRY)
    assert "trying 25 rows again" in run_tlray(*options, env=environment)
    receipt = read_receipt(tmp_path / "out")
    assert (receipt["labelled"], receipt["failed_by_code"]) == (100, {"DENIED": 25})
    assert "Already labelled" in run_tlray(*options, env=environment)
    # the failed rows alone are done again, inside their parts
    proxy.denied.clear()
    proxy.denied.add("mixed/b/017")
    proxy.num_gets.clear()
    run_tlray(*options, "--retry-failed", "DENIED", env=environment)
    receipt = read_receipt(tmp_path / "out")
    assert (receipt["labelled"], receipt["failed_by_code"]) == (124, {"DENIED": 1})
    counts = {key.rpartition("mixed/")[2]: count for key, count in proxy.num_gets.items()}
    assert {f"b/{number:03d}.png" for number in range(25)} <= counts.keys()
    # of the others the report shows pictures, each asked for once, and the driver asks for one that was read before
    assert sum(count for key, count in counts.items() if not key.startswith("b/")) <= 100 + 1
    assert "Whole" in run_tlray("verify", str(tmp_path / "out"))
    assert "Already labelled" in run_tlray(*options, "--retry-failed", "EMPTY", env=environment)


def test_08_outage(store, proxy, undisturbed, tmp_path):
    environment = store[0]
    source = upload(store, "far", 60)
    proxy.away_after = 25
    options = make_options(undisturbed, tmp_path / "out", source, batch_size=4, **HURRY)
    printed = run_tlray(*options, expect=1, env=environment)
    assert "cannot be reached" in printed
    assert not (tmp_path / "out" / "_receipt.json").exists()
    proxy.behave()
    run_tlray(*options, env=environment)
    assert read_receipt(tmp_path / "out")["labelled"] == 60


def test_55_slow_down_and_away_for_a_while(store, proxy, undisturbed, tmp_path):
    """No row fails: requests slow down where the store throttles, and wait where it is away."""
    environment = store[0]
    source = upload(store, "busy", 200)
    options = {"batch_size": 4, "retry_for": 4, "outage_patience": 60}
    proxy.max_per_s = 20
    run_tlray(*make_options(undisturbed, tmp_path / "slow", source, **options), env=environment)
    receipt = read_receipt(tmp_path / "slow")
    assert (receipt["labelled"], receipt["failed_by_code"]) == (200, {})
    assert 0 < receipt["retries"] <= proxy.num_throttled  # the report's pictures are asked for too
    proxy.behave()
    proxy.away_after, proxy.away_s = 50, 10
    run_tlray(*make_options(undisturbed, tmp_path / "away", source, **options), env=environment)
    receipt = read_receipt(tmp_path / "away")
    assert (receipt["labelled"], receipt["failed_by_code"]) == (200, {})


def test_34_secrets(store, proxy, undisturbed, tmp_path):
    environment = {**store[0], "AWS_ACCESS_KEY_ID": "AKIAFAKEFAKEFAKEFAKE", "AWS_SECRET_ACCESS_KEY": "hush/hush+hush"}
    signed = "https://host/x.png?X-Amz-Credential=AKIAFAKEFAKEFAKEFAKE%2Fx&X-Amz-Signature=5ec4e7"
    printed = run_tlray(*make_options(undisturbed, tmp_path / "a", signed), expect=2, env=environment)
    source = upload(store, "quiet", 3)
    proxy.denied.add("quiet/")
    printed += run_tlray(*make_options(undisturbed, tmp_path / "b", source), expect=1, env=environment)
    printed += run_tlray(
        *make_options(undisturbed, tmp_path / "b2", "s3://no-such-bucket/x"), expect=2, env=environment
    )
    (tmp_path / "m.csv").write_text(f"uri\n{source}/000.png\n{signed}\n{source}/001.png?X-Amz-Signature=5ec4e7\n")
    proxy.denied.clear()
    printed += run_tlray(*make_options(undisturbed, tmp_path / "c", tmp_path / "m.csv"), env=environment)
    kept = "".join(
        str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name != "m.csv" and "plan-" not in path.name and "labels" not in path.parts
    )
    errors = "".join(row["error"] or "" for row in pq.read_table(tmp_path / "c" / "labels").to_pylist())
    for secret in ("AKIAFAKE", "hush", "5ec4e7"):
        assert secret not in printed
        assert secret not in kept
        assert secret not in errors
