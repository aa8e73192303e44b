"""Find, fetch and check the base's pre-trained weights before any cluster starts."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

from tlray import storage
from tlray.errors import FetchError, WeightsError
from tlray.model.backbones import BACKBONES, Backbone

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PROBE_TIMEOUT_S = 8


def load_weights(weights: str, backbone: str) -> bytes | None:
    """Return the content of a weights file without the top; None for random weights.

    Args:
        weights: `imagenet` (Keras's own file, kept in Keras's folder), `none`, or a path or s3:// address.
        backbone: a name in `BACKBONES`.

    Raises:
        WeightsError: the file is missing, cannot be fetched, or is not of this base.
    """
    if weights == "none":
        return None
    if weights == "imagenet":
        return _load_imagenet(backbone)
    try:
        data = storage.get(storage.resolve(weights))
    except FetchError as error:
        raise WeightsError(f"--weights {weights} cannot be read: {error}; give an existing .h5 file") from None
    if not data.startswith(_HDF5_SIGNATURE):
        raise WeightsError(
            f"--weights {weights} is not a weights file{_guess_kind(data)}; "
            f"give the .h5 of a {backbone} without its top"
        )
    count, expected = _count_values(data), BACKBONES[backbone].num_weights
    if count != expected:
        raise WeightsError(
            f"--weights {weights} is not of a {backbone} without its top: it holds {count:,} values, not "
            f"{expected:,}; give another file, or another --backbone"
        )
    return data


def _count_values(data: bytes) -> int:
    """Return the number of floats in all arrays of an HDF5 file; 0 if it is damaged."""
    import h5py

    count = 0

    def add(_: str, item: object) -> None:
        nonlocal count
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            count += item.size

    try:
        with h5py.File(io.BytesIO(data)) as file:
            file.visititems(add)
    except (OSError, RuntimeError):  # truncated
        return 0
    return count


def _load_imagenet(backbone: str) -> bytes:
    entry = BACKBONES[backbone]
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    path = home / "models" / entry.imagenet_url.rpartition("/")[2]
    if path.is_file():
        data = path.read_bytes()
        if not _is_whole(data, entry):
            raise WeightsError(
                f"{path} is damaged: it holds {len(data):,} bytes of the ImageNet weights of {backbone}; remove it, "
                "and it is fetched again, or give a file by --weights"
            )
        return data
    try:
        data = _download(entry.imagenet_url)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"the ImageNet weights of {backbone} cannot be fetched ({reason}); put {path.name} into {path.parent}, "
            "give a file by --weights PATH, or train from scratch by --weights none"
        ) from None
    if not _is_whole(data, entry):
        raise WeightsError(
            f"the ImageNet weights of {backbone} arrived damaged; try again, or give a file by --weights"
        )
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(data)
    partial.replace(path)
    return data


def _is_whole(data: bytes, entry: Backbone) -> bool:
    """Return whether a published file is as it was published: by its hash, or without one by the number of values."""
    if entry.imagenet_md5:
        return hashlib.md5(data, usedforsecurity=False).hexdigest() == entry.imagenet_md5
    return data.startswith(_HDF5_SIGNATURE) and _count_values(data) == entry.num_weights


def _download(url: str) -> bytes:
    """Fetch a file; a server that does not respond in a few seconds, name look-up included, is an error."""
    probe = ThreadPoolExecutor(1)
    try:
        response = probe.submit(urllib.request.urlopen, url, timeout=_PROBE_TIMEOUT_S).result(_PROBE_TIMEOUT_S)
    except FutureTimeout:
        raise OSError(f"no response within {_PROBE_TIMEOUT_S} s") from None
    finally:
        probe.shutdown(wait=False)
    with response:
        return bytes(response.read())


def _guess_kind(data: bytes) -> str:
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return " but an HTML page"
    if start.startswith(b"version https://git-lfs"):
        return " but a Git LFS pointer (run git lfs pull)"
    return ""
