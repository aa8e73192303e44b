"""Decide whether a training computes the frozen base once or in every epoch, and where it is computed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich import filesize

from tlray import storage
from tlray.cluster.resources import Cluster, EngineBounds, plan_engines, plan_readers, plan_workers
from tlray.config import Recipe, TrainConfig
from tlray.console import Stage, say
from tlray.errors import StoppedError
from tlray.features import cache as features
from tlray.features.build import Done, build
from tlray.features.cache import PLAIN, Cache, FrozenBase, Kind, Missing
from tlray.images.augment import Augmentation
from tlray.model.backbones import BACKBONES, INPUT

if TYPE_CHECKING:
    import ray

    from tlray.sources.places import Places

Rows = Mapping[str, npt.NDArray[np.int64]]
"""Row ids of "train", "val" and "test"."""

_LEAST_SAVING = 0.1
_LEAST_SAVING_SOLVED = -1.0
"""Least share of passes to save; a head that is solved on cached features is worth as many passes again."""

_MOST_OF_FREE = 0.5


@dataclass(frozen=True)
class Decision:
    """The decision on the cache, with a reason for the user."""

    use: bool
    reason: str


@dataclass(frozen=True)
class Passes:
    """Passes of one image through the whole base: without a cache, and missing for a complete one."""

    online: float
    missing: int


def choose_cache(
    config: TrainConfig,
    recipe: Recipe,
    cluster: Cluster,
    rows: Rows,
    digests: Sequence[str],
    frozen: FrozenBase,
    augmentation: Augmentation,
) -> tuple[Cache, Missing] | None:
    """Decide on the cache; return it with its missing part, or None if every epoch computes the base.

    Args:
        digests: sha256 of every row's encoded image.

    Raises:
        StoppedError: `--cache on` is not possible.
    """
    needs = list_needs(config, recipe)
    root = find_root(config, local=cluster.local)
    if config.cache == "off" or not needs or root is None:
        reason = _explain_absence(config, needs)
        if config.cache == "on":
            raise StoppedError(f"--cache on is not possible: {reason}")
        say(f"feature cache: off, {reason}")
        return None
    roles = {**rows, PLAIN: rows["train"]}
    cache, missing = features.plan_cache(root, frozen, roles, digests, augmentation, needs)
    num_bytes = features.estimate_bytes(cache)
    passes = Passes(count_online(config, config.choose_recipe(solvable=False), rows), missing.images)
    if config.cache == "on":
        decision = Decision(True, f"as asked for: {_compare(passes)}")
    else:
        share = missing.images / max(1, missing.total_images)
        least = _LEAST_SAVING_SOLVED if recipe.solved else _LEAST_SAVING
        decision = decide(passes, int(num_bytes * share), features.measure_free_bytes(root), least)
    if not decision.use:
        say(f"feature cache: off, {decision.reason}")
        return None
    say(f"feature cache: on, {decision.reason}; about {filesize.decimal(num_bytes)} in {cache.uri}")
    if missing.is_empty:
        say(f"feature cache: all {missing.total_images:,} images and views are cached from an earlier run")
    elif missing.images < missing.total_images:
        say(f"feature cache: {missing.total_images - missing.images:,} of {missing.total_images:,} are cached already")
    return cache, missing


def choose_engine_bounds(config: TrainConfig) -> EngineBounds:
    """Return the bounds of the frozen base's engines: on GPUs if there are any and workers may use them."""
    return EngineBounds(0.0 if config.gpus_per_worker == 0 else None, allow_cpu=config.allow_cpu)


def list_needs(config: TrainConfig, recipe: Recipe) -> dict[int, tuple[Kind, ...]]:
    """Return the kinds that each view must hold, for the phases that can use the cache."""
    kinds: dict[int, set[Kind]] = {}
    epochs: list[tuple[Kind, range]] = [("pooled", range(recipe.head_epochs))]
    if recipe.finetune_epochs and config.resolved_finetune_from != INPUT:
        # with early stopping, phase 2 may begin after phase 1's first epoch
        first = min(1, recipe.head_epochs) if config.early_stopping else recipe.head_epochs
        epochs.append(("activations", range(first, recipe.head_epochs + recipe.finetune_epochs)))
    for kind, numbers in epochs:
        for epoch in numbers:
            kinds.setdefault(epoch % config.count_views(recipe), set()).add(kind)
    if recipe.solved and kinds:
        kinds.setdefault(0, set()).add("pooled")  # the head is solved on it, without an epoch in phase 1 too
    return {view: tuple(sorted(kinds[view])) for view in sorted(kinds)}


def count_online(config: TrainConfig, recipe: Recipe, rows: Rows) -> float:
    """Return the passes through the frozen base without a cache; in phase 2 only up to the boundary."""
    share = BACKBONES[config.backbone].boundaries[config.resolved_finetune_from].frozen_share
    an_epoch = len(rows["train"]) + len(rows["val"])
    return (recipe.head_epochs + recipe.finetune_epochs * share) * an_epoch + len(rows["test"]) * share


def decide(passes: Passes, num_bytes: int, free_bytes: int | None, least_saving: float = _LEAST_SAVING) -> Decision:
    """Weigh the bytes that the cache would add against compute.

    Args:
        free_bytes: None if unknown.
        least_saving: least share of the passes that the cache must save.
    """
    saved = passes.online - passes.missing
    share = saved / passes.online if passes.online else 0.0
    if share < least_saving:
        every_epoch = f"computing every epoch {passes.online:,.0f}"
        return Decision(False, f"it would take {passes.missing:,} passes through the base, {every_epoch}")
    if free_bytes is not None and num_bytes > _MOST_OF_FREE * free_bytes:
        free = filesize.decimal(free_bytes)
        return Decision(False, f"it would take {filesize.decimal(num_bytes)} of the {free} that are free")
    return Decision(True, _compare(passes))


def _compare(passes: Passes) -> str:
    return f"{passes.missing:,} passes through the base instead of {passes.online:,.0f}"


def find_root(config: TrainConfig, *, local: bool) -> str | None:
    """Return the folder of caches: --cache-dir, or for a local run the user's; None if there is neither."""
    if config.cache_dir is not None:
        return storage.resolve(config.cache_dir)
    if not local:
        return None
    return str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tlray" / "features")


def _explain_absence(config: TrainConfig, needs: dict[int, tuple[Kind, ...]]) -> str:
    if config.cache == "off":
        return "as asked for"
    if not needs:
        return "no phase leaves a part of the base frozen"
    return "a cluster's machines share no folder that tlray knows of; give --cache-dir"


def build_with_engines(
    config: TrainConfig, cluster: Cluster, cache: Cache, missing: Missing, places: ray.ObjectRef[Places]
) -> Iterator[Done]:
    """Compute the missing part in processes of their own; yield one `Done` a shard.

    Args:
        places: Ray reference to the places of all images.

    Raises:
        StoppedError: an image cannot be read any more, or the cluster failed.
        OutputError: the cache cannot be written.
    """
    bounds = choose_engine_bounds(config)
    a_shard = max(1, missing.images // max(1, len(missing.works)))
    workers = plan_workers(cluster, config.num_workers, config.gpus_per_worker)
    beside = cluster.local and not workers.gpus  # the workers have started already
    resources = plan_engines(cluster, max(1, missing.images), a_shard, bounds, beside_workers=beside)
    booked_cpus = config.num_workers * workers.worker_cpus if beside else 0.0
    readers = plan_readers(cluster, resources, booked_cpus)
    return build(cache, missing, places, resources, *readers, allow_cpu=bounds.allow_cpu)


def complete_cache(cache: Cache, missing: Missing, builds: Iterator[Done]) -> float:
    """Show the progress of a build; return the seconds since its first process was ready."""
    storage.check_writable(cache.uri, "--cache-dir")
    first_ready = math.inf
    with Stage("frozen base", missing.images) as stage:
        for done in builds:
            first_ready = min(first_ready, done.ready)
            stage.advance(done.images)
    return max(0.0, time.time() - first_ready)
