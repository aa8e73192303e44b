"""A notebook, executed cell by cell: what stands below each cell."""

import os

import nbformat
import pytest
from nbclient import NotebookClient


@pytest.fixture(scope="module")
def cells(bundle, digits, tmp_path_factory):
    """Executed cells; the kernel is one of the environment, beside whatever the person's own has."""
    folder = tmp_path_factory.mktemp("notebook")
    options = f"model={str(bundle)!r}, input=({str(digits / 'test')!r},), output={str(folder / 'labels')!r}, max_cpus=2"
    codes = [
        f"import tlray\nbundle = tlray.load_bundle({str(bundle)!r})\nbundle",
        f"labelled = tlray.predict(tlray.PredictConfig({options}))\nlabelled",
        "tlray.compare(tlray.CompareConfig(old=labelled.output, new=labelled.output))",
        "print(repr(bundle), repr(labelled), sep='\\n')",
    ]
    # under pytest, ipykernel does not show what native code writes to stderr
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
    NotebookClient(notebook, timeout=300, kernel_name="python3", coalesce_streams=True).execute(env=environment)
    return notebook.cells


def split(cell):
    """The lines that a person reads on stdout, and the HTML of the result."""
    kinds = [(output.output_type, output.get("name")) for output in cell.outputs]
    assert set(kinds) <= {("stream", "stdout"), ("execute_result", None)}, cell.outputs
    assert len(kinds) <= 2
    printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    results = [output.data["text/html"] for output in cell.outputs if output.output_type == "execute_result"]
    return [line.split("\r")[-1] for line in printed.splitlines()], results


def test_a_bundle_shows_its_classes_and_golden_images(cells):
    lines, (html,) = split(cells[0])
    assert lines == []
    assert html.count("<img") >= 1
    assert "classes" in html


def test_a_prediction_shows_one_moving_line_and_its_counts(cells):
    lines, (html,) = split(cells[1])
    assert sum(line.startswith("predict: ") for line in lines) == 1
    assert len(lines) < 15
    assert "Labelled" in html
    assert "<img" in html


def test_a_comparison_shows_what_changes(cells):
    lines, (html,) = split(cells[2])
    assert len(lines) == 1
    assert "0.00%" in html


def test_objects_are_short_as_text(cells):
    lines, _ = split(cells[3])
    assert len(lines) == 2
    assert all(len(line) < 220 for line in lines)
