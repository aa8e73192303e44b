"""Fixtures for every tier: real images, and folders made of them."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.entry.runner import Runner

ROOT = Path(__file__).parents[1]


def find_test_data() -> Path:
    """Where real weights and photographs would lie."""
    return Path(os.environ.get("TLRAY_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Units first: what fails in seconds is told first, and nothing that the jobs leave behind can reach it."""
    tiers = ("entry", "faults")

    def find_tier(item: pytest.Item) -> int:
        package = item.path.relative_to(ROOT / "tests").parts[0]
        return tiers.index(package) + 1 if package in tiers else 0

    items.sort(key=find_tier)


@contextlib.contextmanager
def set_environment(**variables: str) -> Iterator[None]:
    """Sets variables, and restores them alone at the end."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches of this session alone, so that no run finds another's features."""
    with set_environment(XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache"))):
        yield


RUNNERS: list[Runner] = []
"""Processes that stay joined to a Ray, in which commands run one after another."""


def find_runner(environment: Mapping[str, str]) -> Runner | None:
    """Return the process in which a command of this environment may run."""
    return next((runner for runner in RUNNERS if runner.fits(environment)), None)


@contextlib.contextmanager
def start_runner() -> Iterator[None]:
    """A process that runs commands on the Ray that RAY_ADDRESS names, or on one of its own."""
    with Runner(os.environ) as runner:
        RUNNERS.append(runner)
        yield
        RUNNERS.remove(runner)


@pytest.fixture(scope="session")
def notebook() -> Iterator[None]:
    """A process with a local Ray for all commands, as in a notebook: each must free what it had booked."""
    with start_runner():
        yield


@contextlib.contextmanager
def start_cluster(num_cpus: int) -> Iterator[None]:
    """A Ray cluster that commands join, and a process that has joined it."""
    from ray.cluster_utils import Cluster

    with contextlib.ExitStack() as stack:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": num_cpus, "include_dashboard": False})
        stack.callback(cluster.shutdown)
        stack.enter_context(set_environment(RAY_ADDRESS=cluster.address))
        stack.enter_context(start_runner())
        yield


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real weights and photographs, where this machine has it."""
    folder = find_test_data()
    if not folder.is_dir():
        pytest.skip(f"TLRAY_TEST_DATA names no folder of weights and photographs ({folder})")
    return folder


@pytest.fixture(scope="session")
def write_digits() -> Callable[[Path, int, int], Path]:
    """Writes the first digits of a few classes as PNG class folders: `write_digits(folder, classes, images_each)`."""
    digits = load_digits()

    def write(folder: Path, num_classes: int, images_each: int, skip: int = 0) -> Path:
        for label in range(num_classes):
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            for index in np.flatnonzero(digits.target == label)[skip : skip + images_each]:
                pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
                image = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)
                image.save(folder / str(label) / f"digit_{index:04d}.png")
        return folder

    return write
