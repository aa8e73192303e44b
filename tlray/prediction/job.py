"""The job of a prediction run, saved beside its plan, so that only the same job resumes in an output."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np

from tlray import storage
from tlray.config import InputsConfig, PredictConfig
from tlray.console import now, say
from tlray.errors import ConfigError, DataError, OutputError, StoppedError
from tlray.metrics.thresholds import Thresholds, resolve_thresholds
from tlray.model.bundle import Bundle
from tlray.model.manifest import hash_json
from tlray.output import plan as planning
from tlray.output.plan import Plan
from tlray.output.schema import RequestedColumns
from tlray.sources import archives, manifests
from tlray.sources.candidates import REFUSED, SourceKind
from tlray.sources.listing import Selection, find_candidates
from tlray.sources.manifests import strip_working_dir
from tlray.storage.lock import NAME as LOCK
from tlray.storage.records import Json, RecordError, dump_record, parse_record

RECORD = "_job.json"

_DECIDING = ("top_k", "embeddings", "rows_per_part", "max_bytes", "max_pixels", "precision")
_SELECTING = (
    "uri_column", "id_column", "image_column", "columns", "sidecars", "include", "exclude", "limit", "sample", "shard",
    "allow",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One prediction job, however often it was stopped.

    Attributes:
        started: UTC, ISO 8601.
        asked: the options that decide its rows and their labels.
        update_from: address of the earlier output whose unchanged rows it copies.
    """

    run_id: str
    started: str
    asked: dict[str, Json]
    update_from: str | None


def describe_selection(config: InputsConfig) -> dict[str, Json]:
    """Return the options that decide the rows, and the content of lists, as plain JSON values."""
    chosen = {name: getattr(config, name) for name in _SELECTING}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    inputs = [archives.resolve(uri) for uri in config.input]
    lists = {strip_working_dir(uri): manifests.fingerprint(uri) for uri in inputs if manifests.is_manifest(uri)}
    return {"input": [strip_working_dir(uri) for uri in inputs], "lists": lists, **plain}


def describe_job(config: PredictConfig, bundle: Bundle) -> dict[str, Json]:
    """Return the options that decide the rows and their labels, as plain JSON values."""
    deciding = {name: getattr(config, name) for name in _DECIDING}
    min_probability = config.min_probability
    if min_probability == "auto":  # the model id does not cover thresholds
        least = resolve_thresholds(_find_thresholds(bundle), bundle.classes)
        min_probability = f"auto {hash_json(least.tolist())[:12]}"
    elif min_probability is not None:
        min_probability = repr(float(min_probability))
    review: dict[str, Json] = {"min_probability": min_probability, "max_ood": config.max_ood}
    return {**describe_selection(config), **deciding, **review, "model_id": bundle.model_id}


def asks_for_review(asked: dict[str, Json]) -> bool:
    """Return whether the options of a job mark labels for review."""
    return asked["min_probability"] is not None or asked.get("max_ood") is not None


def choose_columns(config: PredictConfig, bundle: Bundle) -> RequestedColumns:
    """Return the columns to predict.

    Raises:
        ConfigError: the bundle lacks features, thresholds or the out-of-distribution score.
    """
    size = bundle.num_features if config.embeddings else 0
    if config.embeddings and not size:
        raise ConfigError([f"--embeddings needs a bundle that gives features; {bundle.uri} gives none"])
    min_probabilities = None
    if config.min_probability == "auto":
        min_probabilities = resolve_thresholds(_find_thresholds(bundle), bundle.classes)
    elif config.min_probability is not None:
        min_probabilities = np.full(len(bundle.classes), float(config.min_probability), np.float32)
    if config.max_ood is not None and bundle.manifest.calibration.ood_score is None:
        raise ConfigError([f"--max-ood needs a bundle that gives an ood_score; {bundle.uri} gives none"])
    return RequestedColumns(min(config.top_k, len(bundle.classes)), size, min_probabilities, config.max_ood)


def _find_thresholds(bundle: Bundle) -> Thresholds:
    if bundle.manifest.thresholds is None:
        fault = f"--min-probability auto needs thresholds from validation images; {bundle.uri} has none"
        raise ConfigError([f"{fault}; give a probability from 0 to 1"])
    return bundle.manifest.thresholds


def check_same_job(output: str, have: dict[str, Json], asked: dict[str, Json]) -> None:
    """Raise `OutputError` naming each option in which an output's job differs from the one asked for."""
    differing = sorted(name for name in have if name in asked and have[name] != asked[name])
    if differing:
        listed = "; ".join(f"{name}: {have[name]} there, {asked[name]} asked" for name in differing)
        raise OutputError(f"--output {output} holds another job's labels ({listed}); give a new folder or prefix")


def check_output(output: str) -> None:
    """Raise `OutputError` if an output holds something other than a prediction run, or cannot be written."""
    storage.check_writable(output)
    if not storage.has_content(output) or storage.exists(storage.join(output, planning.FOLDER, planning.RECORD)):
        return
    for entry in storage.iter_files(output):
        if entry.name and not entry.name.startswith((f"{planning.FOLDER}/", LOCK, f".{LOCK}")):
            raise OutputError(
                f"--output {output} already holds something that is not a prediction run ({entry.name}); "
                "give a new folder or prefix"
            )


def open_plan(output: str, config: InputsConfig) -> Plan:
    """Return the plan that an earlier run of this job made, or a new one.

    Raises:
        DataError: an input cannot be used, or no image was found.
        OutputError: the existing plan is another job's.
    """
    selection = describe_selection(config)
    plan = planning.open_plan(output)
    if plan is not None:
        check_same_job(output, plan.measures.selection, selection)
        return plan
    say("listing the inputs")
    chosen = {name: getattr(config, name) for name in _SELECTING if name != "shard"}
    found = find_candidates(config.input, Selection(**chosen, shard=config.resolved_shard))
    try:
        plan = planning.write_plan(output, found, selection, config.image_column)
    except OutputError as error:
        raise StoppedError(f"{error}; run the same command to start over") from None
    for kind, count in plan.measures.refused_by_kind.items():
        say(f"{count:,} rows will fail: {REFUSED[SourceKind(kind)][1]}")
    if plan.num_rows == 0:
        storage.delete_folder(plan.address)
        if plan.measures.num_excluded:
            reasons = list(plan.measures.excluded_by_reason.items())[:5]
            listed = "; ".join(f"{count:,}: {reason}" for reason, count in reasons)
            why = f"all {plan.measures.num_excluded:,} addresses are left out ({listed})"
        else:
            why = "no file, member or line was found"
        raise DataError(f"--input {' '.join(map(storage.redact, config.input))} holds no images to predict; {why}")
    return plan


def open_job(output: str, asked: dict[str, Json], update_from: str | None) -> Job:
    """Return the job of an output, or a new one.

    Raises:
        OutputError: it is another job, or damaged.
        ConfigError: it began with another `--update-from`.
    """
    address = storage.join(output, planning.FOLDER, RECORD)
    if storage.exists(address):
        try:
            job = parse_record(Job, storage.get(address))
        except RecordError as error:
            raise OutputError(f"{address} is damaged: {error}; it was written by another tlray, or edited") from None
        check_same_job(output, job.asked, asked)
        if update_from is not None and update_from != job.update_from:
            fault = f"--update-from takes {job.update_from}, with which this output began, or nothing"
            raise ConfigError([f"{fault}; got {update_from}"])
        return job
    job = Job(uuid.uuid4().hex, now(), asked, update_from)
    storage.put(address, dump_record(job))
    return job
