"""Close a prediction run whose rows are all written: its receipt and its report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tlray import report, storage
from tlray.console import now, say
from tlray.errors import DataError, OutageError, OutputError, StoppedError
from tlray.images.limits import Limits
from tlray.model.bundle import Bundle, list_versions
from tlray.output import receipt as receipts
from tlray.output.finished import read_images
from tlray.output.plan import Plan
from tlray.output.receipt import PartRecord, ProbeOutcome, Receipt, count_failed
from tlray.output.shares import FORMAT as SHARES_FORMAT
from tlray.output.shares import NAME as SHARES
from tlray.output.shares import Shares, write_shares
from tlray.output.waiting import FOLDER as WAITING
from tlray.prediction.job import Job, asks_for_review
from tlray.prediction.monitor import PROGRESS, RunClock
from tlray.prediction.probe import read_probe
from tlray.prediction.resume import RunState


def make_receipt(output: str, plan: Plan, job: Job, model_id: str, state: RunState, clock: RunClock) -> Receipt:
    """Return the receipt of a run whose rows are all written.

    Raises:
        StoppedError: some rows are missing.
    """
    parts = sorted(state.parts.values(), key=lambda part: part.name)
    written = sum(part.rows for part in parts)
    if written != plan.num_rows:
        raise StoppedError(f"{written:,} of {plan.num_rows:,} rows were written; run the same command again")
    failed_by_code = count_failed(parts)
    failed = sum(failed_by_code.values())
    probe = read_probe(output)
    return Receipt(
        format=receipts.FORMAT,
        run_id=job.run_id,
        model_id=model_id,
        planned=plan.num_rows,
        labelled=written - failed,
        failed=failed,
        failed_by_code=failed_by_code,
        excluded=plan.measures.num_excluded,
        retries=clock.num_retries,
        update=state.update,
        parts=[PartRecord(part.name, part.rows, part.sha256) for part in parts],
        config=job.asked,
        started=job.started,
        finished=now(),
        images_per_s=round(clock.rate, 2),
        images_per_s_steady=round(clock.steady_rate, 2),
        first_label_s=None if clock.first_label_s is None else round(clock.first_label_s, 2),
        stages={name: round(spent, 2) for name, spent in clock.stages.items()},
        versions=list_versions(),
        needs_review=sum(part.needs_review for part in parts) if asks_for_review(job.asked) else None,
        engines=clock.engines,
        probe=None if probe is None else ProbeOutcome(probe.images_per_s, round(clock.steady_rate, 2)),
    )


def write_report(
    output: str, plan: Plan, bundle: Bundle, receipt: Receipt, limits: Limits, clock: RunClock
) -> str | None:
    """Write the report; return its verdict on whether the labels look like the bundle's validation images.

    If the report fails, print why and return None: the labels are whole without it.
    """

    def read(row_ids: Sequence[int]) -> Iterator[bytes | None]:
        return read_images(plan, row_ids, limits)

    try:
        facts = report.gather_prediction_facts(output, receipt, bundle.manifest, clock.timeline)
        storage.put(storage.join(output, report.NAME), report.render_prediction(facts, read))
        write_shares(output, _count_shares(receipt, facts))
    except Exception as error:  # a report must never cost a run
        say(f"the report could not be written: {type(error).__name__}: {error}")
        with contextlib.suppress(DataError, OutputError, OutageError, OSError):
            storage.delete(storage.join(output, SHARES))  # of the labels before a retry
        return None
    return facts.verdict


def _count_shares(receipt: Receipt, facts: report.PredictionFacts) -> Shares:
    counted = max(facts.labelled_read, 1)
    labels = {name: facts.class_counts.get(name, 0) / counted for name in facts.classes}
    return Shares(SHARES_FORMAT, receipt.run_id, receipt.model_id, facts.labelled_read, labels, facts.corrected)


def close_run(output: str, receipt: Receipt) -> None:
    """Write the receipt, and remove what only an unfinished run needs."""
    receipts.write_receipt(output, receipt)
    with contextlib.suppress(DataError, OutputError, OutageError):  # the run is finished
        storage.delete(storage.join(output, PROGRESS))
        storage.delete_folder(storage.join(output, WAITING))
