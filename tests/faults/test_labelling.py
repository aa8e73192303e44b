"""Faults 1 to 35: bad inputs, a bad way to them, killed processes, hostile bundles and manifests.

What is killed runs on a Ray of its own, everything else joins one cluster that outlives the runs.
"""

import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from ray.cluster_utils import Cluster

from tests.entry.conftest import run_tlray
from tests.faults import s3proxy
from tests.faults.processes import Watched, kill

SABOTAGE = {"PYTHONPATH": str(Path(__file__).parent / "sabotage"), "RAY_ADDRESS": "local"}
BUCKET = "tlray-faults"
PROBABILITY_TOLERANCE = 1e-5


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def make_picture(seed, size=(64, 48)):
    """A picture with structure, so that its label doesn't hang on noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def make_png_header(width, height):
    """A PNG whose header tells of a size that its data doesn't have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def make_options(bundle, output, *inputs, **more):
    options = ["predict", "--model", str(bundle), "--output", str(output), "--input", *map(str, inputs)]
    for name, value in more.items():
        options += ["--" + name.replace("_", "-"), str(value)]
    return options


def read_rows(output):
    """The labels by what follows the last slash of their address."""
    rows = pq.read_table(Path(output) / "labels").to_pylist()
    return {row["uri"].rpartition("/")[2]: row for row in rows}


def read_receipt(output):
    return json.loads((Path(output) / "_receipt.json").read_text())


def read_excluded(output):
    """Reasons by address."""
    table = pq.read_table(Path(output) / "_plan" / "excluded-00000.parquet")
    return dict(zip(table["uri"].to_pylist(), table["reason"].to_pylist(), strict=True))


def check_same_labels(ours, theirs):
    """The same rows with the same answers."""
    one, two = (pq.read_table(Path(output) / "labels").sort_by("row_id").to_pylist() for output in (ours, theirs))
    for row, twin in zip(one, two, strict=True):
        for name in ("row_id", "uri", "status", "predicted_index", "class_name"):
            assert row[name] == twin[name]
        assert row["probability"] == pytest.approx(twin["probability"], abs=PROBABILITY_TOLERANCE)


@pytest.fixture(scope="module")
def store():
    with s3proxy.serve() as (environment, client, proxy):
        client.create_bucket(Bucket=BUCKET)
        yield environment, client, proxy


@pytest.fixture(scope="module", autouse=True)
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


# ---- one run over everything that can be wrong with a file ----------------------------------------------------------

MODES = {
    "cmyk.tif": lambda image: encode(image.convert("CMYK"), "TIFF"),
    "grey.png": lambda image: encode(image.convert("L")),
    "grey_alpha.png": lambda image: encode(image.convert("LA")),
    "palette.png": lambda image: encode(image.quantize(64)),
    "rgba.png": lambda image: encode(image.convert("RGBA")),
    "one_bit.png": lambda image: encode(image.convert("1")),
    "deep.png": lambda image: encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)),
}
"""Each beside `twin_NAME.png`, the same picture as plain RGB."""

ODD_NAMES = [
    "UPPER.JPG",
    "_under.png",
    "a blank.png",
    "hash#tag.png",
    "what?.png",
    "per%20cent.png",
    "ümläut.png",
    "bare",
]


def write_zoo(folder):
    picture = make_picture(0)
    good = encode(picture, "JPEG", quality=95)
    files = {f"good_{seed}.png": encode(make_picture(seed)) for seed in range(6)}
    files |= {
        "cut.jpg": good[: len(good) // 2],
        "cut.png": encode(picture)[:200],
        "page.jpg": b"<!DOCTYPE html><html>404</html>",
        "text.png": b"just words",
        "empty.jpg": b"",
        "bomb_soft.png": encode(Image.new("1", (13_100, 13_000))),
        "bomb_hard.png": make_png_header(40_000, 25_000),
        "notes.txt": b"not an image",
    }
    for name, make in MODES.items():
        files[name] = make(picture)
        rgb = {"palette.png": picture.quantize(64), "one_bit.png": picture.convert("1")}.get(name)
        if name.startswith(("grey", "deep")):
            rgb = picture.convert("L")
        files[f"twin_{name}.png"] = encode((rgb or Image.open(io.BytesIO(files[name]))).convert("RGB"))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        data = encode(picture, exif=exif)
        files[f"exif_{turn}.png"] = data
        files[f"twin_exif_{turn}.png.png"] = encode(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    frames = [make_picture(seed).quantize(128) for seed in (1, 2, 3)]
    for form in ("GIF", "PNG", "WEBP"):
        shown = frames if form == "GIF" else [frame.convert("RGB") for frame in frames]
        lossless = {"lossless": True} if form == "WEBP" else {}
        name = f"moving.{form.lower()}"
        files[name] = encode(shown[0], form, save_all=True, append_images=shown[1:], **lossless)
        files[f"twin_{name}.png"] = encode(frames[0].convert("RGB"))
    files |= {name: encode(picture) for name in ODD_NAMES}
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


@pytest.fixture(scope="module")
def zoo(undisturbed, tmp_path_factory):
    """What a run over the zoo left: its folder, its output, what was written."""
    root = tmp_path_factory.mktemp("zoo")
    files = write_zoo(root / "in")
    with tarfile.open(root / "in" / "odd.tar", "w") as tar:
        for name in ("../../escaped.png", "/escaped.png", "fine.png"):
            member = tarfile.TarInfo(name)
            member.size = len(files["good_0.png"])
            tar.addfile(member, io.BytesIO(files["good_0.png"]))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        huge = tarfile.TarInfo("huge.png")
        huge.size = 10 * 2**30
        tar.fileobj.write(huge.tobuf())
    with zipfile.ZipFile(root / "in" / "odd.zip", "w") as archive:
        for name in ("../../escaped.png", "/escaped.png", "fine.png"):
            archive.writestr(name, files["good_0.png"])
    whole = (root / "in" / "odd.zip").read_bytes()
    (root / "in" / "cut.zip").write_bytes(whole[: whole.rfind(b"PK\x03\x04") + 60])
    lines = ["in/good_1.png", "in/good_1.png", "file:///etc/passwd", "http://169.254.169.254/x", "../up.png"]
    lines += ["s3://user:secretword@bucket/x.png", "/etc/passwd"]
    (root / "list.jsonl").write_text("".join(json.dumps({"uri": line, "n": n}) + "\n" for n, line in enumerate(lines)))
    before = set(root.parent.rglob("escaped.png"))
    printed = run_tlray(*make_options(undisturbed, root / "out", root / "in", root / "list.jsonl"))
    assert set(root.parent.rglob("escaped.png")) == before == set()
    assert not Path("/escaped.png").exists()
    return root / "in", root / "out", files, printed


@pytest.fixture(scope="module")
def zoo_rows(zoo):
    return read_rows(zoo[1])


def test_01_truncated(zoo_rows):
    assert zoo_rows["cut.jpg"]["status"] == zoo_rows["cut.png"]["status"] == "TRUNCATED"
    assert all(zoo_rows[f"good_{seed}.png"]["status"] == "ok" for seed in range(6))


def test_02_not_an_image(zoo_rows):
    assert zoo_rows["page.jpg"]["status"] == zoo_rows["text.png"]["status"] == "UNSUPPORTED"


def test_03_empty(zoo_rows):
    assert zoo_rows["empty.jpg"]["status"] == "EMPTY"


def test_10_bomb_soft(zoo_rows):
    row = zoo_rows["bomb_soft.png"]
    assert (row["status"], row["width"], row["height"]) == ("BOMB", 13_100, 13_000)


def test_11_bomb_hard(zoo_rows):
    row = zoo_rows["bomb_hard.png"]
    assert row["status"] == "BOMB"


def check_twins(rows, names):
    for name in names:
        ours, twin = rows[name], rows[f"twin_{name}.png"]
        assert ours["status"] == twin["status"] == "ok", name
        assert ours["class_name"] == twin["class_name"], name
        assert ours["probability"] == pytest.approx(twin["probability"], abs=0.01), name


def test_12_modes(zoo_rows):
    check_twins(zoo_rows, MODES)


def test_13_exif(zoo_rows):
    names = [f"exif_{turn}.png" for turn in range(1, 9)]
    check_twins(zoo_rows, names)
    for turn, name in enumerate(names, 1):
        assert (zoo_rows[name]["width"], zoo_rows[name]["height"]) == ((48, 64) if turn >= 5 else (64, 48))


def test_14_animated(zoo_rows):
    check_twins(zoo_rows, ["moving.gif", "moving.png", "moving.webp"])


def test_15_odd_names(zoo, zoo_rows):
    folder, output, _, _ = zoo
    assert all(zoo_rows[name]["status"] == "ok" for name in ODD_NAMES)
    assert read_excluded(output)[str(folder / "notes.txt")]
    receipt = read_receipt(output)
    assert receipt["planned"] == receipt["labelled"] + receipt["failed"]
    assert receipt["excluded"] == len(read_excluded(output))
    files = sum(path.suffix not in (".tar", ".zip") for path in folder.iterdir())
    members = 5 + 3 + 3 + 3  # of the tar, the zip and the cut zip, and the manifest's lines that may be read
    cut = 2  # the tar's and the cut zip's ends
    assert receipt["planned"] + receipt["excluded"] == files + members + 4 + cut


def test_16_duplicates(zoo):
    table = pq.read_table(zoo[1] / "labels", filters=[("input_n", "in", [0, 1])]).to_pylist()
    assert [row["input_n"] for row in table] == [0, 1]
    assert table[0]["uri"] == table[1]["uri"]
    assert table[0]["probability"] == table[1]["probability"]


def test_31_malicious_manifest(zoo):
    _, output, _, printed = zoo
    told = (output / "_receipt.json").read_text() + str(pq.read_table(output / "labels").to_pylist()) + printed
    excluded = read_excluded(output)
    assert {"file:///etc/passwd", "http://169.254.169.254/x", "../up.png"} <= excluded.keys()
    assert "secretword" not in told + str(excluded)
    assert "root:" not in told


def test_32_archive_traversal(zoo_rows, zoo):
    rows = {row["uri"]: row for row in pq.read_table(zoo[1] / "labels").to_pylist()}
    for archive in ("odd.tar", "odd.zip"):
        address = f"{zoo[0]}/{archive}"
        assert (
            rows[f"{address}#../../escaped.png"]["status"] == rows[f"{address}#/escaped.png"]["status"] == "UNSUPPORTED"
        )
        assert rows[f"{address}#fine.png"]["class_name"] == zoo_rows["good_0.png"]["class_name"]
    assert rows[f"{zoo[0]}/odd.tar#link.png"]["status"] == "UNSUPPORTED"
    assert rows[f"{zoo[0]}/odd.tar#huge.png"]["status"] == "TRUNCATED"


def test_33_cut_archive(zoo):
    folder, output, _, _ = zoo
    rows = {row["uri"]: row["status"] for row in pq.read_table(output / "labels").to_pylist()}
    assert rows[f"{folder}/cut.zip#fine.png"] == "TRUNCATED"
    excluded = {
        row["uri"]: row["reason"] for row in pq.read_table(output / "_plan" / "excluded-00000.parquet").to_pylist()
    }
    assert "cut short" in excluded[f"{folder}/cut.zip"]
    assert "cut short" in excluded[f"{folder}/odd.tar"]


def test_23_finished_job_again(zoo, undisturbed):
    folder, output, _, _ = zoo
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    printed = run_tlray(*make_options(undisturbed, output, folder, folder.parent / "list.jsonl"))
    assert "Already labelled" in printed
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


def test_24_other_model_same_output(zoo, undisturbed, tmp_path):
    folder, output, _, _ = zoo
    manifest = folder.parent / "list.jsonl"
    assert "input:" in run_tlray(*make_options(undisturbed, output, folder), expect=2)
    assert "top_k: 0 there, 3 asked" in run_tlray(
        *make_options(undisturbed, output, folder, manifest, top_k=3), expect=2
    )
    copy = tmp_path / "out"
    shutil.copytree(output, copy)
    (copy / "_receipt.json").unlink()
    job = json.loads((copy / "_plan" / "_job.json").read_text())
    job["asked"]["model_id"] = "0" * 64
    (copy / "_plan" / "_job.json").write_text(json.dumps(job))
    assert "model_id" in run_tlray(*make_options(undisturbed, copy, folder, manifest), expect=2)


def test_20_killed_at_the_end(zoo, undisturbed, tmp_path):
    folder, output, _, _ = zoo
    copy = tmp_path / "out"
    shutil.copytree(output, copy)
    (copy / "_receipt.json").unlink()
    run_tlray(*make_options(undisturbed, copy, folder, folder.parent / "list.jsonl"), timeout_s=60)
    assert read_receipt(copy)["parts"] == read_receipt(output)["parts"]
    assert "Whole" in run_tlray("verify", str(copy))


def test_verify_finds_what_is_wrong(zoo, tmp_path):
    output = zoo[1]
    assert "Whole" in run_tlray("verify", str(output))
    copy = tmp_path / "out"
    shutil.copytree(output, copy)
    part = next((copy / "labels").iterdir())
    whole = part.read_bytes()
    table = pq.read_table(part)
    pq.write_table(table.slice(1), part)
    assert "sha256" in run_tlray("verify", str(copy), expect=1)
    part.write_bytes(whole)
    (copy / "labels" / "part-extra.parquet").write_bytes(whole)
    assert "doesn't know" in run_tlray("verify", str(copy), expect=1)
    part.unlink()
    assert "cannot be read" in run_tlray("verify", str(copy), expect=1)
    (copy / "_receipt.json").unlink()
    assert "no receipt" in run_tlray("verify", str(copy), expect=1)
    assert "no labelling run" in run_tlray("verify", str(tmp_path), expect=2)


# ---- the way to the bytes -------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(store):
    """The proxy, behaving well again."""
    _, _, proxy = store
    proxy.throttle.clear()
    proxy.cut.clear()
    proxy.denied.clear()
    proxy.is_away, proxy.away_after = False, None
    proxy.num_gets.clear()
    return proxy


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
    assert "DENIED" in printed
    assert time.monotonic() - began < 200
    assert not (tmp_path / "out" / "_receipt.json").exists()
    proxy.denied.clear()
    run_tlray(*make_options(undisturbed, tmp_path / "out", source), env=environment)
    assert read_receipt(tmp_path / "out")["labelled"] == 30


def test_some_that_are_denied_become_rows_in_the_end(store, proxy, undisturbed, tmp_path):
    environment = store[0]
    source = upload(store, "ajar", 30)
    proxy.denied |= {"ajar/003", "ajar/017"}
    options = make_options(undisturbed, tmp_path / "out", source)
    assert "trying 2 rows again" in run_tlray(*options, env=environment)
    rows = read_rows(tmp_path / "out")
    assert rows["003.png"]["status"] == rows["017.png"]["status"] == "DENIED"
    assert read_receipt(tmp_path / "out")["labelled"] == 28
    before = {part["name"]: part["sha256"] for part in read_receipt(tmp_path / "out")["parts"]}
    # the failed rows alone are done again, inside their parts
    proxy.denied.remove("ajar/003")
    proxy.num_gets.clear()
    run_tlray(*options, "--retry-failed", "DENIED", env=environment)
    receipt = read_receipt(tmp_path / "out")
    assert (receipt["labelled"], receipt["failed_by_code"]) == (29, {"DENIED": 1})
    assert {part["name"] for part in receipt["parts"]} == set(before)
    counts = {key.rpartition("/")[2]: count for key, count in proxy.num_gets.items()}
    assert {"003.png", "017.png"} <= counts.keys()
    # of the others the report shows pictures, each asked for once
    assert {name for name, count in counts.items() if count > 1} <= {"003.png", "017.png"}
    assert "Whole" in run_tlray("verify", str(tmp_path / "out"))
    assert "Already labelled" in run_tlray(*options, "--retry-failed", "EMPTY", env=environment)


def test_08_outage(store, proxy, undisturbed, tmp_path):
    environment = store[0]
    source = upload(store, "far", 60)
    proxy.away_after = 25
    options = make_options(undisturbed, tmp_path / "out", source, batch_size=4)
    printed = run_tlray(*options, expect=1, env=environment)
    assert "cannot be reached" in printed
    assert not (tmp_path / "out" / "_receipt.json").exists()
    proxy.is_away, proxy.away_after = False, None
    run_tlray(*options, env=environment)
    assert read_receipt(tmp_path / "out")["labelled"] == 60


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


# ---- killed processes -----------------------------------------------------------------------------------------------


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
    done = int(printed.partition("going on: ")[2].partition(" of")[0])
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
    (tmp_path / "in" / "0040a.png").write_bytes(picture + b"POISON-FAULT")
    printed = run_tlray(
        *make_options(undisturbed, tmp_path / "out", tmp_path / "in"),
        env={**SABOTAGE, "TLRAY_SABOTAGE": "crash"},
    )
    rows = read_rows(tmp_path / "out")
    assert {name for name, row in rows.items() if row["status"] == "CRASHED"} == {"0010a.png", "0040a.png"}
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


def test_drained_by_sigterm(calm, undisturbed, tmp_path):
    folder, expected = calm
    options = make_options(undisturbed, tmp_path / "out", folder)  # one part alone
    driver = Watched(*options)
    assert driver.wait_until((tmp_path / "out" / "_waiting.parquet").exists)
    driver.terminate()
    printed = driver.finish(expect=1)
    assert "stopped by SIGTERM" in printed
    assert json.loads((tmp_path / "out" / "_progress.json").read_text())["state"] == "stopped"
    assert not (tmp_path / "out" / "_receipt.json").exists()
    # answers in waiting are retried like those in parts: at once what was asked for, in the end what was unreachable
    waiting = pq.read_table(tmp_path / "out" / "_waiting.parquet")
    statuses = ["EMPTY", "DENIED", *waiting["status"].to_pylist()[2:]]
    position = waiting.column_names.index("status")
    edited = waiting.set_column(position, waiting.field(position), pa.array(statuses))
    pq.write_table(edited, tmp_path / "out" / "_waiting.parquet")
    printed = run_tlray(*options, "--retry-failed", "EMPTY")
    assert f"going on: {waiting.num_rows - 1:,} of 600 rows" in printed
    assert "trying 1 rows again" in printed
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
    assert "going on: 560 of 600 rows" in printed
    check_same_labels(output, expected)


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
    second.wait_for("going on")
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


# ---- hostile bundles and full disks ---------------------------------------------------------------------------------


def spoil(bundle, folder, change):
    """A copy of a bundle after `change(copy)`, its checksums made to fit where the change asks for that."""
    copy = folder / "bundle"
    shutil.copytree(bundle, copy)
    change(copy)
    return copy


def flip_a_byte(copy):
    path = next((copy / "saved_model" / "variables").glob("*data*"), copy / "saved_model" / "saved_model.pb")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def drop_a_file(copy):
    (copy / "saved_model" / "saved_model.pb").unlink()


def drop_a_class(copy):
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["classes"].pop()
    (copy / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "told"), [(flip_a_byte, "was changed"), (drop_a_file, "is missing"), (drop_a_class, "class names")]
)
def test_29_corrupt_bundle(undisturbed, tmp_path, change, told):
    copy = spoil(undisturbed, tmp_path, change)
    (tmp_path / "a.png").write_bytes(encode(make_picture(0)))
    began = time.monotonic()
    assert told in run_tlray(*make_options(copy, tmp_path / "out", tmp_path / "a.png"), expect=2)
    assert time.monotonic() - began < 20
    assert not (tmp_path / "out").exists()


def add_lambda(copy):
    rewrite_keras(
        copy, lambda config: config["config"]["layers"].append({"module": "keras.layers", "class_name": "Lambda"})
    )


def add_own_class(copy):
    rewrite_keras(copy, lambda config: config.update(module="os", class_name="system"))


def add_python_op(copy):
    path = copy / "saved_model" / "saved_model.pb"
    path.write_bytes(path.read_bytes() + b"\x12\x06PyFunc")
    fit_checksums(copy)


def replace_by_pickle(copy):
    (copy / "model.keras").write_bytes(b"\x80\x04cos\nsystem\n.")
    fit_checksums(copy)


def rewrite_keras(copy, change):
    with zipfile.ZipFile(copy / "model.keras") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    change(config)
    files["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(copy / "model.keras", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    fit_checksums(copy)


def fit_checksums(copy):
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["files"] = {name: hashlib.sha256((copy / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (copy / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("change", [add_lambda, add_own_class, add_python_op, replace_by_pickle])
def test_30_malicious_model(undisturbed, tmp_path, change):
    copy = spoil(undisturbed, tmp_path, change)
    (tmp_path / "a.png").write_bytes(encode(make_picture(0)))
    assert "is refused" in run_tlray(*make_options(copy, tmp_path / "out", tmp_path / "a.png"), expect=2)
    assert "is refused" in run_tlray("show", str(copy), expect=2)


@pytest.mark.parametrize(
    "name", ["../../escaped", "/tmp/tlray-escaped/x", "golden/../../escaped", "golden\\..\\x", "bundle.json"]
)
@pytest.mark.parametrize("remote", [True, False])
def test_53_hostile_bundle(store, undisturbed, tmp_path, name, remote):
    """Names in a bundle's manifest that lead elsewhere; not a byte is written before they are looked at."""
    environment, client, _ = store
    copy = tmp_path / "in" / "bundle"
    shutil.copytree(undisturbed, copy)
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["files"][name] = hashlib.sha256(b"x").hexdigest()
    (copy / "bundle.json").write_text(json.dumps(manifest))
    address = str(copy)
    if remote:
        address = f"s3://{BUCKET}/hostile"
        for path in [path for path in copy.rglob("*") if path.is_file()]:
            client.upload_file(str(path), BUCKET, f"hostile/{path.relative_to(copy)}")
        if name != "bundle.json":
            client.put_object(Bucket=BUCKET, Key=f"hostile/{name}", Body=b"x")
    (tmp_path / "temporary" / "of" / "its" / "own").mkdir(parents=True)
    temporary = {"TMPDIR": str(tmp_path / "temporary" / "of" / "its" / "own")}
    before = set(tmp_path.rglob("*"))
    printed = run_tlray("show", address, expect=2, env={**environment, **temporary})
    assert "is refused" in printed
    assert repr(name) in printed
    assert set(tmp_path.rglob("*")) == before
    assert not Path("/tmp/tlray-escaped").exists()


def test_53_golden_images_elsewhere(undisturbed, tmp_path):
    (tmp_path / "secret.png").write_bytes(encode(make_picture(0)))
    copy = tmp_path / "bundle"
    shutil.copytree(undisturbed, copy)
    golden = json.loads((copy / "golden" / "golden.json").read_text())
    golden["images"][0]["file"] = "../secret.png"
    (copy / "golden" / "golden.json").write_text(json.dumps(golden))
    fit_checksums(copy)
    printed = run_tlray(*make_options(copy, tmp_path / "out", tmp_path / "secret.png"), expect=2)
    assert "'../secret.png', which bundle.json does not" in printed


def test_35_output_that_cannot_be_written(undisturbed, tmp_path):
    (tmp_path / "in").mkdir()
    for seed in range(3):
        (tmp_path / "in" / f"{seed}.png").write_bytes(encode(make_picture(seed)))
    options = make_options(undisturbed, tmp_path / "out", tmp_path / "in")
    run_tlray("plan", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    (tmp_path / "out" / "labels").write_text("in the way")  # as good as a full disk, and the same for root
    printed = run_tlray(*options, expect=1)
    assert "cannot be written" in printed
    assert "the same command goes on" in printed
    (tmp_path / "out" / "labels").unlink()
    run_tlray(*options)
    assert read_receipt(tmp_path / "out")["labelled"] == 3
    assert "cannot be written" in run_tlray(*make_options(undisturbed, "/proc/tlray", tmp_path / "in"), expect=2)
