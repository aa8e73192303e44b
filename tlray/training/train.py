"""Train a classifier from the driver: check, list and inspect the images, cache features, run the workers, save.

tlray train --data photos/ --output bundle/
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tlray import report, storage
from tlray.cluster import connect as clusters
from tlray.cluster.resources import Cluster
from tlray.config import Recipe, TrainConfig, describe, resolve
from tlray.console import now, say
from tlray.errors import OutputError, StoppedError
from tlray.features.cache import Cache, FrozenBase, Missing
from tlray.images.augment import Augmentation
from tlray.metrics.label_errors import LabelErrorSummary
from tlray.model import bundle
from tlray.model.backbones import BACKBONES
from tlray.model.manifest import Manifest, Preprocessing, RoleCounts, TrainingRecord
from tlray.model.precision import FloatName, Precision, choose_precision, detect_fastest, find_common
from tlray.model.weights import load_weights
from tlray.storage.lock import Lock
from tlray.storage.records import Json
from tlray.training import results
from tlray.training.checkpoint import load_state, name_run, name_trial
from tlray.training.dataset import Images, Roles, assign_roles, hold_out, list_images, list_keys
from tlray.training.results import TrainSummary

if TYPE_CHECKING:
    import ray

    from tlray.sources.places import Places
    from tlray.training.channel import TrainedModel
    from tlray.training.launch import Launch
    from tlray.training.monitor import Outcome

CONFIG = "training/config.yaml"

_CHECKED_FILES = 16
_BUILT_BY_WORKERS = 2000
"""Most passes through the frozen base for which engines are not worth their start, 15 s of a core each."""


def train(config: TrainConfig) -> TrainSummary:
    """Train a classifier and save its bundle; an existing bundle of the same config and images is returned.

    After an interruption the same call resumes after the last checkpoint, with the features in the cache.

    Raises:
        UsageError: a value, folder, weights file or output cannot be used; nothing was started.
        StoppedError: training ended early, or another process trains the same output.
    """
    config.check()
    storage.configure(config.s3_options)
    started = time.time()
    output = storage.resolve(config.output)
    _check_output(output)
    storage.check_writable(output)
    for option, uri in (("--cache-dir", config.cache_dir), ("--storage-path", config.storage_path)):
        if uri is not None:
            storage.check_writable(storage.resolve(uri), option)
    images = list_images(config)
    asked = {name: _plain(value) for name, value in describe(config).items()}
    if (existing := _summarize_existing(output, asked, images)) is not None:
        return existing
    base_weights = load_weights(config.weights, config.backbone)
    if base_weights is None and config.batchnorm == "frozen":
        say("WARNING: --weights none starts at random, and frozen BatchNorm never adapts to it; give --batchnorm train")
    folder = storage.resolve(config.work_folder)
    with contextlib.ExitStack() as stack:
        stack.callback(storage.delete_empty, folder)  # behind the lock's own removal
        lock = stack.enter_context(Lock(folder, unsafe=config.unsafe_lock, output=output))
        summary = _summarize_existing(output, asked, images)  # by another process, while this one waited for the lock
        if summary is None:
            summary = _train(config, output, images, asked, base_weights, lock, started)
    if config.mlflow_uri is not None and not summary.already_done:
        _track(config, summary)
    return summary


def _train(
    config: TrainConfig,
    output: str,
    images: Images,
    asked: dict[str, Json],
    base_weights: bytes | None,
    lock: Lock,
    started: float,
) -> TrainSummary:
    """Train, save the bundle and remove the checkpoints, all while holding the lock of the output."""
    roles = assign_roles(config, images, spread=False) if clusters.is_local(config.address) else None
    checkpoints = name_run(config, images.fingerprint)
    with clusters.connect(config.address, config.max_cpus, verbose=config.verbose) as cluster:
        cluster = _prepare(config, cluster, images, checkpoints)
        if roles is None:
            roles = assign_roles(config, images, spread=True)
        trained = _run_workers(config, cluster, images, roles, base_weights, checkpoints, lock)
    outcome, recipe, roles = trained.outcome, trained.recipe, trained.roles
    assert outcome.model is not None
    label_errors, listed = _find_label_errors(config, recipe, trained.cache, outcome.model, roles, images)
    counts = RoleCounts(*(len(roles.rows[role]) for role in ("train", "val", "test")))
    record = TrainingRecord(
        asked, resolve(config, recipe, roles.folds), images.fingerprint, counts, len(roles.left_out)
    )
    lock.check()
    saved = _save(config, recipe, roles.folds, output, images, outcome, record, label_errors, listed)
    storage.delete_folder(checkpoints)
    train_labels = images.labels[roles.rows["train"]]
    return TrainSummary(
        output=output,
        model_id=saved.model_id,
        classes=images.classes,
        images=counts,
        left_out=roles.left_out,
        history=outcome.history,
        metrics=saved.metrics,
        options=record.resolved,
        seconds=_measure_stages(outcome.stages, started, trained.frozen_s, time.time()),
        label_errors=label_errors,
        advice=results.advise(
            config, recipe, outcome.history, saved.metrics, saved.thresholds, train_labels, len(roles.left_out)
        ),
    )


def _check_output(output: str) -> None:
    """Raise `OutputError` if an output holds something that is not a bundle."""
    if not storage.exists(storage.join(output, bundle.MANIFEST)) and storage.has_content(output):
        raise OutputError(
            f"--output {output} already holds something that is not a bundle; give a new folder or prefix"
        )


def _summarize_existing(output: str, asked: dict[str, Json], images: Images) -> TrainSummary | None:
    """Return the summary of an existing bundle, which must be of this training; None if there is none."""
    if not storage.exists(storage.join(output, bundle.MANIFEST)):
        return None
    manifest = bundle.read_manifest(output)
    made_by = manifest.training
    if made_by is None:
        raise OutputError(f"--output {output} already holds an imported model; give a new folder or prefix")
    differing = sorted(name for name, value in asked.items() if made_by.config.get(name) != value)
    if made_by.images_fingerprint != images.fingerprint:
        differing.append("images_fingerprint")
    if differing:
        raise OutputError(
            f"--output {output} already holds a bundle that was trained otherwise (differing: {', '.join(differing)}); "
            "give a new folder or prefix"
        )
    loaded = bundle.load_bundle(output)
    identity = (output, loaded.model_id, loaded.classes)
    metrics = loaded.manifest.metrics
    return TrainSummary(*identity, made_by.counts, [], loaded.load_history(), metrics, already_done=True)


def _prepare(config: TrainConfig, cluster: Cluster, images: Images, checkpoints: str) -> Cluster:
    """Wait for room on the cluster, and check that its machines can read and write all folders."""
    from tlray.cluster.capacity import demand_workers, wait_for
    from tlray.cluster.checks import check_seen, check_shared

    demand = demand_workers(cluster, config.num_workers, config.gpus_per_worker)
    cluster = wait_for(demand, cluster, config.wait_for_resources)
    if not cluster.local:
        for role, option in (("train", "--data"), ("val", "--val-data"), ("test", "--test-data")):
            rows = np.flatnonzero(images.folder == role)[:_CHECKED_FILES]
            check_seen(option, images.places.list_files(rows))
        check_shared("--storage-path", checkpoints)
        if config.cache_dir is not None:
            check_shared("--cache-dir", storage.resolve(config.cache_dir))
    return cluster


@dataclass(frozen=True)
class _Trained:
    """The result of the workers: the outcome, the seconds of the frozen base, and what was used."""

    outcome: Outcome
    frozen_s: float
    cache: Cache | None
    recipe: Recipe
    roles: Roles


def _run_workers(
    config: TrainConfig,
    cluster: Cluster,
    images: Images,
    roles: Roles,
    base_weights: bytes | None,
    checkpoints: str,
    lock: Lock,
) -> _Trained:
    """Build the feature cache and train."""
    import ray

    from tlray.features.cache import find_missing
    from tlray.features.decide import choose_cache, choose_engine_bounds
    from tlray.training.launch import ChannelLostError, Launch
    from tlray.training.linear_head import can_solve
    from tlray.training.monitor import Outcome
    from tlray.training.solved_heads import add_folds, start_head
    from tlray.training.task import make_training_task

    launch = Launch(config, cluster, checkpoints)
    if launch.may_start_early:
        launch.start()
    precision = _choose_precision(config, cluster, gpus=launch.resources.gpus > 0)
    augmentation = Augmentation(config.shear, config.zoom, config.horizontal_flip, config.seed)
    places = ray.put(images.places)
    weights = ray.put(base_weights) if base_weights is not None else None
    frozen = FrozenBase(
        backbone=config.backbone,
        image_size_px=config.resolved_image_size,
        boundary=config.resolved_finetune_from,
        weights=weights,
        weights_sha256=hashlib.sha256(base_weights).hexdigest() if base_weights is not None else "",
        weights_seed=config.seed,
        precision=precision,
        limits=config.limits,
        on_gpus=choose_engine_bounds(config).choose_gpus(cluster) > 0,
    )
    num_features = BACKBONES[config.backbone].num_features
    solvable = can_solve(len(roles.rows["train"]), num_features, len(images.classes))
    recipe = config.choose_recipe(solvable=solvable)
    try:
        chosen = choose_cache(config, recipe, cluster, roles.rows, roles.digests, frozen, augmentation)
        cache, missing = chosen if chosen is not None else (None, None)
        if cache is None and recipe.solved:
            recipe = config.choose_recipe(solvable=False)
            if roles.folds:
                if config.folds:
                    raise StoppedError("--folds needs cached features; give --cache on, or --val-fraction instead")
                say("without cached features there are no folds: some images are held out for validation")
                roles = hold_out(config, images, roles)
            if recipe.head_epochs:
                say("WARNING: without cached features the head is not solved, but starts at random")
        task = make_training_task(
            config,
            recipe,
            launch.resources,
            images,
            roles,
            precision=precision,
            augmentation=augmentation,
            cache=cache,
            places=places,
            base_weights=weights,
        )
        state = load_state(checkpoints, task.split, task.plan)  # an error now, not after the features
        outcome, frozen_s = Outcome(), 0.0
        for num_lost in itertools.count(1):
            try:
                if cache is not None and missing is not None and not missing.is_empty:
                    frozen_s += _complete_cache(config, cluster, cache, missing, places, launch)
                    missing = None
                if cache is not None and recipe.solved and task.head_start is None:
                    if roles.folds:
                        keys = list_keys(images, roles)
                        task = add_folds(task, cache, keys, config.num_settings, roles.folds, config.trials)
                        for number, trial in enumerate(task.trials, start=1):
                            load_state(name_trial(checkpoints, number), trial.split, trial.plan, is_trial=True)
                    elif state.is_new:
                        head = start_head(task, cache, list_keys(images, roles), config.num_settings)
                        task = replace(task, head_start=head)
                launch.run(task, lock.check, outcome)
                break
            except ChannelLostError as error:
                if 0 <= config.max_failures < num_lost or not launch.close():
                    raise
                say(f"{error}; starting workers again")
                launch = Launch(config, cluster, checkpoints, num_lost)
                if cache is not None and missing is not None:
                    missing = find_missing(cache)
    except BaseException:
        launch.close()
        raise
    return _Trained(outcome, frozen_s, cache, recipe, roles)


def _complete_cache(
    config: TrainConfig,
    cluster: Cluster,
    cache: Cache,
    missing: Missing,
    places: ray.ObjectRef[Places],
    launch: Launch,
) -> float:
    """Compute what a cache lacks, in the waiting workers or in engines; return the seconds."""
    from tlray.features.build import count_builders, list_indices
    from tlray.features.decide import build_with_engines, complete_cache
    from tlray.training.task import BuildTask

    few = missing.images <= _BUILT_BY_WORKERS
    if few and launch.may_start_early and not cache.frozen.on_gpus:  # the workers have no GPU
        builds = launch.build(BuildTask(cache, missing.works, list_indices(missing), count_builders(missing), places))
    else:
        builds = build_with_engines(config, cluster, cache, missing, places)
    return complete_cache(cache, missing, builds)


def _choose_precision(config: TrainConfig, cluster: Cluster, *, gpus: bool) -> Precision:
    """Resolve `--precision` for all machines that may train: a worker that is lost starts again on any of them."""
    fastest: FloatName = "float32"
    if config.precision == "auto":
        fastest = detect_fastest(gpus=gpus) if cluster.local else _ask_fastest(gpus=gpus)
    precision = choose_precision(config.precision, fastest, gpus=gpus)
    if precision.reason:
        say(f"precision: {precision.step} steps, {precision.frozen} frozen base; {precision.reason}")
    return precision


def _ask_fastest(*, gpus: bool) -> FloatName:
    """Return the fastest type of all machines of a joined cluster that may train: on GPUs, of those that have some."""
    from tlray.cluster.nodes import ask_nodes, list_nodes

    nodes = [node for node in list_nodes() if (node.gpus if gpus else node.takes_work)]
    answers = ask_nodes(nodes, lambda: detect_fastest(gpus=gpus))
    # a machine that does not answer may have none
    return find_common(["float32" if isinstance(answer, Exception) else answer for answer in answers])


def _find_label_errors(
    config: TrainConfig, recipe: Recipe, cache: Cache | None, model: TrainedModel, roles: Roles, images: Images
) -> tuple[LabelErrorSummary, bytes]:
    """Collect label errors, from the cached features of phase 1 if there are any."""
    if recipe.head_epochs == 0 and not recipe.solved:
        cache = None
    return results.collect_label_errors(cache, model.predictions, roles, images, config.seed)


def _save(
    config: TrainConfig,
    recipe: Recipe,
    folds: int,
    output: str,
    images: Images,
    outcome: Outcome,
    record: TrainingRecord,
    label_errors: LabelErrorSummary,
    listed: bytes,
) -> Manifest:
    """Save the bundle; `listed` is the CSV of label errors."""
    model, history = outcome.model, outcome.history
    assert model is not None
    backbone = BACKBONES[config.backbone]
    extra = {name: data for name, data in model.files.items() if name.startswith("training/")}

    read = report.make_reader(images.places, config.limits)

    def make_reports(manifest: Manifest) -> dict[str, bytes]:
        page = report.render_training(manifest, history, label_errors, read, finished=now())
        return {**extra, CONFIG: _dump_config(config, recipe), results.LABEL_ERRORS: listed, report.NAME: page}

    return bundle.save_bundle(
        output,
        {name: data for name, data in model.files.items() if name not in extra},
        make_reports=make_reports,
        architecture=model.architecture,
        classes=images.classes,
        preprocessing=Preprocessing(config.resolved_image_size, backbone.scale, backbone.offset),
        calibration=model.calibration.describe(),
        thresholds=results.collect_thresholds(config, model, images),
        training=record,
        metrics=results.collect_metrics(model, history, images, config.select, out_of_fold=folds > 0),
        history=history,
    )


def _track(config: TrainConfig, summary: TrainSummary) -> None:
    """Log the run to MLflow; an error is only printed, since the bundle is saved."""
    try:
        results.log_run(config, summary)
    except Exception as error:  # MLflow passes on whatever its server or store raises
        say(f"MLflow at {storage.redact(config.mlflow_uri or '')} did not take the run: {storage.redact(str(error))}")


def _plain(value: Json) -> Json:
    return list(value) if isinstance(value, tuple) else value


def _measure_stages(stages: dict[str, float], started: float, frozen_s: float, ended: float) -> dict[str, float]:
    """Return seconds by stage; start-up is the rest."""
    names = ["trial", "phase 1", "phase 2", "saving"]
    begun = [name for name in names if name in stages]
    ends = [*(stages[name] for name in begun[1:]), ended]
    spent = {name: end - stages[name] for name, end in zip(begun, ends, strict=True)}
    seconds = {"start-up": ended - started - frozen_s - sum(spent.values()), "frozen base": frozen_s, **spent}
    return {name: round(value, 1) for name, value in seconds.items() if value > 0}


def _dump_config(config: TrainConfig, recipe: Recipe) -> bytes:
    """Return the config with its defaults resolved, as a file that `--config` takes."""
    import yaml

    values = {**describe(config), **resolve(config, recipe)}
    kept = ["folds", "val_fraction", "warmup_epochs"]  # the default is another where the images or the phases are
    if recipe.solved:  # where a head cannot be solved, other values must take their place
        kept += ["head_epochs", "lr_head"]
    values |= {name: getattr(config, name) for name in kept}
    text: str = yaml.safe_dump({name: _plain(value) for name, value in values.items()}, sort_keys=False)
    return text.encode()
