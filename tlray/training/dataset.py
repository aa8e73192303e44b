"""List a training's images and assign their roles."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.config import TrainConfig, count_allowed
from tlray.console import say
from tlray.errors import DataError, StoppedError
from tlray.features.decide import find_root
from tlray.model.backbones import BACKBONES
from tlray.model.manifest import hash_json
from tlray.sources.labelled import URI, name_some, read_groups, scan
from tlray.sources.lists import is_list
from tlray.sources.places import Places, join_places
from tlray.sources.shards import holds_images
from tlray.training.inspection import Memory, inspect_images
from tlray.training.linear_head import choose_sample

VALIDATION_BITS = 64

_NAMED_FAULTS = 10


@dataclass(frozen=True)
class Images:
    """Images of all roles, numbered together.

    Attributes:
        classes: names by label.
        uris, labels: addresses and int32 labels by row id.
        versions: what changes with an image's content, by row id; "" if unknown.
        places: where they lie, by row id.
        folder: the role whose option named the image, by row id: "train", "val" or "test".
        groups: name of the group that must stay together, or None, by row id; None without groups.
        fingerprint: sha256 over the listing.
    """

    classes: tuple[str, ...]
    uris: list[str]
    labels: npt.NDArray[np.int32]
    versions: list[str]
    places: Places
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
        folds: number of folds of the training images; 0 without any, where "val" may have rows.
    """

    rows: dict[str, npt.NDArray[np.int64]]
    digests: list[str]
    left_out: list[tuple[str, str]]
    folds: int = 0


def list_images(config: TrainConfig) -> Images:
    """List the class folders or manifest of every role; names decide labels and row ids.

    Raises:
        DataError: a folder is missing, has no classes, or has other classes than the training images.
    """
    roots = list(map(storage.resolve, config.data_roots))
    training = scan(roots, option="--data", label_column=config.label_column)
    tables, places = [("train", training.table)], [training.places]
    for role, option, root in (("val", "--val-data", config.val_data), ("test", "--test-data", config.test_data)):
        if root is not None:
            scanned = scan(storage.resolve(root), training.classes, option=option, label_column=config.label_column)
            tables.append((role, scanned.table))
            places.append(scanned.places)
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
        versions=[version for _, table in tables for version in table["version"].to_pylist()],
        places=join_places(places),
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
        by_uri: dict[str, str] = {}
        for root in filter(None, (*config.data_roots, config.val_data, config.test_data)):
            if not is_list(storage.resolve(root)) or holds_images(storage.resolve(root), URI):
                raise DataError(f"{option} takes manifests; got {root}; for others give --group-by-regex")
            by_uri |= read_groups(storage.resolve(root), config.group_column)
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
    """Inspect every image, leave out those that cannot be used, and divide the rest.

    Training images are divided into folds, or some of them, chosen by content hash, are held out for validation.

    Args:
        spread: inspect the images over the cluster, else in this process.

    Raises:
        DataError: a class has no usable image, or there are fewer groups than folds.
        StoppedError: too many images are unusable, or cannot be fetched.
    """
    memory = Memory(find_root(config, local=not spread) if config.cache != "off" else None, config.limits)
    inspected = inspect_images(images.places, images.versions, memory, config.limits, spread=spread)
    digests, faults = [one.digest for one in inspected], [one.fault for one in inspected]
    left_out = [(uri, fault) for uri, fault in zip(images.uris, faults, strict=True) if fault is not None]
    for uri, fault in left_out[:_NAMED_FAULTS]:
        say(f"left out: {uri} ({fault})")
    if len(left_out) > _NAMED_FAULTS:
        say(f"left out: {len(left_out) - _NAMED_FAULTS:,} more")
    allowed = count_allowed(config.max_failed, len(images.uris))
    if len(left_out) > allowed:
        raise StoppedError(
            f"{len(left_out):,} of {len(images.uris):,} images cannot be used, --max-failed allows {allowed:,.0f}; "
            "repair or remove them, or raise --max-failed"
        )
    good = np.array([fault is None for fault in faults])
    rows = {role: np.flatnonzero(good & (images.folder == role)) for role in ("train", "val", "test")}
    counts = np.bincount(images.labels[rows["train"]], minlength=len(images.classes))
    if (counts == 0).any():
        bad = ", ".join(name for name, count in zip(images.classes, counts, strict=True) if count == 0)
        raise DataError(f"--data: no image of {bad} can be used; each class needs at least one")
    roles = Roles(rows, digests, left_out)
    folds = _choose_folds(config, images, roles)
    if folds or config.val_data is not None:
        return replace(_leave_out_known(config, images, roles), folds=folds)
    return hold_out(config, images, roles)


def hold_out(config: TrainConfig, images: Images, roles: Roles) -> Roles:
    """Return roles without folds, where some of the training images are held out for validation.

    Raises:
        DataError: no group can be held out.
    """
    keys, train_rows = list_keys(images, roles), roles.rows["train"]
    labels = images.labels[train_rows]
    chosen = choose_validation([keys[row] for row in train_rows], labels, config.held_out_fraction)
    if config.held_out_fraction and not chosen.any() and images.groups is not None:
        raise DataError("no group can be held out for validation; give --val-data, or --val-fraction 0")
    divided = {**roles.rows, "train": train_rows[~chosen], "val": train_rows[chosen]}
    return _leave_out_known(config, images, replace(roles, rows=divided, folds=0))


def _leave_out_known(config: TrainConfig, images: Images, roles: Roles) -> Roles:
    """Return roles without validation and test images that are known, which are named, as are classes not validated."""
    rows = dict(roles.rows)
    known = [("are among", roles.digests)]
    if images.groups is not None:
        known.append(("share a group with", list_keys(images, roles)))
    for relation, keys in known:
        for role, leaked in find_leaked(rows, keys).items():
            kept = rows[role] if config.allow_leakage else np.setdiff1d(rows[role], leaked)
            uris = [images.uris[row] for row in leaked]
            given = config.val_data if role == "val" else config.test_data
            named = f"--{role}-data" if given is not None else "the validation share of --data"
            _report_leakage(named, uris, len(kept), relation, allowed=config.allow_leakage)
            rows[role] = kept
    if len(rows["val"]):
        _report_unvalidated(images.classes, images.labels[rows["train"]], images.labels[rows["val"]])
    return replace(roles, rows=rows)


def _choose_folds(config: TrainConfig, images: Images, roles: Roles) -> int:
    """Return the number of folds of the training images, 0 for none.

    Raises:
        DataError: `--folds` is not possible.
    """
    num_images, num_classes = len(roles.rows["train"]), len(images.classes)
    solvable = choose_sample(num_images, BACKBONES[config.backbone].num_features, num_classes) == num_images
    if config.folds and not solvable:
        raise DataError(f"--folds: {num_images:,} images of {num_classes:,} classes are too many to solve heads on all")
    folds = config.choose_folds(num_images, config.choose_recipe(solvable=solvable))
    keys = list_keys(images, roles)
    pairs = {(keys[row], images.labels[row]) for row in roles.rows["train"]}
    num_keys = len({key for key, _ in pairs})
    if folds <= num_keys and len(pairs) > num_classes:
        return folds
    if config.folds:
        raise DataError(
            f"--folds {folds} needs as many different images or groups, and two of a class; got {num_keys:,} of "
            f"{num_classes:,} classes"
        )
    return 0


def list_keys(images: Images, roles: Roles) -> list[str]:
    """Return what decides an image's side by row id: its group, or its content where it is in none."""
    return roles.digests if images.groups is None else _make_keys(roles.digests, images.groups)


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
            f"no validation image of {len(missing):,} of {len(classes):,} classes, for want of images or groups: "
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


def _report_leakage(named: str, leaked: Sequence[str], num_kept: int, relation: str, *, allowed: bool) -> None:
    """Say which images would be measured on though they are known.

    Raises:
        DataError: none would remain.
    """
    if not num_kept:
        raise DataError(
            f"{named}: all {len(leaked):,} images {relation} those that are trained or validated on; give others, or "
            "--allow-leakage"
        )
    first = ", ".join(leaked[:_NAMED_FAULTS]) + (", ..." if len(leaked) > _NAMED_FAULTS else "")
    end = "what is measured on them says nothing" if allowed else "they are left out (--allow-leakage keeps them)"
    say(f"WARNING: {len(leaked):,} images of {named} {relation} those that are trained or validated on: {first}; {end}")


def choose_validation(keys: Sequence[str], labels: npt.NDArray[np.int32], fraction: float) -> npt.NDArray[np.bool_]:
    """Choose the images for validation: those whose hash, as a number in [0, 1), is below `fraction`.

    Other images do not change an image's role, but in small classes: one that would lose its last training image keeps
    that with the highest hash, and one without a validation image gets that with the lowest, if no class loses its last
    training image by it. Groups of several classes are moved so only while validation has less than twice its share.

    Args:
        keys: hexadecimal sha256 of each image's content or group; images with the same one share a role.
        labels: int32 by image.
        fraction: 0 chooses none.
    """
    hashes = np.array([int(key[: VALIDATION_BITS // 4], 16) for key in keys], np.uint64)
    unique, key_of, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    chosen = unique < fraction * 2.0**VALIDATION_BITS
    pairs = np.unique(np.stack([labels, key_of], axis=1), axis=0)  # by class, then by hash
    keys_of_class = np.split(pairs[:, 1], np.cumsum(np.bincount(pairs[:, 0]))[:-1])
    by_key = pairs[np.argsort(pairs[:, 1], kind="stable")]
    classes_of_key = np.split(by_key[:, 0], np.cumsum(np.bincount(by_key[:, 1]))[:-1])
    num_trained = np.array([(~chosen[own]).sum() for own in keys_of_class])
    for label, own in enumerate(keys_of_class):
        if len(own) and num_trained[label] == 0:
            chosen[own[-1]] = False
            num_trained[classes_of_key[own[-1]]] += 1
    most = 2 * fraction * len(keys)
    for own in keys_of_class:
        if not fraction or chosen[own].any():
            continue
        for key in own:
            touched = classes_of_key[key]
            fits = len(touched) == 1 or sizes[chosen].sum() + sizes[key] <= most
            if fits and (num_trained[touched] > 1).all():
                chosen[key] = True
                num_trained[touched] -= 1
                break
    return chosen[key_of]
