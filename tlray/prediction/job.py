"""What a labelling run was asked for, kept beside its plan, so that only the same job goes on in an output."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tlray import storage
from tlray.config import InputsConfig, PredictConfig
from tlray.console import now, say
from tlray.errors import ConfigError, DataError, OutputError, StoppedError
from tlray.images.decode import EXTENSIONS
from tlray.metrics.thresholds import resolve_thresholds
from tlray.model.bundle import Bundle, hash_json
from tlray.output import plan as planning
from tlray.output.plan import Plan
from tlray.output.schema import RequestedColumns
from tlray.sources import archives
from tlray.sources.listing import Selection, find_candidates
from tlray.storage.lock import NAME as LOCK

RECORD = "_job.json"

_DECIDING = ("top_k", "embeddings", "rows_per_part", "max_bytes", "max_pixels", "precision")
_SELECTING = ("uri_column", "id_column", "image_column", "include", "exclude", "limit", "sample", "shard", "allow")


@dataclass(frozen=True)
class Job:
    """One labelling run, however often it was stopped.

    Attributes:
        run_id: names it.
        started: UTC, ISO 8601.
        asked: what decides its rows and their labels.
        update_from: the earlier output whose unchanged rows it copies.
    """

    run_id: str
    started: str
    asked: dict[str, Any]
    update_from: str | None


def describe_selection(config: InputsConfig) -> dict[str, Any]:
    """What decides the rows, as plain JSON values."""
    chosen = {name: getattr(config, name) for name in _SELECTING}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    return {"input": [archives.resolve(uri) for uri in config.input], **plain}


def describe_job(config: PredictConfig, bundle: Bundle) -> dict[str, Any]:
    """What decides the rows and their labels."""
    deciding = {name: getattr(config, name) for name in _DECIDING}
    least = config.min_probability
    if least == "auto":  # a model id doesn't cover thresholds
        least = f"auto {hash_json(_find_thresholds(bundle))[:12]}"
    elif least is not None:
        least = repr(float(least))
    return {**describe_selection(config), **deciding, "min_probability": least, "model_id": bundle.model_id}


def choose_columns(config: PredictConfig, bundle: Bundle) -> RequestedColumns:
    """What engines are to answer.

    Raises:
        ConfigError: the bundle hasn't got what was asked for.
    """
    size = bundle.num_features if config.embeddings else 0
    if config.embeddings and not size:
        raise ConfigError([f"--embeddings needs a bundle that gives features; {bundle.uri} gives none"])
    least = None
    if config.min_probability == "auto":
        least = resolve_thresholds(_find_thresholds(bundle), bundle.classes)
    elif config.min_probability is not None:
        least = np.full(len(bundle.classes), float(config.min_probability), np.float32)
    return RequestedColumns(min(config.top_k, len(bundle.classes)), size, least)


def _find_thresholds(bundle: Bundle) -> dict[str, Any]:
    thresholds: dict[str, Any] = bundle.manifest["thresholds"]
    if not thresholds:
        raise ConfigError(
            [
                f"--min-probability auto needs thresholds from validation images, which {bundle.uri} hasn't got; "
                "give a probability from 0 to 1"
            ]
        )
    return thresholds


def check_same_job(output: str, have: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise `OutputError` naming each setting in which an output's job is another one."""
    differing = sorted(name for name in have if name in asked and have[name] != asked[name])
    if differing:
        told = "; ".join(f"{name}: {have[name]} there, {asked[name]} asked" for name in differing)
        raise OutputError(f"--output {output} holds another job's labels ({told}); give a new folder or prefix")


def check_output(output: str) -> None:
    """Raise `OutputError` where an output holds something that no labelling run left, or cannot be written."""
    storage.check_writable(output)
    if not storage.has_content(output) or storage.exists(storage.join(output, planning.FOLDER, planning.RECORD)):
        return
    for entry in storage.iter_files(output):
        if entry.name and not entry.name.startswith((f"{planning.FOLDER}/", LOCK, f".{LOCK}")):
            raise OutputError(
                f"--output {output} already holds something that is not a labelling run ({entry.name}); "
                "give a new folder or prefix"
            )


def open_plan(output: str, config: InputsConfig) -> Plan:
    """The plan that an earlier run of this job made, or a new one.

    Raises:
        DataError: an input cannot be used, or there is nothing to label.
        OutputError: the plan that is there is another job's.
    """
    selection = describe_selection(config)
    plan = planning.open_plan(output)
    if plan is not None:
        check_same_job(output, plan.selection, selection)
        return plan
    say("listing the inputs")
    chosen = {name: getattr(config, name) for name in _SELECTING if name != "shard"}
    found = find_candidates(config.input, Selection(**chosen, shard=config.resolved_shard))
    try:
        plan = planning.write_plan(output, found, selection, config.image_column)
    except OutputError as error:
        raise StoppedError(f"{error}; the same command starts anew") from None
    if plan.num_rows == 0:
        storage.delete_folder(plan.address)
        if plan.num_excluded:
            reasons = "; ".join(f"{count:,}: {reason}" for reason, count in list(plan.excluded_by_reason.items())[:5])
            why = f"all {plan.num_excluded:,} that were seen are left out ({reasons})"
        else:
            why = f"names end in {' '.join(sorted(EXTENSIONS))}, or have no extension"
        raise DataError(f"--input {' '.join(map(storage.redact, config.input))} holds no images to label; {why}")
    return plan


def open_job(output: str, asked: dict[str, Any], update_from: str | None) -> Job:
    """The job that an output's labels belong to, or a new one.

    Raises:
        OutputError: it is another one.
    """
    address = storage.join(output, planning.FOLDER, RECORD)
    if storage.exists(address):
        job = Job(**json.loads(storage.get(address)))
        check_same_job(output, job.asked, asked)
        if update_from is not None and update_from != job.update_from:
            raise ConfigError(
                [f"--update-from takes {job.update_from}, as when this output was begun, or nothing; got {update_from}"]
            )
        return job
    job = Job(uuid.uuid4().hex, now(), asked, update_from)
    storage.put(address, (json.dumps(asdict(job), indent=2, ensure_ascii=False) + "\n").encode())
    return job
