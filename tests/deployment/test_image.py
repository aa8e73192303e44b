"""The image's recipe, which CI cannot build: what it copies, installs and runs as."""

import re

import pytest

from tests.conftest import ROOT

DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DROPPED = r"--(quiet|no-cache-dir|editable|no-compile|target \S+)\s+"


def list_stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage, `FROM` first, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    stages: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            name = rest.partition(" AS ")[2]
            stages[name] = []
        stages[name].append((instruction, rest))
    return stages


STAGES = list_stages()
IMAGES = ["cpu", "gpu"]


def list_copied() -> list[str]:
    rests = [rest for steps in STAGES.values() for name, rest in steps if name == "COPY" and "--from" not in rest]
    return [source for rest in rests for source in rest.split()[:-1]]


def is_ignored(path: str) -> bool:
    """What Docker's rules say: the last line that matches the path, or a folder above it, decides."""
    parents = path.split("/")
    above = ["/".join(parents[: index + 1]) for index in range(len(parents))]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pattern = re.escape(line.lstrip("!").strip("/")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        pattern = pattern.replace(r"\[", "[").replace(r"\]", "]")
        if any(re.fullmatch(pattern, part) for part in above):
            ignored = not line.startswith("!")
    return ignored


@pytest.mark.parametrize("source", list_copied())
def test_what_is_copied_exists_and_is_not_ignored(source):
    path = ROOT / source
    assert path.exists()
    files = [path] if path.is_file() else [file for file in path.rglob("*.*") if "__pycache__" not in file.parts]
    assert files
    assert [file for file in files if is_ignored(file.relative_to(ROOT).as_posix())] == []


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", ".env", "tests/conftest.py", "cluster/aws.yaml", "tlray/x.pyc", "a.pem"]
)
def test_nothing_else_gets_into_the_build(path):
    assert is_ignored(path)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_ends_as_a_user_without_rights(name):
    instructions = [instruction for instruction, _ in STAGES[name]]
    users = [rest for instruction, rest in STAGES[name] if instruction == "USER"]
    assert users == ["1000:1000"]
    assert "RUN" not in instructions
    assert instructions.index("USER") > instructions.index("COPY")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_built_on_stages_that_exist(name):
    for instruction, rest in STAGES[name]:
        if instruction == "FROM":
            assert rest.split()[0] in STAGES
        for source in re.findall(r"--from=(\S+)", rest):
            assert source in STAGES


def test_the_base_is_pinned():
    (argument,) = [rest for instruction, rest in STAGES[""] if instruction == "ARG"]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11-slim-\w+", argument)
    bases = {steps[0][1].split()[0] for name, steps in STAGES.items() if name}
    assert {base for base in bases if base not in STAGES} == {"${PYTHON_IMAGE}"}


def test_packages_are_installed_as_make_installs_them():
    image = [rest for steps in STAGES.values() for name, rest in steps if name == "RUN" and "pip install" in rest]
    installed = {re.sub(DROPPED, "", rest.partition("pip install ")[2]) for rest in image}
    made = {
        re.sub(DROPPED, "", line.partition("pip install ")[2]) for line in MAKEFILE.splitlines() if "pip inst" in line
    }
    shared = {step for step in made if "requirements-test" not in step}
    assert shared == {"--require-hashes -r cluster/requirements.txt", "--no-deps ."}
    assert installed - shared == {
        "--require-hashes -r cluster/requirements-cluster.txt",
        "--require-hashes -r cluster/requirements-gpu.txt",
    }
    assert shared < installed
    assert re.findall(r"-o (\S+)", MAKEFILE) == [
        "cluster/requirements.txt",
        "cluster/requirements-cluster.txt",
        "cluster/requirements-test.txt",
        "cluster/requirements-gpu.txt",
    ]


def read_pins(name: str) -> dict[str, str]:
    text = (ROOT / "cluster" / name).read_text()
    return {
        f"{found[0]} {found[2] or ''}": found[1] for found in re.findall(r"^(\S+)==(\S+) (; .*)?\\", text, re.MULTILINE)
    }


@pytest.mark.parametrize("name", ["requirements-cluster.txt", "requirements-gpu.txt", "requirements-test.txt"])
def test_no_package_is_pinned_twice(name):
    base, pins = read_pins("requirements.txt"), read_pins(name)
    assert len(base) > 50
    assert {package: pins[package] for package in pins if base.get(package, pins[package]) != pins[package]} == {}


def test_the_image_has_rays_job_server():
    assert "aiohttp" in {name.split()[0] for name in read_pins("requirements-cluster.txt")}


def test_a_node_wants_a_token():
    environment = " ".join(rest for steps in STAGES.values() for name, rest in steps if name == "ENV")
    assert "RAY_AUTH_MODE=token" in environment
    assert not re.search("TOKEN=|SECRET|PASSWORD", DOCKERFILE)


def test_no_step_names_where_packages_come_from():
    steps = [rest for steps in STAGES.values() for name, rest in steps if name == "RUN" and "pip" in rest]
    assert len(steps) == 4
    assert not any(re.search(r"(^| )(-i|-f|--[\w-]*index\S*|--find-links)\b|://", step) for step in steps)
