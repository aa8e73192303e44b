"""`tlray verify`: prove that an output is whole by reading all of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tlray import storage
from tlray.config import VerifyConfig
from tlray.errors import OK, Code, OutputError
from tlray.output.parts import FOLDER, get_row_ids
from tlray.output.plan import Plan, open_plan
from tlray.output.reader import read_part
from tlray.output.receipt import PartRecord, Receipt, read_receipt
from tlray.output.schema import LABEL_FIELDS, MODEL_ID_KEY

_PREDICTED = ("predicted_index", "class_name", "probability")


@dataclass(frozen=True)
class VerifySummary:
    """The result of `verify`.

    Attributes:
        planned, labelled, failed: numbers of rows found; planned = labelled + failed in a whole output.
        failed_by_code: failed rows by status.
        parts: number of files read.
        faults: one sentence per fault; none in a whole output.
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
    """Check an output's parts against its plan and receipt: every row once, the right checksums, one model.

    Raises:
        OutputError: the output holds no prediction run.
    """
    config.check()
    storage.configure(config.s3_options)
    output = storage.resolve(config.output)
    receipt, plan = read_receipt(output), open_plan(output)
    if plan is None:
        raise OutputError(f"{output} holds no prediction run; give the --output of tlray predict")
    if receipt is None:
        unfinished = "no receipt: the run has not finished; run the same tlray predict command to resume"
        return VerifySummary(output, plan.num_rows, 0, 0, {}, 0, "", (unfinished,))
    statuses: Counter[str] = Counter()
    faults = [*_check_names(output, receipt, plan)]
    for part in receipt.parts:
        faults += _check_part(output, part, receipt, plan, statuses)
    labelled = statuses.pop(OK, 0)
    failed = dict(sorted(statuses.items()))
    for name, recorded, found in (
        ("planned", receipt.planned, plan.num_rows),
        ("labelled", receipt.labelled, labelled),
        ("failed", receipt.failed, sum(failed.values())),
        ("failed_by_code", receipt.failed_by_code, failed),
        ("excluded", receipt.excluded, plan.measures.num_excluded),
    ):
        if recorded != found:
            faults.append(f"{name} is {recorded} in the receipt, but {found} in the files")
    num_failed, num_parts = sum(failed.values()), len(receipt.parts)
    return VerifySummary(
        output, plan.num_rows, labelled, num_failed, failed, num_parts, receipt.model_id, tuple(faults)
    )


def _check_names(output: str, receipt: Receipt, plan: Plan) -> Iterator[str]:
    """Check that the receipt's parts cover the plan without gap or overlap, and that no other file lies among them."""
    names = [part.name for part in receipt.parts]
    expected = 0
    for name in sorted(names):
        row_ids = get_row_ids(name)
        if row_ids.start != expected:
            kind = "missing" if row_ids.start > expected else "in two parts"
            low, high = sorted((expected, row_ids.start))
            yield f"rows {low:,} to {high - 1:,} are {kind}"
        expected = max(expected, row_ids.stop)
    if expected != plan.num_rows:
        yield f"the parts end at row {expected:,}, the plan at {plan.num_rows:,}"
    folder = storage.join(output, FOLDER)
    present = {entry.name for entry in storage.iter_files(folder)} if storage.has_content(folder) else set()
    stray = sorted(name for name in present - set(names) if not name.startswith("."))
    if stray:
        yield f"{len(stray):,} files in {FOLDER}/ are not in the receipt ({', '.join(stray[:3])})"


def _check_part(output: str, part: PartRecord, receipt: Receipt, plan: Plan, statuses: Counter[str]) -> Iterator[str]:
    """Yield the faults of one part, and count its statuses."""
    name = part.name
    try:
        data, table = read_part(output, name)
    except OutputError as error:
        yield str(error)
        return
    if hashlib.sha256(data).hexdigest() != part.sha256:
        yield f"{name} has changed since it was written (sha256)"
    missing = [field.name for field in LABEL_FIELDS if field.name not in table.column_names]
    if missing:
        yield f"{name} lacks the columns {', '.join(missing)}"
        return
    row_ids = get_row_ids(name)
    if not np.array_equal(table["row_id"].to_numpy(), np.arange(row_ids.start, row_ids.stop)):
        yield f"{name} does not hold the rows of its name, each once"
        return
    if not table["uri"].equals(plan.read(row_ids.start, len(row_ids))["uri"]):
        yield f"{name} and the plan differ in their addresses"
    models = {*table["model_id"].unique().to_pylist(), (table.schema.metadata or {}).get(MODEL_ID_KEY, b"").decode()}
    if models != {receipt.model_id}:
        yield f"{name} was labelled by other models ({', '.join(sorted(map(str, models - {receipt.model_id})))})"
    here = table["status"].to_pylist()
    statuses.update(here)
    unknown = set(here) - {OK, *Code}
    if unknown:
        yield f"{name} has unknown statuses ({', '.join(sorted(unknown))})"
    ok = np.array(here, object) == OK
    for column in _PREDICTED:
        if not np.array_equal(table[column].is_valid().to_numpy(), ok):
            yield f"{name} has rows whose {column} contradicts their status"
