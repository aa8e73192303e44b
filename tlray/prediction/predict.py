"""The driver of labelling: plan once, label what is not done yet, write parts as they fill, close with a receipt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray import storage
from tlray.cluster import connect as runtime
from tlray.config import PredictConfig
from tlray.console import Stage, now, say
from tlray.errors import IN_THE_WAY, Code, ConfigError, OutputError, StoppedError
from tlray.model.bundle import Bundle, list_versions, load_bundle
from tlray.output import receipt as receipts
from tlray.output.parts import WAITING, Part, PartWriter, get_row_ids, make_name, make_schema
from tlray.output.plan import Plan
from tlray.output.reader import find_parts
from tlray.output.rowset import RowSet
from tlray.output.schema import RequestedColumns
from tlray.prediction import job as jobs
from tlray.prediction.job import Job
from tlray.prediction.monitor import PROGRESS, Failures, ProgressFile, Reach, TermSignal
from tlray.prediction.probe import read_probe
from tlray.prediction.update import Comparison, EarlierOutput, find_finished
from tlray.sources.candidates import SourceKind
from tlray.sources.reading import list_files, read_rows
from tlray.storage.lock import Lock

if TYPE_CHECKING:
    from tlray.cluster.resources import Cluster
    from tlray.prediction.pipeline import PredictionPipeline

_SAVE_INTERVAL_S = 10.0
_SAVE_SHARE = 1 / 64
_SAVE_TIME = 0.05
_LOOKED_AT = 16
_TIMELINE_SAMPLES = 400


@dataclass(frozen=True)
class PredictSummary:
    """What a labelling run did.

    Attributes:
        output: where labels and receipt lie.
        receipt: the receipt.
        resumed_rows: rows that an earlier run had already finished.
        already_done: whether the receipt was there before and nothing was labelled.
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


def predict(config: PredictConfig) -> PredictSummary:
    """Label everything that `config.input` holds; a run that was stopped goes on, a finished one is left as it is.

    Raises:
        UsageError: a value, input, bundle or output cannot be used; nothing was started.
        StoppedError: labelling ended early; the same call goes on.
    """
    began = time.monotonic()
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
        runtime.import_ahead(verbose=config.verbose)
        plan = jobs.open_plan(output, config)
        job = jobs.open_job(output, asked, update_from)
        run = _Run(config, output, bundle, columns, plan, job, lock, began)
        try:
            return run.go()
        except OutputError as error:
            raise StoppedError(f"{error}; what is written stays, and the same command goes on") from None


def _find_finished(output: str, config: PredictConfig, asked: dict[str, object]) -> PredictSummary | None:
    """The summary of a run that has nothing left to do."""
    finished = receipts.read_receipt(output)
    if finished is None:
        return None
    jobs.check_same_job(output, finished.config, asked)
    if config.retry_failed is not None and finished.failed:
        codes = set(config.retry_failed or finished.failed_by_code)
        if codes & set(finished.failed_by_code):
            return None
    return PredictSummary(output, finished, finished.planned, already_done=True)


class _Run:
    """One call of `predict` at work on an output that is its own."""

    def __init__(
        self,
        config: PredictConfig,
        output: str,
        bundle: Bundle,
        columns: RequestedColumns,
        plan: Plan,
        job: Job,
        lock: Lock,
        began: float,
    ) -> None:
        self._config = config
        self._output = output
        self._bundle = bundle
        self._plan = plan
        self._job = job
        self._lock = lock
        self._began = began
        self._columns = columns
        self._schema = make_schema(bundle, job.run_id, plan.input_fields, columns.extra_fields)
        self._stages = {"planning": time.monotonic() - began}
        self._parts: dict[str, Part] = {}
        retry = config.retry_failed
        # what could not be reached is tried again in any case, at the end
        self._again: set[str] = set() if retry is None else set(retry or map(str, Code)) - IN_THE_WAY
        self._unreachable: list[int] = []
        self._comparison: Comparison | None = None
        self._retries = 0
        self._first_label_s: float | None = None
        self._last_label_s = 0.0
        self._first_rows = 0
        self._answered = 0
        self._engines: dict[str, int] = {}
        self._timeline: list[dict[str, float]] = []
        self._timeline_step_s = 1.0
        self._fetched_before = 0

    def go(self) -> PredictSummary:
        """Label what is not done, and write the receipt."""
        done = self._find_done()
        settled = done.copy()
        resumed = len(done)
        writer = self._make_writer(done)
        if self._job.update_from is not None:
            earlier = EarlierOutput(self._job.update_from, self._job.asked)
            kept = earlier.compare(self._plan, self._again)
            self._comparison = earlier.comparison
            writer = self._make_writer(done, kept, earlier)
            settled.update(kept)
            self._parts.update((part.name, part) for part in writer.write_kept())
        waiting = writer.load_waiting()
        if waiting is not None:
            waiting = waiting.filter(pc.invert(pc.is_in(waiting["status"], pa.array([*self._again], pa.string()))))
            self._add(writer, waiting)
            self._note_unreachable(waiting, waiting["status"].to_pylist())
            known = len(settled)
            settled.add(waiting["row_id"].to_numpy())
            resumed += len(settled) - known
        if resumed:
            say(f"going on: {resumed:,} of {self._plan.num_rows:,} rows are done")
        self._spend("resuming")
        if len(settled) < self._plan.num_rows or self._unreachable:
            self._label_all(writer, settled)
        receipt = self._make_receipt()
        verdict = self._write_report(receipt)
        self._close(receipt)
        return PredictSummary(self._output, receipt, resumed, already_done=False, verdict=verdict)

    def _find_done(self) -> RowSet:
        """The rows that need no more work: those in valid parts, but for failed ones that are to be tried again.

        What an earlier run could not reach is tried again at the end.
        """
        done = RowSet(self._plan.num_rows)
        for part, table in find_parts(self._output, self._bundle.model_id):
            row_ids = get_row_ids(part.name)
            if row_ids.start % self._config.rows_per_part or part.name != self._name_at(row_ids.start):
                continue
            self._parts[part.name] = part
            rows = np.arange(row_ids.start, row_ids.stop)
            if part.failed_by_code:
                statuses = np.array(table["status"].to_pylist(), object)
                self._unreachable += rows[np.isin(statuses, [*IN_THE_WAY])].tolist()
                rows = rows[~np.isin(statuses, [*self._again])]
            done.add(rows)
        if self._config.retry_failed is not None:
            storage.delete(storage.join(self._output, receipts.NAME))
        return done

    def _name_at(self, first: int) -> str:
        return make_name(first, min(self._config.rows_per_part, self._plan.num_rows - first))

    def _make_writer(
        self, done: RowSet, kept: RowSet | None = None, earlier: EarlierOutput | None = None
    ) -> PartWriter:
        rows_per_part = self._config.rows_per_part
        return PartWriter(self._output, self._plan, self._schema, rows_per_part, done, kept, earlier)

    def _add(self, writer: PartWriter, answers: pa.Table) -> None:
        for part in writer.add(answers):
            self._parts[part.name] = part

    def _label_all(self, writer: PartWriter, settled: RowSet) -> None:
        by_code = [item for part in self._parts.values() for item in part.failed_by_code.items()]
        num_failed = sum(count for code, count in by_code if code not in self._again | IN_THE_WAY)
        failures = Failures(self._config.max_failed, self._plan.num_rows, num_failed)
        with runtime.connect(self._config.address, self._config.max_cpus, verbose=self._config.verbose) as cluster:
            cluster = self._prepare(cluster)
            self._spend("ray")
            if len(settled) < self._plan.num_rows:
                self._label(writer, settled, cluster, failures, Reach(self._plan.num_rows))
            if self._unreachable:
                say(f"trying {len(self._unreachable):,} rows again that could not be reached")
                missed = np.array(sorted(self._unreachable), np.int64)
                self._unreachable = []
                settled = RowSet(self._plan.num_rows)
                settled.add(missed)
                settled.invert()
                self._label(self._make_writer(settled), settled, cluster, failures, None)
        self._spend("predicting")

    def _prepare(self, cluster: Cluster) -> Cluster:
        """Wait for room on a cluster, and see that its machines reach what is to be read."""
        from tlray.cluster.capacity import demand_engines, wait_for
        from tlray.cluster.checks import check_seen

        demand = demand_engines(cluster, self._config.engine_bounds)
        cluster = wait_for(demand, cluster, self._config.wait_for_resources)
        if not cluster.local:
            some = np.unique(np.linspace(0, self._plan.num_rows - 1, _LOOKED_AT, dtype=np.int64))
            check_seen("--input", list_files(self._plan.take(some)))
        return cluster

    def _label(
        self, writer: PartWriter, settled: RowSet, cluster: Cluster, failures: Failures, reach: Reach | None
    ) -> None:
        """Label the rows that are not settled; what a stopped run has answered is kept.

        Raises:
            StoppedError: a signal came, too much fails, or another driver took over.
        """
        from tlray.prediction.pipeline import PredictionPipeline, PredictionTask, choose_batch_rows, make_windows

        bounds = self._config.engine_bounds
        batch_rows = choose_batch_rows(self._config.batch_size, cluster.cpus, gpus=bounds.choose_gpus(cluster) > 0)
        task = PredictionTask(
            rows=self._plan,
            done=settled,
            windows=make_windows(settled, max(cluster.cpus, bounds.max_engines or 0), batch_rows, self._plan.streams),
            bundle=self._bundle,
            limits=self._config.limits,
            batch_size=self._config.batch_size,
            precision=self._config.precision,
            columns=self._columns,
            bounds=bounds,
        )
        labelling = PredictionPipeline(task, cluster)
        say(str(labelling.resources))
        left = self._plan.num_rows - len(settled)
        notice = ProgressFile(self._output, self._plan.num_rows, len(settled))
        with TermSignal(labelling.drain) as term, Stage("predict", left) as stage:
            try:
                for answers in self._save_now_and_then(labelling, writer):
                    self._lock.check()
                    self._last_label_s = time.monotonic() - self._began
                    if self._first_label_s is None:
                        self._first_label_s, self._first_rows = self._last_label_s, answers.num_rows
                        say(f"engines compute in {' and '.join(labelling.engines)}")
                    statuses = answers["status"].to_pylist()
                    if reach is not None:
                        reach.check(statuses)
                    self._add(writer, answers)
                    self._retries += sum(answers["retries"].to_pylist())
                    self._note_unreachable(answers, statuses)
                    stage.advance(answers.num_rows)
                    notice.advance(statuses)
                    left -= answers.num_rows
                    self._answered += answers.num_rows
                    self._note_time(labelling)
                    failures.check(statuses, final=reach is None)
                self._engines = labelling.engines
                self._fetched_before = self._answered
            except BaseException:
                with contextlib.suppress(OutputError):
                    writer.save_waiting()
                raise
            if left > 0:
                writer.save_waiting()
                notice.write("stopped")
                if not term.came:
                    raise StoppedError(f"{left:,} rows were not answered; the same command goes on")
                raise StoppedError(
                    f"stopped by SIGTERM: {self._plan.num_rows - left:,} of {self._plan.num_rows:,} rows are done; "
                    "the same command goes on"
                )

    def _save_now_and_then(self, labelling: PredictionPipeline, writer: PartWriter) -> Iterator[pa.Table]:
        """Keep answers whose parts aren't full every few seconds, and often in a short job."""
        last, unsaved, took_s = time.monotonic(), 0, 0.0
        for answers in labelling:
            yield answers
            unsaved += answers.num_rows
            spent_s = time.monotonic() - last
            due = unsaved >= self._plan.num_rows * _SAVE_SHARE or spent_s >= _SAVE_INTERVAL_S
            if due and spent_s >= took_s / _SAVE_TIME:  # embeddings make rows large
                began = time.monotonic()
                writer.save_waiting()
                last, unsaved, took_s = time.monotonic(), 0, time.monotonic() - began

    def _note_unreachable(self, answers: pa.Table, statuses: list[str]) -> None:
        if IN_THE_WAY & set(statuses):
            row_ids = answers["row_id"].to_pylist()
            self._unreachable += [
                row_id for row_id, status in zip(row_ids, statuses, strict=True) if status in IN_THE_WAY
            ]

    def _spend(self, stage: str) -> None:
        """Charge the time since the last stage to this one."""
        self._stages[stage] = time.monotonic() - self._began - sum(self._stages.values())

    def _note_time(self, labelling: PredictionPipeline) -> None:
        """A sample of how far each stage is, about every second and at most so many of a run."""
        seconds = time.monotonic() - self._began
        if not self._timeline or seconds - self._timeline[-1]["seconds"] >= self._timeline_step_s:
            fetched = self._fetched_before + labelling.count_fetched()
            self._timeline.append({"seconds": seconds, "fetched": fetched, "answered": self._answered})
        if len(self._timeline) > _TIMELINE_SAMPLES:
            self._timeline = self._timeline[::2]
            self._timeline_step_s *= 2

    def _write_report(self, receipt: receipts.Receipt) -> str | None:
        """The page for people; labels that are whole don't wait for it where it fails."""
        from tlray import report

        def read(row_ids: Sequence[int]) -> Iterator[bytes | None]:
            rows = self._plan.take(np.array(row_ids))
            gzipped = pc.equal(
                rows["source"], SourceKind.TAR_GZ.value
            ).to_pylist()  # found by reading all that is before
            others = rows.filter(pc.invert(pa.array(gzipped)))
            fetched = read_rows(others, self._config.max_bytes, self._plan.image_column)
            for inside in gzipped:
                data = None if inside else next(fetched).data
                yield data if isinstance(data, bytes) else None

        try:
            facts = report.gather_prediction_facts(self._output, receipt, self._bundle.manifest, self._timeline)
            storage.put(storage.join(self._output, report.NAME), report.render_prediction(facts, read))
        except Exception as error:  # the labels are whole, whatever a page stumbles over
            say(f"the report could not be written: {type(error).__name__}: {error}")
            return None
        return facts.verdict

    def _make_receipt(self) -> receipts.Receipt:
        """What was done, once all of it is written."""
        elapsed = time.monotonic() - self._began
        steady_s = self._last_label_s - (self._first_label_s or 0.0)
        # a run of one batch has no rate past its first
        steady = round((self._answered - self._first_rows) / steady_s if steady_s > 0 else self._answered / elapsed, 2)
        probe = read_probe(self._output)
        counts = receipts.summarize_parts(list(self._parts.values()))
        written = counts["labelled"] + counts["failed"]
        if written != self._plan.num_rows:
            raise StoppedError(f"{written:,} of {self._plan.num_rows:,} rows were written; run the same command again")
        return receipts.Receipt(
            format=receipts.FORMAT,
            run_id=self._job.run_id,
            model_id=self._bundle.model_id,
            planned=self._plan.num_rows,
            excluded=self._plan.num_excluded,
            needs_review=None
            if self._columns.min_probabilities is None
            else sum(part.needs_review for part in self._parts.values()),
            retries=self._retries,
            update=None if self._comparison is None else {"from": self._job.update_from, **asdict(self._comparison)},
            config=self._job.asked,
            started=self._job.started,
            finished=now(),
            images_per_s=round(self._answered / elapsed, 2),
            images_per_s_steady=steady,
            first_label_s=None if self._first_label_s is None else round(self._first_label_s, 2),
            stages={name: round(spent, 2) for name, spent in self._stages.items()},
            engines=self._engines,
            probe=None if probe is None else {"told": probe.images_per_s, "came": steady},
            versions=list_versions(),
            **counts,
        )

    def _close(self, receipt: receipts.Receipt) -> None:
        """Write the receipt and clear away what a stopped run would need."""
        receipts.write_receipt(self._output, receipt)
        storage.delete(storage.join(self._output, PROGRESS))
        storage.delete(storage.join(self._output, WAITING))
