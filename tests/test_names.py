"""Names of modules that stand in strings, which neither the type checker nor the layer contract sees."""

import importlib
import importlib.util
import re

import pytest

import tlray
from tests.conftest import ROOT

STAND_INS = ("faults/sabotage/sitecustomize.py", "benchmarks/standin/sitecustomize.py")


@pytest.mark.parametrize("name", sorted(tlray._HOMES))
def test_a_name_of_the_package_is_where_it_is_said_to_be(name):
    module = importlib.util.find_spec(tlray._HOMES[name])
    assert module is not None
    assert re.search(rf"^(class|def) {name}\b|^from .* import .*\b{name}\b|^    {name},$", read(module.origin), re.M)


def test_every_public_name_has_a_home():
    assert set(tlray.__all__) == {*tlray._HOMES, "__version__"}


@pytest.mark.parametrize("path", STAND_INS)
def test_what_a_stand_in_patches_exists(path):
    text = (ROOT / "tests" / path).read_text()
    modules = set(re.findall(r'"(tlray\.[\w.]+)"', text))
    assert modules
    for module in modules:
        found = importlib.util.find_spec(module)
        assert found is not None, module
        for name in re.findall(r"module\.(\w+)", text):
            if len(modules) == 1:
                assert re.search(rf"^def {name}\b", read(found.origin), re.M), (module, name)


def test_the_patched_functions_are_there():
    assert "def _open(" in read(importlib.util.find_spec("tlray.images.decode").origin)
    assert "def open_engine(" in read(importlib.util.find_spec("tlray.model.engine").origin)
    assert "def import_tensorflow(" in read(importlib.util.find_spec("tlray.model.tf_imports").origin)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_a_script_in_a_string_imports_what_exists(path):
    for module, names in re.findall(r"^ *from (tlray[\w.]*) import (\w[\w, ]*)", path.read_text(), re.M):
        found = importlib.util.find_spec(module)
        assert found is not None, module
        text = read(found.origin)
        for name in re.findall(r"(\w+)(?: as \w+)?(?:, |$)", names):
            own = importlib.util.find_spec(f"{module}.{name}") if found.submodule_search_locations else None
            assert own or re.search(rf"\b{name}\b", text), (module, name)


def read(path):
    with open(path) as file:  # noqa: PTH123
        return file.read()


PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", ".s3rver", "build", "dist", ".git"} & set(path.relative_to(ROOT).parts)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_links_to_what_exists(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
                assert anchor in [re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings], target


def test_the_architecture_page_names_functions_that_exist():
    named = re.findall(r"`(\w+(?:/\w+)*\.py):([\w.]+)`", (ROOT / "tlray" / "README.md").read_text())
    assert len(named) > 30
    for path, name in named:
        text = read(ROOT / "tlray" / path)
        for part in name.split("."):
            assert re.search(rf"^\s*(?:def|class) {part}\b|^\s*{part}\b ?[:=]", text, re.M), (path, name)


def test_the_page_of_faults_names_tests_that_exist():
    defined = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.M))
    named = re.findall(r"`(test_\w+)`", (ROOT / "tests" / "faults" / "README.md").read_text())
    assert len(named) > 80
    assert sorted(set(named) - defined) == []
