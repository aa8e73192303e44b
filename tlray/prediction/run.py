"""The driver of labelling: plan once, label what is not done yet, write parts as they fill, close with a receipt."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tlray import sources, storage
from tlray.bundle import Bundle, list_versions, load_bundle
from tlray.config import PredictConfig, describe
from tlray.errors import Code, ConfigError, OutputError, StoppedError
from tlray.prediction import receipt as receipts
from tlray.progress import Stage, say

PLAN = "_plan/plan-00000.parquet"
EXCLUDED = "_plan/excluded-00000.parquet"
PROGRESS = "_progress.json"

_JOB_KEY = b"tlray.job"
_PROGRESS_INTERVAL_S = 5.0
_IN_THE_WAY = {Code.DENIED, Code.THROTTLED, Code.TIMEOUT}
_STOP_AFTER_IN_SUCCESSION = 20
_STOP_WINDOW = 1000
_STOP_SHARE = 0.01


@dataclass(frozen=True)
class PredictSummary:
    """What a labelling run did.

    Attributes:
        output: where labels and receipt lie.
        receipt: the receipt.
        resumed_rows: rows that an earlier run had already finished.
        already_done: whether the receipt was there before and nothing was labelled.
    """

    output: str
    receipt: receipts.Receipt
    resumed_rows: int
    already_done: bool

    @property
    def exit_code(self) -> int:
        """1 where no row could be labelled, else 0."""
        return 1 if self.receipt.labelled == 0 else 0


@dataclass(frozen=True)
class _Job:
    """A plan and what it was made for."""

    plan: pa.Table
    num_excluded: int
    run_id: str
    started: str
    asked: dict[str, Any]


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
    output = storage.resolve(config.output)
    bundle = load_bundle(config.model)
    asked = _describe_job(config, bundle)
    finished = receipts.read_receipt(output)
    if finished is not None:
        _check_same_job(output, finished.config, asked)
        return PredictSummary(output, finished, finished.planned, already_done=True)
    storage.check_writable(output)
    job = _open_plan(output, config, asked)
    stages = {"planning": time.monotonic() - began}

    from tlray import runtime
    from tlray.limits import Limits
    from tlray.prediction.parts import PartWriter, find_parts, get_row_ids
    from tlray.prediction.pipeline import label_rows

    parts = find_parts(output, bundle)
    done = np.zeros(job.plan.num_rows, bool)
    for part in parts:
        done[get_row_ids(part)] = True
    resumed = int(done.sum())
    if resumed:
        say(f"going on: {resumed:,} of {job.plan.num_rows:,} rows are done")
    first_label: float | None = None
    if resumed < job.plan.num_rows:
        with runtime.connect(config.address, config.max_cpus, verbose=config.verbose) as cluster:
            stages["ray"] = time.monotonic() - began - sum(stages.values())
            rows = job.plan.filter(pa.array(~done)).select(["row_id", "uri"])
            limits = Limits(config.max_bytes, config.max_pixels)
            writer = PartWriter(output, job.plan, config.rows_per_part, bundle, job.run_id, config.top_k)
            watch = _Watch(rows.num_rows)
            notice = _ProgressFile(output, job.plan.num_rows, resumed)
            with Stage("label", rows.num_rows) as stage:
                for answers in label_rows(rows, bundle, cluster, limits, config.batch_size, top_k=config.top_k):
                    first_label = first_label or time.monotonic() - began
                    watch.check(answers["status"].to_pylist())
                    parts.extend(writer.add(answers))
                    stage.advance(answers.num_rows)
                    notice.advance(answers.num_rows)
            stages["labelling"] = time.monotonic() - began - sum(stages.values())
    elapsed = time.monotonic() - began
    fresh = job.plan.num_rows - resumed
    counts = receipts.summarize_parts(parts)
    if counts["labelled"] + counts["failed"] != job.plan.num_rows:
        raise StoppedError(
            f"{counts['labelled'] + counts['failed']:,} of {job.plan.num_rows:,} rows were written; "
            "run the same command again"
        )
    receipt = receipts.Receipt(
        format=receipts.FORMAT,
        run_id=job.run_id,
        model_id=bundle.model_id,
        planned=job.plan.num_rows,
        excluded=job.num_excluded,
        retries=0,
        config=asked,
        started=job.started,
        finished=_now(),
        images_per_s=round(fresh / elapsed, 2),
        images_per_s_steady=round(fresh / max(1e-9, elapsed - (first_label or 0.0)), 2),
        first_label_s=None if first_label is None else round(first_label, 2),
        stages={name: round(spent, 2) for name, spent in stages.items()},
        versions=list_versions(),
        **counts,
    )
    receipts.write_receipt(output, receipt)
    storage.delete(storage.join(output, PROGRESS))
    return PredictSummary(output, receipt, resumed, already_done=False)


def _describe_job(config: PredictConfig, bundle: Bundle) -> dict[str, Any]:
    """What decides the rows and their labels."""
    told = describe(config)
    for name in ("model", "output", "batch_size"):
        del told[name]
    inputs = [storage.resolve(uri) for uri in config.input]
    return {**told, "input": inputs, "model_id": bundle.model_id}


def _check_same_job(output: str, have: dict[str, Any], asked: dict[str, Any]) -> None:
    differing = sorted(name for name in asked if have.get(name) != asked[name])
    if differing:
        told = "; ".join(f"{name}: {have.get(name)} there, {asked[name]} asked" for name in differing)
        raise OutputError(f"--output {output} holds another job's labels ({told}); give a new folder or prefix")


def _open_plan(output: str, config: PredictConfig, asked: dict[str, Any]) -> _Job:
    """The plan of an earlier run of this job, or a new one."""
    address = storage.join(output, PLAN)
    if storage.exists(address):
        table = pq.read_table(pa.BufferReader(storage.get(address)))
        excluded = pq.read_metadata(io.BytesIO(storage.get(storage.join(output, EXCLUDED)))).num_rows
        job = json.loads((table.schema.metadata or {}).get(_JOB_KEY, b"{}"))
        _check_same_job(output, job.get("asked", {}), asked)
        return _Job(table, excluded, job["run_id"], job["started"], asked)
    if storage.has_content(output):
        raise OutputError(
            f"--output {output} already holds something that is not a labelling run; give a new folder or prefix"
        )
    plan = sources.plan(config.input)
    run_id, started = uuid.uuid4().hex, _now()
    record = json.dumps({"run_id": run_id, "started": started, "asked": asked}).encode()
    table = plan.table.replace_schema_metadata({_JOB_KEY: record})
    storage.put(storage.join(output, EXCLUDED), _to_parquet(plan.excluded))
    storage.put(address, _to_parquet(table))
    return _Job(table, plan.excluded.num_rows, run_id, started, asked)


def _to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class _Watch:
    """Stops a run whose inputs cannot be reached, rather than writing that off as their fault."""

    def __init__(self, num_rows: int) -> None:
        self._in_succession = 0
        self._window: deque[bool] = deque(maxlen=_STOP_WINDOW)
        self._left = num_rows
        self._unreachable = 0
        self._num_rows = num_rows

    def check(self, statuses: list[str]) -> None:
        """Look at the statuses of rows as they come.

        Raises:
            StoppedError: 20 in succession, over 1% of the last 1,000, or all of them could not be reached.
        """
        for status in statuses:
            unreachable = status in _IN_THE_WAY
            self._in_succession = self._in_succession + 1 if unreachable else 0
            self._window.append(unreachable)
            self._unreachable += unreachable
            self._left -= 1
            full = len(self._window) == _STOP_WINDOW
            if (
                self._in_succession >= _STOP_AFTER_IN_SUCCESSION
                or (full and sum(self._window) > _STOP_SHARE * _STOP_WINDOW)
                or (self._left == 0 and self._unreachable == self._num_rows)
            ):
                raise StoppedError(
                    f"inputs cannot be reached ({status}); mend the access, then the same command goes on"
                )


class _ProgressFile:
    """`_progress.json`, for those who watch from elsewhere."""

    def __init__(self, output: str, planned: int, done: int) -> None:
        self._address = storage.join(output, PROGRESS)
        self._planned = planned
        self._done = self._before = done
        self._started = time.monotonic()
        self._last = 0.0

    def advance(self, count: int) -> None:
        """Count finished rows; writes at most every 5 seconds."""
        self._done += count
        now = time.monotonic()
        if now - self._last < _PROGRESS_INTERVAL_S:
            return
        self._last = now
        rate = (self._done - self._before) / max(1e-9, now - self._started)
        state = {
            "planned": self._planned,
            "done": self._done,
            "images_per_s": round(rate, 2),
            "seconds_left": round((self._planned - self._done) / rate) if rate else None,
            "updated": _now(),
        }
        storage.put(self._address, json.dumps(state).encode())
