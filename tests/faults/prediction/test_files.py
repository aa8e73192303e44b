"""Everything that can be wrong with a file, in one run over all of it."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from tests.entry.conftest import run_tlray
from tests.faults.labels import (
    encode,
    make_options,
    make_picture,
    make_png_header,
    read_excluded,
    read_receipt,
    read_rows,
)

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
    assert "not in the receipt" in run_tlray("verify", str(copy), expect=1)
    part.unlink()
    assert "cannot be read" in run_tlray("verify", str(copy), expect=1)
    (copy / "_receipt.json").unlink()
    assert "no receipt" in run_tlray("verify", str(copy), expect=1)
    assert "no prediction run" in run_tlray("verify", str(tmp_path), expect=2)
