"""The driver of prediction: plan once, predict what is not done yet, write parts as they fill, close with a receipt.

tlray predict --model bundle/ --input archive/ --output labels/
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.cluster import connect as clusters
from tlray.config import PredictConfig
from tlray.console import Stage, say
from tlray.errors import ConfigError, OutputError, StoppedError
from tlray.model.bundle import Bundle, load_bundle
from tlray.output import receipt as receipts
from tlray.output.parts import PartWriter, make_schema
from tlray.output.plan import Plan
from tlray.output.rowset import RowSet
from tlray.output.schema import RequestedColumns
from tlray.prediction import job as jobs
from tlray.prediction.finish import close_run, make_receipt, write_report
from tlray.prediction.job import Job
from tlray.prediction.monitor import Failures, ProgressFile, Reach, RunClock, TermSignal
from tlray.prediction.resume import RunState, resume
from tlray.prediction.update import find_finished
from tlray.sources.reading import list_files
from tlray.storage.lock import Lock
from tlray.storage.records import Json

if TYPE_CHECKING:
    from tlray.cluster.resources import Cluster
    from tlray.prediction.pipeline import PredictionPipeline

_SAVE_INTERVAL_S = 10.0
_SAVE_SHARE = 1 / 64
_SAVE_TIME = 0.05
_CHECKED_FILES = 16


@dataclass(frozen=True)
class PredictSummary:
    """The result of a prediction run.

    Attributes:
        output: address of the labels and the receipt.
        receipt: the receipt.
        resumed_rows: rows that earlier runs had finished.
        already_done: whether the receipt existed before and nothing was predicted.
        verdict: whether classes and probabilities are like those of the bundle's validation images; None where that
            cannot be told.
    """

    output: str
    receipt: receipts.Receipt
    resumed_rows: int
    already_done: bool
    verdict: str | None = None

    @property
    def exit_code(self) -> int:
        """1 where no row could be labelled, else 0."""
        return 1 if self.receipt.labelled == 0 else 0


@dataclass(frozen=True)
class _Run:
    """One call of `predict` on an output whose lock it holds: everything that stays the same while it runs."""

    config: PredictConfig
    output: str
    bundle: Bundle
    columns: RequestedColumns
    plan: Plan
    job: Job
    schema: pa.Schema
    lock: Lock
    clock: RunClock


def predict(config: PredictConfig) -> PredictSummary:
    """Label everything that `config.input` holds; a stopped run goes on, a finished one is left as it is.

    Raises:
        UsageError: a value, input, bundle or output cannot be used; nothing was started.
        StoppedError: the run ended early; the same call goes on.
    """
    clock = RunClock()
    config.check()
    if config.output is None:
        raise ConfigError(["--output is needed: a new folder or s3:// prefix for the labels"])
    storage.configure(config.s3_options)
    output = storage.resolve(config.output)
    bundle = load_bundle(config.model)
    asked, columns = jobs.describe_job(config, bundle), jobs.choose_columns(config, bundle)
    if (finished := _find_finished(output, config, asked)) is not None:
        return finished
    update_from = None if config.update_from is None else storage.resolve(config.update_from)
    if update_from is not None:
        find_finished(update_from)
    jobs.check_output(output)
    with Lock(output) as lock:
        if (finished := _find_finished(output, config, asked)) is not None:
            return finished  # by the driver that held the lock
        clusters.import_ahead(verbose=config.verbose)
        plan = jobs.open_plan(output, config)
        job = jobs.open_job(output, asked, update_from)
        schema = make_schema(bundle, job.run_id, plan.input_fields, columns.extra_fields)
        clock.spend("planning")
        try:
            return _finish(_Run(config, output, bundle, columns, plan, job, schema, lock, clock))
        except OutputError as error:
            raise StoppedError(f"{error}; what is written stays, and the same command goes on") from None


def _find_finished(output: str, config: PredictConfig, asked: dict[str, Json]) -> PredictSummary | None:
    """Return the summary of a run that has nothing left to do."""
    finished = receipts.read_receipt(output)
    if finished is None:
        return None
    jobs.check_same_job(output, finished.config, asked)
    if config.retry_failed is not None and finished.failed:
        codes = set(config.retry_failed or finished.failed_by_code)
        if codes & set(finished.failed_by_code):
            return None
    return PredictSummary(output, finished, finished.planned, already_done=True)


def _finish(run: _Run) -> PredictSummary:
    """Predict what no earlier run has, and close the output."""
    num_rows, clock = run.plan.num_rows, run.clock
    state = resume(run.config, run.output, run.plan, run.job, run.schema, run.bundle.model_id)
    if state.resumed_rows:
        say(f"going on: {state.resumed_rows:,} of {num_rows:,} rows are done")
    clock.spend("resuming")
    if len(state.settled) < num_rows or state.unreachable:
        _predict_missing(run, state)
        clock.spend("predicting")
    receipt = make_receipt(run.output, run.plan, run.job, run.bundle.model_id, state, clock)
    verdict = write_report(run.output, run.plan, run.bundle, receipt, run.config.limits, clock)
    close_run(run.output, receipt)
    return PredictSummary(run.output, receipt, state.resumed_rows, already_done=False, verdict=verdict)


def _predict_missing(run: _Run, state: RunState) -> None:
    """Predict the rows that are not settled on a cluster, then once more those that could not be reached."""
    config, num_rows = run.config, run.plan.num_rows
    failures = Failures(config.max_failed, num_rows, state.num_failed)
    with clusters.connect(config.address, config.max_cpus, verbose=config.verbose) as cluster:
        cluster = _prepare(run, cluster)
        run.clock.spend("ray")
        if len(state.settled) < num_rows:
            _predict_rows(run, state, cluster, failures, Reach(num_rows))
        if state.unreachable:
            say(f"trying {len(state.unreachable):,} rows again that could not be reached")
            settled = RowSet(num_rows)
            settled.add(np.array(sorted(state.unreachable), np.int64))
            settled.invert()
            writer = PartWriter(run.output, run.plan, run.schema, config.rows_per_part, settled)
            state.take_unreachable(writer, settled)
            _predict_rows(run, state, cluster, failures, None)


def _prepare(run: _Run, cluster: Cluster) -> Cluster:
    """Wait for room on a cluster, and check that its machines reach what is to be read."""
    from tlray.cluster.capacity import demand_engines, wait_for
    from tlray.cluster.checks import check_seen

    demand = demand_engines(cluster, run.config.engine_bounds)
    cluster = wait_for(demand, cluster, run.config.wait_for_resources)
    if not cluster.local:
        some = np.unique(np.linspace(0, run.plan.num_rows - 1, _CHECKED_FILES, dtype=np.int64))
        check_seen("--input", list_files(run.plan.take(some)))
    return cluster


def _predict_rows(run: _Run, state: RunState, cluster: Cluster, failures: Failures, reach: Reach | None) -> None:
    """Predict the rows that are not settled, and write their parts; predictions in hand survive a stop.

    Raises:
        StoppedError: a signal came, too many rows fail, the inputs are out of reach, or another driver took over.
    """
    pipeline = _open_pipeline(run, state, cluster)
    say(str(pipeline.resources))
    left = run.plan.num_rows - len(state.settled)
    progress = ProgressFile(run.output, run.plan.num_rows, len(state.settled))
    with TermSignal(pipeline.drain) as term, Stage("predict", left) as stage:
        try:
            for predictions in _save_now_and_then(run, pipeline, state.writer):
                run.lock.check()
                if run.clock.first_label_s is None:
                    say(f"engines compute in {' and '.join(pipeline.engines)}")
                statuses = predictions["status"].to_pylist()
                run.clock.count(predictions.num_rows, sum(predictions["retries"].to_pylist()), pipeline.count_fetched)
                if reach is not None:
                    reach.check(statuses)
                state.add(predictions, statuses)
                stage.advance(predictions.num_rows)
                progress.advance(statuses)
                left -= predictions.num_rows
                failures.check(statuses, final=reach is None)
            run.clock.end_pass(pipeline.engines)
        except BaseException:
            with contextlib.suppress(OutputError):
                state.writer.save_waiting()
            raise
        if left > 0:
            state.writer.save_waiting()
            progress.write("stopped")
            if not term.came:
                raise StoppedError(f"{left:,} rows were not predicted; the same command goes on")
            raise StoppedError(
                f"stopped by SIGTERM: {run.plan.num_rows - left:,} of {run.plan.num_rows:,} rows are done; "
                "the same command goes on"
            )


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
    )
    return PredictionPipeline(task, cluster)


def _save_now_and_then(run: _Run, pipeline: PredictionPipeline, writer: PartWriter) -> Iterator[pa.Table]:
    """Keep predictions whose parts aren't full every few seconds, and often in a short job."""
    last, unsaved, took_s = time.monotonic(), 0, 0.0
    for predictions in pipeline:
        yield predictions
        unsaved += predictions.num_rows
        spent_s = time.monotonic() - last
        due = unsaved >= run.plan.num_rows * _SAVE_SHARE or spent_s >= _SAVE_INTERVAL_S
        if due and spent_s >= took_s / _SAVE_TIME:  # embeddings make rows large
            began = time.monotonic()
            writer.save_waiting()
            last, unsaved, took_s = time.monotonic(), 0, time.monotonic() - began
