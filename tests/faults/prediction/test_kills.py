"""Killed processes, images that kill, a second driver, runs that fail."""

import json
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.entry.conftest import run_tlray
from tests.faults.labels import SABOTAGE, check_same_labels, encode, make_options, make_picture, read_receipt, read_rows
from tests.faults.processes import Watched, kill


@pytest.fixture(scope="module")
def calm(undisturbed, tmp_path_factory):
    """600 pictures and what an undisturbed run makes of them."""
    root = tmp_path_factory.mktemp("calm")
    (root / "in").mkdir()
    for seed in range(600):
        (root / "in" / f"{seed:04d}.jpg").write_bytes(encode(make_picture(seed, (640, 480)), "JPEG"))
    run_tlray(*make_options(undisturbed, root / "out", root / "in", rows_per_part=20))
    return root / "in", root / "out"


def count_parts(output):
    folder = Path(output) / "labels"
    return len(list(folder.glob("part-*"))) if folder.is_dir() else 0


def test_19_driver_killed(calm, undisturbed, tmp_path):
    folder, expected = calm
    output = tmp_path / "out"
    options = make_options(undisturbed, output, folder, rows_per_part=20)
    for share in (0.2, 0.8):
        driver = Watched(*options)
        assert driver.wait_until(lambda share=share: count_parts(output) >= share * 30)
        driver.kill_driver()
        kept = {path: path.stat().st_mtime_ns for path in (output / "labels").glob("part-*")}
    printed = run_tlray(*options)
    done = int(printed.partition("resuming: ")[2].partition(" of")[0])
    assert done >= 20 * len(kept) >= 480
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    check_same_labels(output, expected)
    assert "Whole" in run_tlray("verify", str(output))


def test_21_18_workers_killed(calm, undisturbed, tmp_path):
    folder, expected = calm
    output = tmp_path / "out"
    driver = Watched(*make_options(undisturbed, output, folder, rows_per_part=20))
    for number, find in enumerate((driver.find_engines, driver.find_labellers, driver.find_engines)):
        driver.wait_until(lambda number=number: count_parts(output) > 6 * number)
        for pid in find()[:2]:
            kill(pid)
        time.sleep(2)
    driver.finish()
    check_same_labels(output, expected)
    assert "Whole" in run_tlray("verify", str(output))


def test_17_poison(calm, undisturbed, tmp_path):
    folder, _ = calm
    (tmp_path / "in").mkdir()
    for path in sorted(folder.iterdir())[:60]:
        shutil.copy(path, tmp_path / "in")
    picture = encode(make_picture(0))
    (tmp_path / "in" / "0010a.png").write_bytes(picture + b"POISON-EXIT")
    (tmp_path / "in" / "0012a.png").write_bytes(picture + b"POISON-FAULT")
    printed = run_tlray(
        *make_options(undisturbed, tmp_path / "out", tmp_path / "in"),
        env={**SABOTAGE, "TLRAY_SABOTAGE": "crash"},
    )
    rows = read_rows(tmp_path / "out")
    assert {name for name, row in rows.items() if row["status"] == "CRASHED"} == {"0010a.png", "0012a.png"}
    assert sum(row["status"] == "ok" for row in rows.values()) == 60
    assert "CRASHED 2" in printed


def test_28_nan(undisturbed, tmp_path):
    (tmp_path / "in").mkdir()
    for seed in range(4):
        (tmp_path / "in" / f"{seed}.png").write_bytes(encode(make_picture(seed)))
    (tmp_path / "in" / "red.png").write_bytes(encode(Image.new("RGB", (64, 64), "red")))
    run_tlray(
        *make_options(undisturbed, tmp_path / "out", tmp_path / "in"),
        env={**SABOTAGE, "TLRAY_SABOTAGE": "nan"},
    )
    rows = read_rows(tmp_path / "out")
    red = rows.pop("red.png")
    assert (red["status"], red["predicted_index"], red["probability"]) == ("MODEL_ERROR", None, None)
    assert {row["status"] for row in rows.values()} == {"ok"}


@pytest.mark.chaos
def test_drained_by_sigterm(calm, undisturbed, tmp_path):
    folder, expected = calm
    options = make_options(undisturbed, tmp_path / "out", folder)  # one part alone
    driver = Watched(*options)
    waiting = tmp_path / "out" / "_waiting"
    assert driver.wait_until(lambda: waiting.is_dir() and any(waiting.glob("*.parquet")))
    driver.terminate()
    printed = driver.finish(expect=1)
    assert "stopped by SIGTERM" in printed
    assert json.loads((tmp_path / "out" / "_progress.json").read_text())["state"] == "stopped"
    assert not (tmp_path / "out" / "_receipt.json").exists()
    # answers in waiting are retried like those in parts: at once what was asked for, in the end what was unreachable
    first, *others = sorted(waiting.glob("*.parquet"))
    table = pq.read_table(first)
    statuses = ["EMPTY", "DENIED", *table["status"].to_pylist()[2:]]
    position = table.column_names.index("status")
    field = table.schema.field(position)
    pq.write_table(table.set_column(position, field, pa.array(statuses)), first)
    num_rows = table.num_rows + sum(pq.read_metadata(other).num_rows for other in others)
    printed = run_tlray(*options, "--retry-failed", "EMPTY")
    assert f"resuming: {num_rows - 2:,} of 600 rows" in printed
    check_same_labels(tmp_path / "out", expected)


def test_22_half_a_part(calm, undisturbed, tmp_path):
    folder, expected = calm
    output = tmp_path / "out"
    shutil.copytree(expected, output)
    (output / "_receipt.json").unlink()
    parts = sorted((output / "labels").iterdir())
    parts[3].write_bytes(parts[3].read_bytes()[:-9])
    parts[7].rename(output / "labels" / f".{parts[7].name}.0123.partial")
    printed = run_tlray(*make_options(undisturbed, output, folder, rows_per_part=20))
    assert "resuming: 560 of 600 rows" in printed
    check_same_labels(output, expected)


@pytest.mark.chaos
def test_25_two_drivers(calm, undisturbed, tmp_path):
    folder, expected = calm
    output = tmp_path / "out"
    options = make_options(undisturbed, output, folder, rows_per_part=20)
    first = Watched(*options)
    assert first.wait_until(lambda: count_parts(output) >= 1)
    first.stop_driver()
    second = Watched(*options)
    second.wait_for("waiting up to 60 s")
    first.kill_driver()
    began = time.monotonic()
    second.wait_for("resuming")
    assert time.monotonic() - began < 20
    second.finish()
    check_same_labels(output, expected)


def test_26_all_fail(undisturbed, tmp_path):
    (tmp_path / "in").mkdir()
    for seed in range(3):
        (tmp_path / "in" / f"{seed}.png").write_bytes(encode(make_picture(seed)))
    run_tlray("plan", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    run_tlray(*make_options(undisturbed, tmp_path / "out", tmp_path / "in"), expect=1)
    table = pq.read_table(tmp_path / "out" / "labels")
    assert table["status"].to_pylist() == ["NOT_FOUND"] * 3
    assert table.schema.field("probability").type == pa.float32()
    assert read_receipt(tmp_path / "out")["failed_by_code"] == {"NOT_FOUND": 3}
    assert "Whole" in run_tlray("verify", str(tmp_path / "out"))


def test_27_too_many_fail(undisturbed, tmp_path):
    (tmp_path / "in").mkdir()
    for seed in range(20):
        data = b"" if seed % 2 else encode(make_picture(seed))
        (tmp_path / "in" / f"{seed:02d}.png").write_bytes(data)
    options = make_options(undisturbed, tmp_path / "out", tmp_path / "in", batch_size=4)
    printed = run_tlray(*options, "--max-failed", "0.2", expect=1)
    assert "more than --max-failed 0.2" in printed
    assert "EMPTY" in printed
    assert not (tmp_path / "out" / "_receipt.json").exists()
    run_tlray(*options, "--max-failed", "10")
    assert read_receipt(tmp_path / "out")["failed_by_code"] == {"EMPTY": 10}
