import dataclasses
import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.output.data import write_run
from tlray.config import VerifyConfig
from tlray.errors import OutputError
from tlray.output.receipt import write_receipt
from tlray.output.verify import verify

SECOND = "part-000000000004-000000000007.parquet"


@pytest.fixture
def run(tmp_path):
    """A finished run, as its address and its receipt."""
    _, receipt = write_run(tmp_path / "out", tmp_path / "in")
    return tmp_path / "out", receipt


def find_faults(output):
    summary = verify(VerifyConfig(output=str(output)))
    assert summary.exit_code == (1 if summary.faults else 0)
    return list(summary.faults)


def rewrite_second(run, change):
    """Rewrite the second part, and adapt its checksum in the receipt."""
    output, receipt = run
    path = output / "labels" / SECOND
    table = pq.read_table(path)
    pq.write_table(change(table), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    parts = [dataclasses.replace(part, sha256=sha256) if part.name == SECOND else part for part in receipt.parts]
    write_receipt(str(output), dataclasses.replace(receipt, parts=parts))
    return find_faults(output)


def replace(table, **columns):
    for name, values in columns.items():
        position = table.column_names.index(name)
        table = table.set_column(position, table.field(position), pa.array(values, table.field(position).type))
    return table


def test_a_whole_output_has_no_fault(run):
    summary = verify(VerifyConfig(output=str(run[0])))
    assert (summary.faults, summary.exit_code) == ((), 0)
    assert (summary.planned, summary.labelled, summary.failed, summary.parts) == (10, 9, 1, 3)
    assert summary.failed_by_code == {"EMPTY": 1}
    assert summary.model_id == "m" * 64


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="holds no prediction run; give the --output of tlray predict"):
        verify(VerifyConfig(output=str(tmp_path)))


def test_an_unfinished_run_is_a_fault(run):
    (run[0] / "_receipt.json").unlink()
    (fault,) = find_faults(run[0])
    assert fault.startswith("no receipt: the run has not finished")


def test_a_changed_byte_is_a_fault(run):
    path = run[0] / "labels" / SECOND
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # in the footer's metadata, which stays readable or not
    path.write_bytes(data)
    assert any(SECOND in fault for fault in find_faults(run[0]))


def test_a_rewritten_part_is_a_fault_even_if_its_rows_are_the_same(run):
    path = run[0] / "labels" / SECOND
    pq.write_table(pq.read_table(path), path, compression="none")
    assert find_faults(run[0]) == [f"{SECOND} has changed since it was written (sha256)"]


def test_a_missing_file_is_a_fault_with_its_counts(run):
    (run[0] / "labels" / SECOND).unlink()
    faults = find_faults(run[0])
    assert faults[0].startswith(f"{SECOND} cannot be read: ")
    assert faults[1:] == ["labelled is 9 in the receipt, but 5 in the files"]


def test_a_part_missing_from_the_receipt_is_a_gap_and_a_stray_file(run):
    output, receipt = run
    write_receipt(str(output), dataclasses.replace(receipt, parts=[receipt.parts[0], receipt.parts[2]]))
    faults = find_faults(output)
    assert faults[:2] == ["rows 4 to 7 are missing", f"1 files in labels/ are not in the receipt ({SECOND})"]


def test_a_part_that_is_listed_twice_and_a_short_end_are_faults(run):
    output, receipt = run
    write_receipt(str(output), dataclasses.replace(receipt, parts=[*receipt.parts[:2], receipt.parts[1]]))
    faults = find_faults(output)
    assert faults[:2] == ["rows 4 to 7 are in two parts", "the parts end at row 8, the plan at 10"]


def test_hidden_files_are_no_strays(run):
    (run[0] / "labels" / ".part.partial").write_bytes(b"x")
    assert find_faults(run[0]) == []


def test_counts_that_differ_from_the_files_are_named(run):
    output, receipt = run
    wrong = dataclasses.replace(receipt, planned=11, labelled=8, failed=2, failed_by_code={"CORRUPT": 2}, excluded=5)
    write_receipt(str(output), wrong)
    assert find_faults(output) == [
        "planned is 11 in the receipt, but 10 in the files",
        "labelled is 8 in the receipt, but 9 in the files",
        "failed is 2 in the receipt, but 1 in the files",
        "failed_by_code is {'CORRUPT': 2} in the receipt, but {'EMPTY': 1} in the files",
        "excluded is 5 in the receipt, but 0 in the files",
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda table: table.drop_columns(["probability", "uri"]), "lacks the columns uri, probability"),
        (lambda table: replace(table, row_id=[4, 5, 5, 7]), "does not hold the rows of its name, each once"),
        (lambda table: table.slice(0, 3), "does not hold the rows of its name, each once"),
        (lambda table: replace(table, uri=["/y"] * 4), "and the plan differ in their addresses"),
        (lambda table: replace(table, model_id=["m" * 64] * 3 + ["n"]), "was labelled by other models (n)"),
        (lambda table: table.replace_schema_metadata({b"tlray.model_id": b"n"}), "was labelled by other models (n)"),
        (lambda table: replace(table, class_name=["a", None, "a", "a"]), "has rows whose class_name contradicts"),
    ],
)
def test_a_part_whose_content_is_wrong_is_a_fault(run, change, fault):
    faults = rewrite_second(run, change)
    assert faults[0].startswith(f"{SECOND} {fault}")


def test_an_unknown_status_is_a_fault(run):
    faults = rewrite_second(run, lambda table: replace(table, status=["ok", "ok", "ok", "LOST"]))
    assert f"{SECOND} has unknown statuses (LOST)" in faults
    assert f"{SECOND} has rows whose probability contradicts their status" in faults
