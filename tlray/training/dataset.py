"""The images of a training: listed by class, looked at once, given their roles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlray import bundle, storage
from tlray.config import TrainConfig
from tlray.errors import DataError, StoppedError
from tlray.progress import say
from tlray.sources.classes import scan

_NAMED_FAULTS = 10


@dataclass(frozen=True)
class Images:
    """All rows of all roles in one table, numbered together.

    Attributes:
        classes: names by label.
        uris: addresses by row id.
        labels: int32 by row id.
        folder: which option named the row: "train", "val" or "test".
        fingerprint: sha256 over the listing.
    """

    classes: tuple[str, ...]
    uris: list[str]
    labels: npt.NDArray[np.int32]
    folder: npt.NDArray[np.str_]
    fingerprint: str


@dataclass(frozen=True)
class Roles:
    """Which rows train, validate and test.

    Attributes:
        rows: int64 row ids of "train", "val" and "test".
        digests: sha256 of every row's encoded image, in hexadecimal.
        left_out: address and reason of every image that cannot be used.
    """

    rows: dict[str, npt.NDArray[np.int64]]
    digests: list[str]
    left_out: list[tuple[str, str]]


def list_images(config: TrainConfig) -> Images:
    """List the class folders or manifest of every role; their names decide labels and row ids.

    Raises:
        DataError: one is missing, has no classes, or has others than the training images.
    """
    training = scan(storage.resolve(config.data), option="--data")
    tables = [("train", training.table)]
    for role, option, root in (("val", "--val-data", config.val_data), ("test", "--test-data", config.test_data)):
        if root is not None:
            scanned = scan(storage.resolve(root), training.classes, option=option)
            tables.append((role, scanned.table))
    listing = [
        (role, row["name"], row["size"]) for role, table in tables for row in table.select(["name", "size"]).to_pylist()
    ]
    return Images(
        classes=training.classes,
        uris=[uri for _, table in tables for uri in table["uri"].to_pylist()],
        labels=np.concatenate([table["label"].to_numpy() for _, table in tables]).astype(np.int32),
        folder=np.concatenate([np.full(table.num_rows, role) for role, table in tables]),
        fingerprint=bundle.hash_json(listing),
    )


def assign_roles(config: TrainConfig, images: Images, *, spread: bool) -> Roles:
    """Read every image once; leave out what cannot be decoded, split the rest by content hash.

    Args:
        config: limits and split.
        images: as listed.
        spread: whether a cluster reads them.

    Raises:
        DataError: a class has no usable image.
        StoppedError: too many are unusable, or one cannot be fetched.
    """
    from tlray.training.inputs import inspect_images
    from tlray.training.schedule import choose_validation

    digests, faults = inspect_images(images.uris, config.limits, spread=spread)
    left_out = [(uri, fault) for uri, fault in zip(images.uris, faults, strict=True) if fault is not None]
    for uri, fault in left_out[:_NAMED_FAULTS]:
        say(f"left out: {uri} ({fault})")
    if len(left_out) > _NAMED_FAULTS:
        say(f"left out: {len(left_out) - _NAMED_FAULTS:,} more")
    _check_failed(config.max_failed, len(left_out), len(images.uris))
    good = np.array([fault is None for fault in faults])
    rows = np.arange(len(images.uris))
    train_rows = rows[good & (images.folder == "train")]
    counts = np.bincount(images.labels[train_rows], minlength=len(images.classes))
    if (counts == 0).any():
        bad = ", ".join(name for name, count in zip(images.classes, counts, strict=True) if count == 0)
        raise DataError(f"--data: no image of {bad} can be decoded; each class needs at least one")
    val_rows = rows[good & (images.folder == "val")]
    if config.val_data is None:
        chosen = choose_validation([digests[row] for row in train_rows], images.labels[train_rows], config.val_fraction)
        train_rows, val_rows = train_rows[~chosen], train_rows[chosen]
    return Roles(
        rows={"train": train_rows, "val": val_rows, "test": rows[good & (images.folder == "test")]},
        digests=digests,
        left_out=left_out,
    )


def _check_failed(max_failed: float, failed: int, total: int) -> None:
    """Compare with `--max-failed`: a share up to 1, a count above."""
    allowed = max_failed * total if max_failed <= 1 else max_failed
    if failed > allowed:
        raise StoppedError(
            f"{failed:,} of {total:,} images cannot be decoded, --max-failed allows {allowed:,.0f}; "
            "mend or remove them, or raise --max-failed"
        )
