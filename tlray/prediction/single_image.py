"""Predict one image without Ray, with the decoder and the engine of a prediction run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tlray import storage
from tlray.console import silence_stderr
from tlray.images.decode import decode
from tlray.model.bundle import NETWORK, Bundle, load_bundle
from tlray.model.engine import open_engine
from tlray.model.engines.interface import Engine
from tlray.model.precision import count_gpus


@dataclass(frozen=True)
class Prediction:
    """A class of one image by index and name, and its probability in [0, 1]."""

    index: int
    class_name: str
    probability: float


def predict_image(path_or_uri: str, bundle: str | Bundle) -> Prediction:
    """Predict the class of one file or s3:// object.

    Args:
        path_or_uri: address of the image.
        bundle: address of a bundle, which is loaded once per process; or an opened `Bundle`.

    Raises:
        FetchError: the image cannot be read.
        ImageError: it cannot be decoded.
        BundleError: the bundle cannot be used.
        StoppedError: the model does not repeat its golden predictions on this machine.
    """
    return rank_classes(path_or_uri, bundle, top_k=1)[0]


def rank_classes(path_or_uri: str, bundle: str | Bundle, top_k: int) -> list[Prediction]:
    """Return the `top_k` most probable classes of one image, the most probable first; raise as `predict_image`."""
    opened = bundle if isinstance(bundle, Bundle) else _open_bundle(storage.resolve(str(bundle)))
    pixels = decode(storage.get(storage.resolve(str(path_or_uri))), opened.image_size_px).pixels
    (probabilities,) = _open_engine(opened).predict(pixels[None]).probabilities
    order = (-probabilities).argsort(kind="stable")[:top_k]
    return [Prediction(int(index), opened.classes[index], float(probabilities[index])) for index in order]


@cache
def _open_bundle(uri: str) -> Bundle:
    return load_bundle(uri)


_ENGINES: dict[tuple[Path, str], Engine] = {}
"""Engines of this process by folder and model id: another bundle may take a folder's place."""


def _open_engine(bundle: Bundle) -> Engine:
    """Return the process's engine of a bundle, which has kept its golden predictions."""
    key = bundle.path, bundle.model_id
    if key not in _ENGINES:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with silence_stderr():
            # TensorFlow alone would take a GPU's memory where it sees one
            num_gpus = 0 if NETWORK in bundle.manifest.files else count_gpus()
            _ENGINES[key] = open_engine(bundle, 1, precision="float32", booked_gpus=num_gpus)
    return _ENGINES[key]
