"""The real jobs, run as a user runs them, once a session: trained on digits, from local folders and through S3."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.browser import start_browser
from tests.conftest import find_runner, find_test_data, set_environment
from tests.entry import s3

SEED = os.environ.get("TLRAY_TEST_SEED", "0")
"""Of the bundles that tests share: whatever it is, as whatever CPU trains them, all tests must pass."""

WEIGHTS = find_test_data() / "weights" / "mobilenet_v2_notop.h5"
PRETRAINED = WEIGHTS.is_file()
"""With real weights the small jobs learn, and are held to it; without them they only run."""

TRAIN_OPTIONS = ["--backbone", "mobilenet_v2", "--weights", str(WEIGHTS) if PRETRAINED else "none"]
TRAIN_OPTIONS += [
    "--recipe",
    "seed",
    "--image-size",
    "96",
    "--head-units",
    "64",
    "--head-epochs",
    "6",
    "--finetune-epochs",
    "2",
]
TRAIN_OPTIONS += ["--lr-finetune", "1e-3", "--num-workers", "2", "--batch-size", "4", "--no-horizontal-flip"]
TRAIN_OPTIONS += ["--seed", SEED, "--precision", "float32"]  # the features of training are then those of serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.entry)


@pytest.fixture(scope="module")  # its event loop would be in the way of other modules
def browser() -> Iterator[Browser]:
    """Return a headless browser; skip the test where there is none."""
    with start_browser() as browser:
        yield browser


def run_tlray(
    *arguments: str,
    expect: int = 0,
    timeout_s: int = 500,
    env: dict[str, str] | None = None,
    alone: bool = False,
    constants: dict[str, float] | None = None,
) -> str:
    """Run a command, on the Ray that tests share if there is one, or alone; its exit code must be the expected one."""
    environment = {**os.environ, **(env or {})}
    shared = None if alone else find_runner(environment)
    if shared is not None:
        code, output = shared.run(arguments, timeout_s, constants)
    else:
        assert not constants
        result = subprocess.run(
            [sys.executable, "-m", "tlray", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=environment,
        )
        code, output = result.returncode, result.stdout + result.stderr
    assert code == expect, output
    assert "Traceback" not in output, output
    return output


def read_manifest(bundle: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())
    return manifest


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, write_digits: Any) -> Path:
    """Three classes: 60 images to train on and 15 to test on."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(root / "train", 3, 20)
    write_digits(root / "test", 3, 5, skip=20)
    return root


@pytest.fixture(scope="session")
def damaged(digits: Path) -> Path:
    """The training image that is cut short."""
    path = sorted((digits / "train" / "1").iterdir())[0]
    path.write_bytes(path.read_bytes()[:100])
    return path


@pytest.fixture(scope="session")
def trained(digits: Path, damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle trained on the digits, as on a laptop, on a Ray of its own, and what the command printed."""
    bundle = tmp_path_factory.mktemp("trained") / "bundle"
    output = run_tlray(
        "train", "--data", str(digits / "train"), "--test-data", str(digits / "test"), "--output", str(bundle),
        *TRAIN_OPTIONS, alone=True,
    )  # fmt: skip
    return bundle, output


@pytest.fixture(scope="session")
def bundle(trained: tuple[Path, str]) -> Path:
    return trained[0]


@pytest.fixture(scope="module")
def bucket(digits: Path, damaged: Path) -> Any:
    """A bucket behind a real S3 API that holds the digits; the environment points at it."""
    with s3.serve() as (environment, client), set_environment(**environment):
        client.create_bucket(Bucket="tlray-test")
        for path in sorted(digits.rglob("*.png")):
            client.upload_file(str(path), "tlray-test", f"digits/{path.relative_to(digits).as_posix()}")
        yield client
