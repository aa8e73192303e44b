"""List a training's images, inspect each once, and assign their roles."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray import storage
from tlray.cluster.connect import explain_failure
from tlray.cluster.resources import DATA_TASK_CPUS
from tlray.config import TrainConfig, count_allowed
from tlray.console import Stage, say
from tlray.errors import DataError, FetchError, ImageError, StoppedError
from tlray.images.decode import decode
from tlray.images.limits import Limits
from tlray.model.manifest import hash_json
from tlray.sources.labelled import name_some, read_groups, scan
from tlray.sources.lists import is_list

VALIDATION_BITS = 64

_INSPECT_ROWS = 64
_NAMED_FAULTS = 10


@dataclass(frozen=True)
class Images:
    """Images of all roles, numbered together.

    Attributes:
        classes: names by label.
        uris, labels: addresses and int32 labels by row id.
        folder: the role whose option named the image, by row id: "train", "val" or "test".
        groups: name of the group that must stay together, or None, by row id; None without groups.
        fingerprint: sha256 over the listing.
    """

    classes: tuple[str, ...]
    uris: list[str]
    labels: npt.NDArray[np.int32]
    folder: npt.NDArray[np.str_]
    groups: list[str | None] | None
    fingerprint: str


@dataclass(frozen=True)
class Roles:
    """Roles of the images.

    Attributes:
        rows: int64 row ids of "train", "val" and "test".
        digests: hexadecimal sha256 of each encoded image, by row id.
        left_out: address and reason of every unusable image.
    """

    rows: dict[str, npt.NDArray[np.int64]]
    digests: list[str]
    left_out: list[tuple[str, str]]


def list_images(config: TrainConfig) -> Images:
    """List the class folders or manifest of every role; names decide labels and row ids.

    Raises:
        DataError: a folder is missing, has no classes, or has other classes than the training images.
    """
    training = scan(storage.resolve(config.data), option="--data")
    tables = [("train", training.table)]
    for role, option, root in (("val", "--val-data", config.val_data), ("test", "--test-data", config.test_data)):
        if root is not None:
            scanned = scan(storage.resolve(root), training.classes, option=option)
            tables.append((role, scanned.table))
    listing = [
        (role, name, size)
        for role, table in tables
        for name, size in zip(table["name"].to_pylist(), table["size"].to_pylist(), strict=True)
    ]
    uris = [uri for _, table in tables for uri in table["uri"].to_pylist()]
    groups = _find_groups(config, uris)
    return Images(
        classes=training.classes,
        uris=uris,
        labels=np.concatenate([table["label"].to_numpy() for _, table in tables]).astype(np.int32),
        folder=np.concatenate([np.full(table.num_rows, role) for role, table in tables]),
        groups=groups,
        fingerprint=hash_json(listing if groups is None else [listing, groups]),
    )


def _find_groups(config: TrainConfig, uris: Sequence[str]) -> list[str | None] | None:
    """Return the group of each image by --group-column or --group-by-regex; None without these options.

    Raises:
        DataError: no image has a group.
    """
    if config.group_column is not None:
        option = f"--group-column {config.group_column}"
        root = storage.resolve(config.data)
        if not is_list(root):
            raise DataError(f"{option} takes a manifest as --data; for class folders give --group-by-regex")
        by_uri = read_groups(root, config.group_column)
        groups = [by_uri.get(uri) for uri in uris]
    elif config.group_by_regex is not None:
        option = f"--group-by-regex {config.group_by_regex!r}"
        pattern = re.compile(config.group_by_regex)
        found = [pattern.search(uri) for uri in uris]
        groups = [match[min(1, pattern.groups)] if match else None for match in found]
    else:
        return None
    if len(set(groups)) == 1:
        raise DataError(f"{option} puts {'all images into one group' if groups[0] else 'no image into a group'}")
    num_alone = groups.count(None)
    alone = f"; {num_alone:,} are in none and stand alone" if num_alone else ""
    say(f"{len(set(groups) - {None}):,} groups of {len(groups) - num_alone:,} images stay together{alone}")
    return groups


def assign_roles(config: TrainConfig, images: Images, *, spread: bool) -> Roles:
    """Inspect every image, leave out those that cannot be decoded, and split the rest by content hash.

    Args as `inspect_images`.

    Raises:
        DataError: a class has no usable image.
        StoppedError: too many images are unusable, or one cannot be fetched.
    """
    digests, faults = inspect_images(images.uris, config.limits, spread=spread)
    left_out = [(uri, fault) for uri, fault in zip(images.uris, faults, strict=True) if fault is not None]
    for uri, fault in left_out[:_NAMED_FAULTS]:
        say(f"left out: {uri} ({fault})")
    if len(left_out) > _NAMED_FAULTS:
        say(f"left out: {len(left_out) - _NAMED_FAULTS:,} more")
    allowed = count_allowed(config.max_failed, len(images.uris))
    if len(left_out) > allowed:
        raise StoppedError(
            f"{len(left_out):,} of {len(images.uris):,} images cannot be decoded, --max-failed allows {allowed:,.0f}; "
            "repair or remove them, or raise --max-failed"
        )
    good = np.array([fault is None for fault in faults])
    rows = np.arange(len(images.uris))
    train_rows = rows[good & (images.folder == "train")]
    counts = np.bincount(images.labels[train_rows], minlength=len(images.classes))
    if (counts == 0).any():
        bad = ", ".join(name for name, count in zip(images.classes, counts, strict=True) if count == 0)
        raise DataError(f"--data: no image of {bad} can be decoded; each class needs at least one")
    val_rows = rows[good & (images.folder == "val")]
    if config.val_data is None:
        keys = digests if images.groups is None else _make_keys(digests, images.groups)
        labels = images.labels[train_rows]
        chosen = choose_validation([keys[row] for row in train_rows], labels, config.val_fraction)
        train_rows, val_rows = train_rows[~chosen], train_rows[chosen]
        if config.val_fraction:
            _report_unvalidated(images.classes, images.labels[train_rows], images.labels[val_rows])
    assigned = {"train": train_rows, "val": val_rows, "test": rows[good & (images.folder == "test")]}
    known = [("are among", digests)]
    if images.groups is not None:
        known.append(("share a group with", _make_keys(digests, images.groups)))
    for relation, keys in known:
        for role, leaked in find_leaked(assigned, keys).items():
            kept = assigned[role] if config.allow_leakage else np.setdiff1d(assigned[role], leaked)
            uris = [images.uris[row] for row in leaked]
            _report_leakage(role, uris, len(kept), relation, allowed=config.allow_leakage)
            assigned[role] = kept
    return Roles(assigned, digests, left_out)


def _make_keys(digests: Sequence[str], groups: Sequence[str | None]) -> list[str]:
    """Return what decides an image's side: the hash of its group, or of its content where it is in none."""
    return [
        digest if group is None else hashlib.sha256(group.encode()).hexdigest()
        for digest, group in zip(digests, groups, strict=True)
    ]


def _report_unvalidated(
    classes: Sequence[str], train_labels: npt.NDArray[np.int32], val_labels: npt.NDArray[np.int32]
) -> None:
    """Say which classes no validation image belongs to."""
    missing = [classes[label] for label in np.setdiff1d(train_labels, val_labels)]
    if missing:
        say(
            f"no validation image of {len(missing):,} of {len(classes):,} classes, which have too few images to share: "
            f"{name_some(missing)}"
        )


def find_leaked(rows: Mapping[str, npt.NDArray[np.int64]], keys: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Return the validation images that are trained on too, and the test images that are trained or validated on.

    Args:
        rows: row ids by role.
        keys: of equal images or of one group, by row id.

    Returns:
        row ids by role; roles without such images are left out.
    """
    known = {keys[row] for row in rows["train"]}
    leaked = {}
    for role in ("val", "test"):
        seen = np.array([keys[row] in known for row in rows[role]], bool)
        if seen.any():
            leaked[role] = rows[role][seen]
        known |= {keys[row] for row in rows[role]}
    return leaked


def _report_leakage(role: str, leaked: Sequence[str], num_kept: int, relation: str, *, allowed: bool) -> None:
    """Say which images would be measured on though they are known.

    Raises:
        DataError: none would remain.
    """
    option = f"--{role}-data"
    if not num_kept:
        raise DataError(
            f"{option}: all {len(leaked):,} images {relation} those that are trained or validated on; give others, or "
            "--allow-leakage"
        )
    named = ", ".join(leaked[:_NAMED_FAULTS]) + (", ..." if len(leaked) > _NAMED_FAULTS else "")
    end = "what is measured on them says nothing" if allowed else "they are left out (--allow-leakage keeps them)"
    say(
        f"WARNING: {len(leaked):,} images of {option} {relation} those that are trained or validated on: {named}; {end}"
    )


def inspect_images(uris: Sequence[str], limits: Limits, *, spread: bool) -> tuple[list[str], list[str | None]]:
    """Read every image once; return the hexadecimal sha256 of its bytes, and its fault or None.

    Args:
        uris: addresses.
        limits: of an image's size.
        spread: read by Ray Data over the cluster; else by threads of this process, which start at once.

    Raises:
        StoppedError: an image cannot be fetched.
    """
    blocks = [
        pa.table({"index": pa.array(range(start, min(start + _INSPECT_ROWS, len(uris)))), "uri": part})
        for start in range(0, len(uris), _INSPECT_ROWS)
        for part in [pa.array(uris[start : start + _INSPECT_ROWS], pa.string())]
    ]
    digests = [""] * len(uris)
    faults: list[str | None] = [None] * len(uris)
    with Stage("inspect", len(uris)) as stage:
        for block in _inspect_by_ray(blocks, limits) if spread else _inspect_by_threads(blocks, limits):
            for index, digest, fault, unreachable in zip(
                *(column.to_pylist() for column in block.columns), strict=True
            ):
                digests[index], faults[index] = digest, fault
                if unreachable:
                    raise StoppedError(f"{uris[index]} cannot be read ({fault})")
            stage.advance(block.num_rows)
    return digests, faults


def _inspect_by_threads(blocks: list[pa.Table], limits: Limits) -> Iterator[pa.Table]:
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda block: _inspect_block(block, limits), blocks)


def _inspect_by_ray(blocks: list[pa.Table], limits: Limits) -> Iterator[pa.Table]:
    import ray.data

    dataset = ray.data.from_blocks(blocks).map_batches(
        _inspect_block,
        fn_kwargs={"limits": limits, "options": storage.get_options()},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=DATA_TASK_CPUS,
    )
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        raise explain_failure(error, "inspecting") from error


def _inspect_block(block: pa.Table, limits: Limits, options: storage.S3Options | None = None) -> pa.Table:
    if options is not None:
        storage.adopt(options)
    digests: list[str] = []
    faults: list[str | None] = []
    unreachable: list[bool] = []
    for data in storage.get_many(block["uri"].to_pylist()):
        fault = None
        try:
            if isinstance(data, FetchError):
                raise data
            decode(data, 64, limits)
        except (FetchError, ImageError) as error:
            fault = f"{error.code}: {error}"
        digests.append("" if isinstance(data, FetchError) else hashlib.sha256(data).hexdigest())
        faults.append(fault)
        unreachable.append(isinstance(data, FetchError))
    return pa.table(
        {
            "index": block["index"],
            "digest": pa.array(digests, pa.string()),
            "fault": pa.array(faults, pa.string()),
            "unreachable": pa.array(unreachable, pa.bool_()),
        }
    )


def choose_validation(keys: Sequence[str], labels: npt.NDArray[np.int32], fraction: float) -> npt.NDArray[np.bool_]:
    """Choose the images for validation: those whose hash, as a number in [0, 1), is below `fraction`.

    An image keeps its role whatever images are added, unless its class gets its first or would lose its last: each
    class has an image in training, and if it can also one in validation, the one with the lowest hash.

    Args:
        keys: hexadecimal sha256 of each image's content or group; images with the same one share a role.
        labels: int32 by image.
        fraction: 0 chooses none.
    """
    hashes = np.array([int(key[: VALIDATION_BITS // 4], 16) / 2**VALIDATION_BITS for key in keys])
    chosen = hashes < fraction
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(labels))[:-1])
    if fraction:
        lacking = [hashes[own].min() for own in members if len(own) and not chosen[own].any()]
        chosen |= np.isin(hashes, lacking)
    # last, since a class that is not trained is worse off than one that is not validated
    full = [hashes[own].max() for own in members if len(own) and chosen[own].all()]
    chosen &= ~np.isin(hashes, full)
    return chosen
