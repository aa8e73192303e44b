"""`tlray predict`: plan once, predict the rows that are not done, write parts as they fill, close with a receipt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray import storage
from tlray.cluster import connect as clusters
from tlray.cluster.term_signal import TermSignal
from tlray.config import PredictConfig
from tlray.console import Stage, say
from tlray.errors import ConfigError, OutageError, OutputError, StoppedError
from tlray.model.bundle import Bundle, load_bundle
from tlray.output import receipt as receipts
from tlray.output.finished import open_finished
from tlray.output.ledger import name_precisions
from tlray.output.parts import PartWriter, make_schema
from tlray.output.plan import Plan
from tlray.output.rowset import RowSet
from tlray.output.schema import RequestedColumns
from tlray.prediction import job as jobs
from tlray.prediction.finish import close_run, make_receipt, write_report
from tlray.prediction.job import Job
from tlray.prediction.monitor import Failures, ProgressFile, RunClock
from tlray.prediction.reach import Reach
from tlray.prediction.resume import RunState, resume
from tlray.prediction.summary import PredictSummary
from tlray.sources.reading import list_files
from tlray.storage.lock import Lock
from tlray.storage.records import Json

if TYPE_CHECKING:
    from tlray.cluster.resources import Cluster
    from tlray.prediction.pipeline import PredictionPipeline

_SAVE_INTERVAL_S = 10.0
_SAVE_SHARE = 1 / 64
_MAX_SAVE_TIME = 0.05
_CHECKED_FILES = 16


def predict(config: PredictConfig) -> PredictSummary:
    """Predict all images in `config.input`; resume a stopped run, and leave a finished one as it is.

    Raises:
        UsageError: a value, input, bundle or output cannot be used; nothing was started.
        StoppedError: the run ended early; the same call resumes it.
    """
    clock = RunClock()
    config.check()
    if config.output is None:
        raise ConfigError(["--output is needed: a new folder or s3:// prefix for the labels"])
    storage.configure(config.s3_options)
    output = storage.resolve(config.output)
    bundle = load_bundle(config.model)
    asked, columns = jobs.describe_job(config, bundle), jobs.choose_columns(config, bundle)
    if (finished := _load_finished(output, config, asked)) is not None:
        return finished
    update_from = None if config.update_from is None else storage.resolve(config.update_from)
    if update_from is not None:
        open_finished(update_from, "--update-from")  # fails early
    jobs.check_output(output)
    with Lock(output, unsafe=config.unsafe_lock) as lock:
        if (finished := _load_finished(output, config, asked)) is not None:
            return finished  # by another driver, while this one waited for the lock
        clusters.import_ahead(verbose=config.verbose)
        plan = jobs.open_plan(output, config)
        lock.check()  # listing may have taken hours
        job = jobs.open_job(output, asked, update_from)
        schema = make_schema(bundle, job.run_id, plan.input_fields, columns.extra_fields)
        clock.spend("planning")
        try:
            return _complete(_Run(config, output, bundle, columns, plan, job, schema, lock, clock))
        except OutputError as error:
            raise StoppedError(f"{error}; finished parts are kept; run the same command to resume") from None


def _load_finished(output: str, config: PredictConfig, asked: dict[str, Json]) -> PredictSummary | None:
    """Return the summary of a finished run; None if there are rows to predict or to retry."""
    receipt = receipts.read_receipt(output)
    if receipt is None:
        return None
    jobs.check_same_job(output, receipt.config, asked)
    failed = set(receipt.failed_by_code)
    if config.retry_failed is not None and failed & set(config.retry_failed or failed):
        return None
    return PredictSummary(output, receipt, receipt.planned, already_done=True)


@dataclass(frozen=True)
class _Run:
    """Everything that stays the same during one call of `predict`, which holds the lock of the output."""

    config: PredictConfig
    output: str
    bundle: Bundle
    columns: RequestedColumns
    plan: Plan
    job: Job
    schema: pa.Schema
    lock: Lock
    clock: RunClock


def _complete(run: _Run) -> PredictSummary:
    """Predict the rows that earlier runs have not, and close the output."""
    num_rows, clock = run.plan.num_rows, run.clock
    state = resume(run.config, run.output, run.plan, run.job, run.schema, run.bundle.model_id)
    if state.resumed_rows:
        say(f"resuming: {state.resumed_rows:,} of {num_rows:,} rows are done")
    clock.spend("resuming")
    if len(state.settled) < num_rows or state.unreachable:
        _predict_remaining(run, state)
        clock.spend("predicting")
    run.lock.check()
    receipt = make_receipt(run.output, run.plan, run.job, run.bundle.model_id, state, clock)
    verdict = write_report(run.output, run.plan, run.bundle, receipt, run.config.limits, clock)
    run.lock.check()
    close_run(run.output, receipt)
    return PredictSummary(run.output, receipt, state.resumed_rows, already_done=False, verdict=verdict)


def _predict_remaining(run: _Run, state: RunState) -> None:
    """Predict the rows that are not settled, then try the unreachable ones once more."""
    config, num_rows = run.config, run.plan.num_rows
    failures = Failures(config.max_failed, num_rows, state.num_failed)
    with clusters.connect(config.address, config.max_cpus, verbose=config.verbose) as cluster:
        cluster = _wait_for_cluster(run, cluster)
        run.clock.spend("ray")
        reach = Reach(run.plan, config.outage_patience, state.read_row)
        while len(state.settled) < num_rows:
            _predict_rows(run, state, cluster, failures, reach, final=False)
        if state.unreachable:
            reach.ask()
            say(f"trying {len(state.unreachable):,} rows again that could not be reached")
            settled = RowSet(num_rows)
            settled.add(np.array(state.unreachable, np.int64))
            settled.invert()
            rows_per_part = config.rows_per_part
            writer = PartWriter(run.output, run.plan, run.schema, rows_per_part, settled, on_written=state.ledger.add)
            state.take_unreachable(writer, settled)
            while len(state.settled) < num_rows:
                _predict_rows(run, state, cluster, failures, reach, final=True)


def _wait_for_cluster(run: _Run, cluster: Cluster) -> Cluster:
    """Return the cluster as soon as the engines fit, once all its machines can read some of the images."""
    from tlray.cluster.capacity import demand_engines, wait_for
    from tlray.cluster.checks import check_seen

    cluster = wait_for(demand_engines(cluster, run.config.engine_bounds), cluster, run.config.wait_for_resources)
    if not cluster.local:
        sampled = np.unique(np.linspace(0, run.plan.num_rows - 1, _CHECKED_FILES, dtype=np.int64))
        check_seen("--input", list_files(run.plan.take(sampled)))
    return cluster


def _predict_rows(
    run: _Run, state: RunState, cluster: Cluster, failures: Failures, reach: Reach, *, final: bool
) -> None:
    """Predict the rows that are not settled, and write their parts; if it stops early, save the other predictions.

    In the final pass unreachable rows fail for good. Rows that a machine gave back stay for another call.

    Raises:
        StoppedError: SIGTERM came, too many rows failed, nothing can be read, or another driver took over the output.
    """
    num_rows, num_settled = run.plan.num_rows, len(state.settled)
    remaining = num_rows - num_settled
    pipeline = _open_pipeline(run, state, cluster)
    say(str(pipeline.resources))
    progress = ProgressFile(run.output, num_rows, num_settled)
    with (
        TermSignal(pipeline.stop, "finishing the rows in progress") as term,
        Stage("predict", remaining) as stage,
        reach,
    ):
        try:
            for predictions in _save_regularly(run, pipeline, state.writer, term):
                run.lock.check()
                if run.clock.first_label_s is None:
                    say(f"engines compute in {' and '.join(pipeline.engines)}")
                state.ledger.precision = name_precisions(pipeline.engines)
                statuses = predictions["status"].to_pylist()
                num_retries = pc.sum(predictions["retries"], min_count=0).as_py()
                run.clock.count(predictions.num_rows, num_retries, pipeline.count_fetched)
                reach.check(predictions["row_id"].to_numpy(), statuses)
                state.add(predictions, statuses)
                stage.advance(predictions.num_rows)
                progress.advance(statuses)
                remaining -= predictions.num_rows
                failures.check(statuses, final=final)
            run.clock.end_pass(pipeline.engines)
        except BaseException:
            if not run.lock.is_lost:
                with contextlib.suppress(OutputError, OutageError):
                    state.writer.save_waiting()
                    state.ledger.flush()
            raise
        state.ledger.flush()
        state.blind |= pipeline.sight.blind
        state.seeing |= pipeline.sight.seeing
        if 0 < remaining <= pipeline.sight.num_given_back and remaining < num_rows - num_settled and not term.received:
            say(f"{remaining:,} rows come back from machines that can read no input; others read them")
        elif remaining > 0:
            state.writer.save_waiting()
            progress.write("stopped")
            reason = "stopped by SIGTERM" if term.received else "the pipeline ended early"
            done = f"{num_rows - remaining:,} of {num_rows:,} rows are done"
            raise StoppedError(f"{reason}: {done}; run the same command to resume")


def _open_pipeline(run: _Run, state: RunState, cluster: Cluster) -> PredictionPipeline:
    from tlray.prediction.pipeline import PredictionPipeline, PredictionTask, choose_batch_rows, make_windows

    config, bounds = run.config, run.config.engine_bounds
    batch_rows = choose_batch_rows(config.batch_size, cluster.cpus, gpus=bounds.choose_gpus(cluster) > 0)
    num_cpus = max(cluster.cpus, bounds.max_engines or 0)
    task = PredictionTask(
        rows=run.plan,
        done=state.settled,
        windows=make_windows(state.settled, num_cpus, batch_rows, run.plan.measures.streams),
        bundle=run.bundle,
        limits=config.limits,
        batch_size=config.batch_size,
        precision=config.precision,
        columns=run.columns,
        bounds=bounds,
        reading_node=min(state.seeing - state.blind, default=None) if state.blind else None,
    )
    return PredictionPipeline(task, cluster)


def _save_regularly(
    run: _Run, pipeline: PredictionPipeline, writer: PartWriter, term: TermSignal
) -> Iterator[pa.Table]:
    """Yield predictions, and save those whose parts are not full every 10 s, or after 1/64 of the rows.

    After SIGTERM all are saved as they come: the process may be killed soon.
    """
    last, unsaved, save_s = time.monotonic(), 0, 0.0
    for predictions in pipeline:
        yield predictions
        unsaved += predictions.num_rows
        elapsed_s = time.monotonic() - last
        due = unsaved >= run.plan.num_rows * _SAVE_SHARE or elapsed_s >= _SAVE_INTERVAL_S
        if term.received or (due and elapsed_s >= save_s / _MAX_SAVE_TIME):  # saving is slow with embeddings
            began = time.monotonic()
            writer.save_waiting()
            last, unsaved, save_s = time.monotonic(), 0, time.monotonic() - began
