"""The engines of a trained bundle: OpenVINO's against TensorFlow's, and what happens where OpenVINO fails."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

import tlray
from tests.conftest import ROOT
from tests.entry.conftest import run_tlray
from tests.model.data import fit_checksums
from tlray.images.decode import decode
from tlray.metrics.ood import OodScore
from tlray.model.bundle import NETWORK
from tlray.model.engine import open_engine


@pytest.fixture(scope="module")
def opened(bundle):
    return tlray.load_bundle(str(bundle))


@pytest.fixture(scope="module")
def pixels(opened, digits):
    paths = sorted(digits.glob("test/*/*.png"))
    return np.stack([decode(path.read_bytes(), opened.image_size_px).pixels for path in paths])


def drop_network(bundle):
    """The same bundle as if OpenVINO could not convert its network."""
    files = {name: value for name, value in bundle.manifest.files.items() if not name.startswith("openvino/")}
    return replace(bundle, manifest=replace(bundle.manifest, files=files))


def test_openvino_answers_as_tensorflow_does(opened, pixels):
    ours = open_engine(opened, 4, precision="float32", num_threads=1)
    theirs = open_engine(drop_network(opened), 4, precision="float32", num_threads=1)
    assert (ours.form.library, theirs.form.library) == ("OpenVINO", "TensorFlow")
    answers, expected = ours.predict(pixels), theirs.predict(pixels)
    np.testing.assert_allclose(answers.probabilities, expected.probabilities, atol=1e-4)
    np.testing.assert_allclose(answers.embeddings, expected.embeddings, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(answers.ood_score, expected.ood_score, atol=1e-3)
    assert expected.ood_score.min() > 0


def test_a_batch_is_padded(opened, pixels):
    engine = open_engine(opened, 4, precision="float32", num_threads=1)
    together = engine.predict(pixels[:7])
    for row in range(7):
        alone = engine.predict(pixels[row : row + 1])
        assert alone.probabilities.shape == (1, 3)
        np.testing.assert_allclose(alone.probabilities[0], together.probabilities[row], atol=1e-6)
        np.testing.assert_allclose(alone.ood_score[0], together.ood_score[row], atol=1e-5)


def test_the_score_is_that_of_the_references(opened, pixels):
    engine = open_engine(opened, 4, precision="float32")
    score = OodScore.load(opened.path / "openvino" / "ood_score.npz")
    predictions = engine.predict(pixels[:5])
    np.testing.assert_allclose(predictions.ood_score, score.measure(predictions.embeddings), rtol=1e-6)


def test_a_network_that_openvino_refuses_is_run_by_tensorflow(bundle, digits, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    path = copy / NETWORK
    path.write_bytes(path.read_bytes().replace(b'type="MatMul"', b'type="SoftMax"'))
    fit_checksums(copy)
    opened = tlray.load_bundle(str(copy))
    engine = open_engine(opened, 4, precision="float32")
    assert engine.form.library == "TensorFlow"
    assert "float32: OpenVINO fails with" in engine.form.note
    printed = run_tlray(
        "predict", "--model", str(copy), "--input", str(digits / "test"), "--output", str(tmp_path / "labels")
    )
    assert "OpenVINO fails with" in printed
    assert "OpenVINO on" not in printed
    assert pq.read_table(tmp_path / "labels" / "labels")["status"].to_pylist() == ["ok"] * 15


@pytest.mark.parametrize("cut", [True, False], ids=["cut short", "of other features"])
def test_references_that_do_not_fit_leave_the_network_to_tensorflow(bundle, tmp_path, cut):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    path = copy / "openvino" / "ood_score.npz"
    if cut:
        path.write_bytes(b"PK")
    else:
        score = OodScore.load(path)
        replace(score, references=score.references[:, :, :-1]).save(path)
    fit_checksums(copy)
    assert open_engine(tlray.load_bundle(str(copy)), 4, precision="float32").form.library == "TensorFlow"


def list_libraries(process):
    """Names of TensorFlow's libraries that a process or its children have loaded."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            found |= {path for mapped in one.memory_maps() if "libtensorflow" in (path := mapped.path)}
        except (psutil.Error, OSError):
            continue
    return found


def test_no_process_of_a_prediction_loads_tensorflow(bundle, digits, tmp_path):
    command = [sys.executable, "-m", "tlray", "predict", "--model", str(bundle), "--input", str(digits / "test")]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path / "labels")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        watched, processes = psutil.Process(run.pid), 0
        while run.poll() is None:
            assert list_libraries(watched) == set()
            processes = max(processes, len(watched.children(recursive=True)) if run.poll() is None else 0)
            time.sleep(0.3)
        assert run.returncode == 0, run.stdout.read()
    assert processes > 3
    receipt = json.loads((tmp_path / "labels" / "_receipt.json").read_text())
    assert all("OpenVINO" in form for form in receipt["engines"])


SILENT = """
import socket, sys
asked = []
def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        asked.append(address)
        raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *address, **options: asked.append(address) or []
from pathlib import Path
from tlray import predict_image
from tlray.model.engines.openvino_engine import convert
convert(Path(sys.argv[1], "saved_model"), Path(sys.argv[2]), None)
print(predict_image(sys.argv[3], sys.argv[1]).class_name)
import threading, time
time.sleep(1)  # for a thread that reports
heavy = sorted({"tensorflow", "pandas"} & set(sys.modules))
print("asked", asked, heavy, [thread.name for thread in threading.enumerate()])
"""


def test_nothing_is_reported_to_anybody(bundle, digits, tmp_path):
    """Outside of pytest, since some packages fall silent in a test; OpenVINO's own converter would ask for a host."""
    image = next(digits.glob("test/*/*.png"))
    result = subprocess.run(
        [sys.executable, "-c", SILENT, str(bundle), str(tmp_path / "network"), str(image)],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "asked [] [] ['MainThread']" in result.stdout
