"""The driver of training: check, list, look at every image once, let Ray Train run the loop, save the bundle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray import bundle, sources, storage
from tlray.backbones import BACKBONES
from tlray.config import TrainConfig, describe
from tlray.errors import DataError, OutputError, StoppedError
from tlray.progress import Stage, say
from tlray.shares import share_workers
from tlray.weights import load_weights

_GOLDEN_CANDIDATES = 24
_POLL_S = 0.5


@dataclass(frozen=True)
class TrainSummary:
    """What a training run did.

    Attributes:
        output: where the bundle lies.
        model_id: its identity.
        classes: class names by index.
        images: how many of each role: "train", "validation", "test".
        left_out: address and reason of every image that could not be used.
        history: one record an epoch.
        metrics: what the bundle records: which epoch was kept, accuracy on validation and test data.
        seconds: wall time by stage.
        already_done: whether the bundle was there before and nothing was trained.
    """

    output: str
    model_id: str
    classes: tuple[str, ...]
    images: dict[str, int]
    left_out: list[tuple[str, str]]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    seconds: dict[str, float]
    already_done: bool


@dataclass(frozen=True)
class _Images:
    """All rows of all roles in one table, numbered together."""

    classes: tuple[str, ...]
    uris: list[str]
    labels: npt.NDArray[np.int32]
    role: npt.NDArray[np.str_]
    fingerprint: str


@dataclass
class _Outcome:
    """What the workers sent."""

    history: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] | None = None


def train(config: TrainConfig) -> TrainSummary:
    """Train a classifier and save its bundle; a finished bundle of the same config and images is left as it is.

    Raises:
        UsageError: a value, folder, weights file or output cannot be used; nothing was started.
        StoppedError: training ended early.
    """
    config.check()
    started = time.monotonic()
    output = storage.resolve(config.output)
    manifest = _read_existing(output)
    storage.check_writable(output)
    images = _list_images(config)
    asked = {**describe(config), "images_fingerprint": images.fingerprint}
    if manifest is not None:
        return _summarize_existing(output, manifest, asked)
    base_weights = load_weights(config.weights, config.backbone)
    seconds = {"listing": time.monotonic() - started}

    from tlray import runtime

    with runtime.connect(config.address, config.max_cpus, verbose=config.verbose) as cluster:
        seconds["ray"] = time.monotonic() - started - sum(seconds.values())
        train_rows, val_rows, test_rows, left_out = _assign_roles(config, images)
        seconds["inspecting"] = time.monotonic() - started - sum(seconds.values())
        outcome = _run_workers(config, cluster, images, (train_rows, val_rows, test_rows), base_weights)
        seconds["training"] = time.monotonic() - started - sum(seconds.values())
    assert outcome.model is not None
    metrics = _collect_metrics(outcome, images, val_rows, test_rows)
    counts = {"train": len(train_rows), "validation": len(val_rows), "test": len(test_rows)}
    saved = bundle.save_bundle(
        output,
        outcome.model["files"],
        architecture=outcome.model["architecture"],
        classes=images.classes,
        preprocessing=_describe_preprocessing(config),
        training={**asked, "counts": counts, "left_out": len(left_out)},
        metrics=metrics,
        history=outcome.history,
    )
    seconds["saving"] = time.monotonic() - started - sum(seconds.values())
    return TrainSummary(
        output=output,
        model_id=saved["model_id"],
        classes=images.classes,
        images=counts,
        left_out=left_out,
        history=outcome.history,
        metrics=metrics,
        seconds={stage: round(spent, 1) for stage, spent in seconds.items()},
        already_done=False,
    )


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
        already_done=True,
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _list_images(config: TrainConfig) -> _Images:
    """List the class folders of every role; their names decide labels and row ids."""
    training = sources.scan(storage.resolve(config.data), option="--data")
    tables = [("train", training.table)]
    for role, option, root in (("val", "--val-data", config.val_data), ("test", "--test-data", config.test_data)):
        if root is not None:
            scanned = sources.scan(storage.resolve(root), training.classes, option=option)
            tables.append((role, scanned.table))
    listing = [
        (role, row["name"], row["size"]) for role, table in tables for row in table.select(["name", "size"]).to_pylist()
    ]
    return _Images(
        classes=training.classes,
        uris=[uri for _, table in tables for uri in table["uri"].to_pylist()],
        labels=np.concatenate([table["label"].to_numpy() for _, table in tables]).astype(np.int32),
        role=np.concatenate([np.full(table.num_rows, role) for role, table in tables]),
        fingerprint=bundle.hash_json(listing),
    )


def _assign_roles(
    config: TrainConfig, images: _Images
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], list[tuple[str, str]]]:
    """Read every image once; leave out what cannot be decoded, split the rest by content hash."""
    from tlray.limits import Limits
    from tlray.training.inputs import inspect_images
    from tlray.training.schedule import choose_validation

    digests, faults = inspect_images(images.uris, Limits(config.max_bytes, config.max_pixels))
    good = np.array([fault is None for fault in faults])
    rows = np.arange(len(images.uris))
    train_rows = rows[good & (images.role == "train")]
    counts = np.bincount(images.labels[train_rows], minlength=len(images.classes))
    if (counts == 0).any():
        bad = ", ".join(name for name, count in zip(images.classes, counts, strict=True) if count == 0)
        raise DataError(f"--data: no image of {bad} can be decoded; each class needs at least one")
    if config.val_data is not None:
        val_rows = rows[good & (images.role == "val")]
    else:
        chosen = choose_validation([digests[row] for row in train_rows], images.labels[train_rows], config.val_fraction)
        train_rows, val_rows = train_rows[~chosen], train_rows[chosen]
    left_out = [(uri, fault) for uri, fault in zip(images.uris, faults, strict=True) if fault is not None]
    for uri, fault in left_out[:10]:
        say(f"left out: {uri} ({fault})")
    if len(left_out) > 10:
        say(f"left out: {len(left_out) - 10:,} more")
    return train_rows, val_rows, rows[good & (images.role == "test")], left_out


def _run_workers(
    config: TrainConfig,
    cluster: Any,
    images: _Images,
    rows: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]],
    base_weights: bytes | None,
) -> _Outcome:
    """Let Ray Train run the loop, and show what the workers send."""
    import tempfile

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from tlray.augment import Augmentation
    from tlray.limits import Limits
    from tlray.training.backend import MultiWorkerConfig
    from tlray.training.channel import Channel
    from tlray.training.loop import PhasePlan, Task, run_worker

    train_rows, val_rows, test_rows = rows
    shares = share_workers(cluster, config.num_workers, config.gpus_per_worker)
    channel = Channel.remote()  # type: ignore[attr-defined]
    phases = (
        PhasePlan("head", config.head_epochs, config.head_optimizer, config.resolved_lr_head),
        PhasePlan("finetune", config.finetune_epochs, config.finetune_optimizer, config.resolved_lr_finetune),
    )
    task = Task(
        backbone=config.backbone,
        image_size_px=config.resolved_image_size,
        head_units=config.head_units,
        finetune_from=config.resolved_finetune_from,
        train_batchnorm=config.batchnorm == "train",
        classes=images.classes,
        phases=tuple(phase for phase in phases if phase.epochs),
        batch_size=config.batch_size,
        augmentation=Augmentation(config.shear, config.zoom, config.horizontal_flip, config.seed),
        seed=config.seed,
        limits=Limits(config.max_bytes, config.max_pixels),
        num_threads=int(cluster.cpus) if cluster.local else max(1, int(shares.worker_cpus)),
        num_readers=shares.num_readers,
        reader_cpus=shares.reader_cpus,
        uris=ray.put(images.uris),
        labels=images.labels,
        train_rows=train_rows,
        val_rows=val_rows,
        test_rows=test_rows,
        golden_rows=_choose_golden_rows(val_rows if len(val_rows) else train_rows, images.labels),
        base_weights=ray.put(base_weights) if base_weights is not None else None,
        channel=channel,
    )
    epochs = config.head_epochs + config.finetune_epochs
    say(
        f"training on {len(train_rows):,} images, validating on {len(val_rows):,}; {config.num_workers} workers of "
        f"{config.batch_size} images a step, on {'GPUs' if shares.gpus else 'CPUs'}"
    )
    with tempfile.TemporaryDirectory(prefix="tlray-train-") as folder:
        trainer = DataParallelTrainer(
            run_worker,
            train_loop_config={"task": task},
            backend_config=MultiWorkerConfig(),
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=shares.gpus > 0,
                resources_per_worker={"CPU": shares.worker_cpus, **({"GPU": shares.gpus} if shares.gpus else {})},
            ),
            run_config=RunConfig(name="tlray", storage_path=folder),
        )
        total = epochs * (len(train_rows) + len(val_rows))
        return _watch(trainer.fit, channel, total, epochs)


def _watch(fit: Callable[[], Any], channel: Any, total: int, epochs: int) -> _Outcome:
    """Run `fit` in a thread and show what arrives meanwhile.

    Raises:
        TlrayError: what a worker raised; StoppedError for anything else that ended training.
    """
    import ray
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from tlray.runtime import explain_failure

    outcome = _Outcome()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            fit()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with Stage("train", total) as stage:
        while True:
            alive = thread.is_alive()
            for message in ray.get(channel.drain.remote()):
                _take(outcome, message.kind, message.body, stage, epochs)
            if not alive:
                break
            thread.join(_POLL_S)
        if failures:
            error = failures[0]
            causes: list[BaseException] = [error]
            if isinstance(error, WorkerGroupError):
                causes = list(error.worker_failures.values())
            elif isinstance(error, ControllerError):
                causes = [error.controller_failure]
            reasons = [explain_failure(cause, "training") for cause in causes]
            # one worker's own error makes the others fail at their next collective; that one is what happened
            raise next((reason for reason in reasons if type(reason) is not StoppedError), reasons[0]) from error
    return outcome


def _take(outcome: _Outcome, kind: str, body: dict[str, Any], stage: Stage, epochs: int) -> None:
    if kind == "images":
        stage.advance(body["count"])
    elif kind == "epoch":
        outcome.history.append(body)
        val = (
            "" if body["val_loss"] is None else f", val loss {body['val_loss']:.4f} accuracy {body['val_accuracy']:.4f}"
        )
        stage.say(
            f"epoch {body['epoch']}/{epochs} ({body['phase']}): loss {body['loss']:.4f} "
            f"accuracy {body['accuracy']:.4f}{val}  {body['seconds']:.1f} s"
        )
    elif kind == "predictions":
        outcome.predictions.append(body)
    elif kind == "model":
        outcome.model = body


def _choose_golden_rows(rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Some rows of every class in turn."""
    turns = np.zeros(len(rows), np.int64)
    for label in np.unique(labels[rows]):
        members = labels[rows] == label
        turns[members] = np.arange(members.sum())
    return rows[np.lexsort((labels[rows], turns))][:_GOLDEN_CANDIDATES]


def _collect_metrics(
    outcome: _Outcome, images: _Images, val_rows: npt.NDArray[np.int64], test_rows: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Which epoch was kept, and how good it is."""
    assert outcome.model is not None
    kept = outcome.model["kept"]
    metrics: dict[str, Any] = {"kept": {"phase": kept["phase"], "epoch": kept["epoch"]}}
    if len(val_rows):
        metrics["validation"] = {
            "images": len(val_rows),
            "loss": kept["val_loss"],
            "accuracy": kept["val_accuracy"],
        }
    if len(test_rows):
        from tlray.evaluation import measure

        rows = np.concatenate([part["rows"] for part in outcome.predictions])
        probabilities = np.concatenate([part["probabilities"] for part in outcome.predictions])
        measured = measure(images.labels[rows], probabilities.argmax(axis=1), images.classes)
        metrics["test"] = asdict(measured)
    return metrics


def _describe_preprocessing(config: TrainConfig) -> dict[str, Any]:
    backbone = BACKBONES[config.backbone]
    return bundle.make_preprocessing(config.resolved_image_size, backbone.scale, backbone.offset)
