"""Hostile and damaged bundles, and outputs that cannot be written."""

import hashlib
import json
import shutil
import time
import zipfile
from pathlib import Path

import pytest

from tests.entry.conftest import run_tlray
from tests.faults.labels import (
    BUCKET,
    encode,
    make_options,
    make_picture,
    read_receipt,
)
from tests.model.data import fit_checksums
from tlray.model.bundle import NETWORK


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


def keep_a_state(copy):
    path = copy / NETWORK
    path.write_bytes(path.read_bytes().replace(b'type="Convert"', b'type="Assign"'))
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


@pytest.mark.parametrize("change", [add_lambda, add_own_class, add_python_op, keep_a_state, replace_by_pickle])
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
    assert "run the same command to resume" in printed
    (tmp_path / "out" / "labels").unlink()
    run_tlray(*options)
    assert read_receipt(tmp_path / "out")["labelled"] == 3
    assert "cannot be written" in run_tlray(*make_options(undisturbed, "/proc/tlray", tmp_path / "in"), expect=2)
