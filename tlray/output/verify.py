"""`tlray verify`: proof that an output is whole, by reading all of it again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tlray import storage
from tlray.config import VerifyConfig
from tlray.errors import OK, Code, OutputError
from tlray.output.parts import FOLDER, MODEL_ID_KEY, get_row_ids
from tlray.output.plan import Plan, open_plan
from tlray.output.reader import read_part
from tlray.output.receipt import Receipt, read_receipt
from tlray.output.schema import LABEL_FIELDS

_ANSWERS = ("predicted_index", "class_name", "probability")


@dataclass(frozen=True)
class VerifySummary:
    """What was proved, or what is wrong.

    Attributes:
        output: what was verified.
        planned, labelled, failed: rows as they were counted; planned = labelled + failed in a whole output.
        failed_by_code: failed rows by status.
        parts: files read.
        model_id: the bundle that labelled all rows.
        faults: one sentence for each thing that is wrong; none in a whole output.
    """

    output: str
    planned: int
    labelled: int
    failed: int
    failed_by_code: dict[str, int]
    parts: int
    model_id: str
    faults: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 for a whole output, else 1."""
        return 1 if self.faults else 0


def verify(config: VerifyConfig) -> VerifySummary:
    """Hold an output's parts against its plan and receipt: every row once, checksums right, one model.

    Raises:
        OutputError: there is no labelling run at all.
    """
    config.check()
    storage.configure(config.s3_options)
    output = storage.resolve(config.output)
    receipt, plan = read_receipt(output), open_plan(output)
    if plan is None:
        raise OutputError(f"{output} holds no labelling run; give the --output of tlray predict")
    if receipt is None:
        unfinished = "there is no receipt: the run has not finished; the same tlray predict command goes on"
        return VerifySummary(output, plan.num_rows, 0, 0, {}, 0, "", (unfinished,))
    statuses: dict[str, int] = {}
    faults = [*_check_names(output, receipt, plan)]
    for part in receipt.parts:
        faults += _check_part(output, part["name"], part["sha256"], receipt, plan, statuses)
    labelled = statuses.pop(OK, 0)
    failed = dict(sorted(statuses.items()))
    for name, told, counted in (
        ("planned", receipt.planned, plan.num_rows),
        ("labelled", receipt.labelled, labelled),
        ("failed", receipt.failed, sum(failed.values())),
        ("failed_by_code", receipt.failed_by_code, failed),
        ("excluded", receipt.excluded, plan.num_excluded),
    ):
        if told != counted:
            faults.append(f"the receipt says {name}: {told}, what is there says {counted}")
    return VerifySummary(
        output,
        plan.num_rows,
        labelled,
        sum(failed.values()),
        failed,
        len(receipt.parts),
        receipt.model_id,
        tuple(faults),
    )


def _check_names(output: str, receipt: Receipt, plan: Plan) -> Iterator[str]:
    """The receipt's parts must cover the plan without gap or overlap, and no other file may lie beside them."""
    names = [part["name"] for part in receipt.parts]
    expected = 0
    for name in sorted(names):
        row_ids = get_row_ids(name)
        if row_ids.start != expected:
            kind = "missing" if row_ids.start > expected else "there twice"
            low, high = sorted((expected, row_ids.start))
            yield f"rows {low:,} to {high - 1:,} are {kind}"
        expected = max(expected, row_ids.stop)
    if expected != plan.num_rows:
        yield f"the parts end at row {expected:,}, the plan at {plan.num_rows:,}"
    folder = storage.join(output, FOLDER)
    there = {entry.name for entry in storage.iter_files(folder)} if storage.has_content(folder) else set()
    stray = sorted(name for name in there - set(names) if not name.startswith("."))
    if stray:
        yield f"{len(stray):,} files in {FOLDER}/ that the receipt doesn't know ({', '.join(stray[:3])})"


def _check_part(
    output: str, name: str, sha256: str, receipt: Receipt, plan: Plan, statuses: dict[str, int]
) -> Iterator[str]:
    """What is wrong with one part; counts its statuses."""
    try:
        data, table = read_part(output, name)
    except OutputError as error:
        yield str(error)
        return
    if hashlib.sha256(data).hexdigest() != sha256:
        yield f"{name} is not the file that was written (sha256)"
    missing = [field.name for field in LABEL_FIELDS if field.name not in table.column_names]
    if missing:
        yield f"{name} lacks the columns {', '.join(missing)}"
        return
    row_ids = get_row_ids(name)
    if not np.array_equal(table["row_id"].to_numpy(), np.arange(row_ids.start, row_ids.stop)):
        yield f"{name} doesn't hold the rows that its name tells, once each"
        return
    if not table["uri"].equals(plan.read(row_ids.start, len(row_ids))["uri"]):
        yield f"{name} has other addresses than the plan"
    models = {*table["model_id"].unique().to_pylist(), (table.schema.metadata or {}).get(MODEL_ID_KEY, b"").decode()}
    if models != {receipt.model_id}:
        yield f"{name} was labelled by other models ({', '.join(sorted(map(str, models - {receipt.model_id})))})"
    here = table["status"].to_pylist()
    for status in here:
        statuses[status] = statuses.get(status, 0) + 1
    unknown = set(here) - {OK, *Code}
    if unknown:
        yield f"{name} has unknown statuses ({', '.join(sorted(unknown))})"
    ok = np.array(here, object) == OK
    for column in _ANSWERS:
        if not np.array_equal(table[column].is_valid().to_numpy(), ok):
            yield f"{name} has rows whose {column} doesn't go with their status"
