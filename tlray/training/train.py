"""The driver of training: check, list, look at every image once, compute the frozen base, run the workers, save.

tlray train --data photos/ --output bundle/
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np

from tlray import storage
from tlray.config import TrainConfig, describe, resolve
from tlray.console import now, say
from tlray.errors import OutputError
from tlray.images.augment import Augmentation
from tlray.model import bundle
from tlray.model.backbones import BACKBONES
from tlray.model.weights import load_weights
from tlray.training.dataset import Images, Roles, assign_roles, list_images
from tlray.training.results import (
    LABEL_ERRORS,
    RowPredictions,
    TrainSummary,
    collect_label_errors,
    collect_metrics,
    collect_thresholds,
)

_LOOKED_AT = 16

CONFIG = "training/config.yaml"


def train(config: TrainConfig) -> TrainSummary:
    """Train a classifier and save its bundle; a finished bundle of the same config and images is left as it is.

    Stopped at any moment, the same call goes on: behind the last finished epoch, with the features that are stored.

    Raises:
        UsageError: a value, folder, weights file or output cannot be used; nothing was started.
        StoppedError: training ended early.
    """
    config.check()
    storage.configure(config.s3_options)
    started = time.time()
    output = storage.resolve(config.output)
    manifest = _read_existing(output)
    storage.check_writable(output)
    for option, uri in (("--cache-dir", config.cache_dir), ("--storage-path", config.storage_path)):
        if uri is not None:
            storage.check_writable(storage.resolve(uri), option)
    images = list_images(config)
    asked = {**describe(config), "images_fingerprint": images.fingerprint}
    if manifest is not None:
        return _summarize_existing(output, manifest, asked)
    base_weights = load_weights(config.weights, config.backbone)

    from tlray.cluster import connect as runtime
    from tlray.training import launch

    local = runtime.is_local(config.address)
    roles = assign_roles(config, images, spread=False) if local else None
    checkpoints = launch.name_run(config, images)
    with runtime.connect(config.address, config.max_cpus, verbose=config.verbose) as cluster:
        cluster = _prepare(config, cluster, images, checkpoints)
        if roles is None:
            roles = assign_roles(config, images, spread=True)
        outcome, frozen_s, cache = _run(config, cluster, images, roles, base_weights, checkpoints)
    model = outcome.model
    assert model is not None
    metrics = collect_metrics(model, outcome.history, images)
    label_errors, listed = _find_label_errors(config, cache, model["predictions"], roles, images)
    counts = {"train": len(roles.rows["train"]), "validation": len(roles.rows["val"]), "test": len(roles.rows["test"])}

    from tlray import report
    from tlray.training.results import advise

    saved = bundle.save_bundle(
        output,
        {name: data for name, data in model["files"].items() if not name.startswith("training/")},
        make_reports=lambda manifest: {
            **{name: data for name, data in model["files"].items() if name.startswith("training/")},
            CONFIG: _dump_config(config),
            LABEL_ERRORS: listed,
            report.NAME: report.render_training(
                manifest, outcome.history, label_errors, report.read_files, finished=now()
            ),
        },
        architecture=model["architecture"],
        classes=images.classes,
        preprocessing=_describe_preprocessing(config),
        calibration=model["calibration"].describe(),
        thresholds=collect_thresholds(model["predictions"], model["calibration"], images, config.target_precision),
        training={**asked, "counts": counts, "left_out": len(roles.left_out), "resolved": resolve(config)},
        metrics=metrics,
        history=outcome.history,
    )
    storage.delete_folder(checkpoints)
    if config.storage_path is None and not storage.has_content(storage.resolve(config.resolved_storage_path)):
        storage.delete_folder(storage.resolve(config.resolved_storage_path))
    summary = TrainSummary(
        output=output,
        model_id=saved["model_id"],
        classes=images.classes,
        images=counts,
        left_out=roles.left_out,
        history=outcome.history,
        metrics=metrics,
        seconds=_measure_stages(outcome.stages, started, frozen_s, time.time()),
        label_errors=label_errors,
        advice=advise(config, outcome.history, metrics, images.labels[roles.rows["train"]], len(roles.left_out)),
        already_done=False,
    )
    if config.mlflow_uri is not None:
        from tlray.training.tracking import log_run

        try:
            log_run(config, summary)
        except Exception as error:  # the bundle is saved, and MLflow raises whatever its server and store raise
            say(f"MLflow at {storage.redact(config.mlflow_uri)} did not take the run: {storage.redact(str(error))}")
    return summary


def _prepare(config: TrainConfig, cluster: Any, images: Images, checkpoints: str) -> Any:
    """Wait for room on a cluster, and see that its machines reach what is to be read and written; measure it then."""
    from tlray.cluster.capacity import demand_workers, wait_for
    from tlray.cluster.checks import check_seen, check_shared

    demand = demand_workers(cluster, config.num_workers, config.gpus_per_worker)
    cluster = wait_for(demand, cluster, config.wait_for_resources)
    if not cluster.local:
        for role, option in (("train", "--data"), ("val", "--val-data"), ("test", "--test-data")):
            rows = np.flatnonzero(images.folder == role)[:_LOOKED_AT]
            check_seen(option, [(images.uris[row], None) for row in rows])
        check_shared("--storage-path", checkpoints)
        if config.cache_dir is not None:
            check_shared("--cache-dir", storage.resolve(config.cache_dir))
    return cluster


def _run(
    config: TrainConfig, cluster: Any, images: Images, roles: Roles, base_weights: bytes | None, checkpoints: str
) -> tuple[Any, float, Any]:
    """What needs the cluster; returns what the workers sent, the seconds of the frozen base, and the feature cache."""
    import ray

    from tlray.features.cache import FrozenBase
    from tlray.features.decide import prepare_cache
    from tlray.training.launch import Launch
    from tlray.training.task import make_training_task

    launch = Launch(config, cluster, checkpoints)
    if launch.may_start_early:
        launch.start()
    precision = _choose_precision(config, cluster, gpus=launch.resources.gpus > 0)
    augmentation = Augmentation(config.shear, config.zoom, config.horizontal_flip, config.seed)
    uris = ray.put(images.uris)
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
    )
    try:
        cache, frozen_s = prepare_cache(config, cluster, roles.rows, roles.digests, frozen, uris, augmentation)
        task = make_training_task(
            config,
            launch.resources,
            images,
            roles,
            precision=precision,
            augmentation=augmentation,
            cache=cache,
            uris=uris,
            base_weights=weights,
        )
        outcome = launch.run(task)
    except BaseException:
        launch.close()
        raise
    return outcome, frozen_s, cache


def _find_label_errors(
    config: TrainConfig, cache: Any, predictions: dict[str, RowPredictions], roles: Roles, images: Images
) -> tuple[dict[str, Any], bytes]:
    """As `collect_label_errors`, from pooled features where phase 1 left some."""
    has_pooled = cache is not None and "pooled" in cache.frozen.kinds and config.head_epochs > 0
    view = (config.head_epochs - 1) % config.resolved_views if has_pooled else 0
    return collect_label_errors(cache if has_pooled else None, predictions, roles, images, view, config.seed)


def _choose_precision(config: TrainConfig, cluster: Any, *, gpus: bool) -> Any:
    """Resolve `--precision` on a machine that will do the work."""
    from tlray.model.precision import choose_precision, detect_fastest

    fastest: Any = "float32"
    if config.precision == "auto":
        if cluster.local:
            fastest = detect_fastest(gpus=gpus)
        else:
            import ray

            from tlray.cluster.resources import DATA_TASK_CPUS

            # cores are booked so that it doesn't land on a head that takes no work
            remote: Any = ray.remote(num_cpus=DATA_TASK_CPUS, num_gpus=0.01 if gpus else 0)
            probe = remote(detect_fastest)
            fastest = ray.get(probe.remote(gpus=gpus))
    precision = choose_precision(config.precision, fastest, gpus=gpus)
    if precision.reason:
        say(f"precision: {precision.step} steps, {precision.frozen} frozen base; {precision.reason}")
    return precision


def _read_existing(output: str) -> dict[str, Any] | None:
    """The manifest of a bundle that is already there."""
    if storage.exists(storage.join(output, bundle.MANIFEST)):
        return bundle.read_manifest(output)
    if storage.has_content(output):
        raise OutputError(
            f"--output {output} already holds something that is not a bundle; give a new folder or prefix"
        )
    return None


def _summarize_existing(output: str, manifest: dict[str, Any], asked: dict[str, Any]) -> TrainSummary:
    have = manifest["training"]
    differing = sorted(name for name, value in asked.items() if _plain(have.get(name)) != _plain(value))
    if differing:
        raise OutputError(
            f"--output {output} already holds a bundle that was trained otherwise (differing: {', '.join(differing)}); "
            "give a new folder or prefix"
        )
    loaded = bundle.load_bundle(output)
    return TrainSummary(
        output=output,
        model_id=loaded.model_id,
        classes=loaded.classes,
        images=have["counts"],
        left_out=[],
        history=loaded.load_history(),
        metrics=manifest["metrics"],
        seconds={},
        label_errors=None,
        advice=[],
        already_done=True,
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _measure_stages(stages: dict[str, float], started: float, frozen_s: float, ended: float) -> dict[str, float]:
    """Seconds by stage: what is neither the frozen base, a phase nor saving is start-up."""
    names = ["phase 1", "phase 2", "saving"]
    begun = [name for name in names if name in stages]
    ends = [*(stages[name] for name in begun[1:]), ended]
    spent = {name: end - stages[name] for name, end in zip(begun, ends, strict=True)}
    seconds = {"start-up": ended - started - frozen_s - sum(spent.values()), "frozen base": frozen_s, **spent}
    return {name: round(value, 1) for name, value in seconds.items() if value > 0}


def _dump_config(config: TrainConfig) -> bytes:
    """The config with its defaults resolved, as a file that `--config` takes."""
    import yaml

    values = {**describe(config), **resolve(config)}
    text: str = yaml.safe_dump({name: _plain(value) for name, value in values.items()}, sort_keys=False)
    return text.encode()


def _describe_preprocessing(config: TrainConfig) -> dict[str, Any]:
    backbone = BACKBONES[config.backbone]
    return bundle.make_preprocessing(config.resolved_image_size, backbone.scale, backbone.offset)
