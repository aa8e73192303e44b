"""Find code in a bundle's model files before anything is deserialised."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tlray.storage.records import Json

_FILES = {"config.json", "metadata.json", "model.weights.h5"}
_MODULES = {
    "keras",
    "keras.activations",
    "keras.constraints",
    "keras.initializers",
    "keras.layers",
    "keras.regularizers",
    "keras.src.models.functional",
    "keras.src.models.sequential",
    "keras.src.ops.image",  # operators and functions of keras.ops in a functional model; none takes a function
    "keras.src.ops.linalg",
    "keras.src.ops.math",
    "keras.src.ops.nn",
    "keras.src.ops.numpy",
}
_APPLICATIONS = "keras.src.applications."
"""Layers of Keras's own networks, as ConvNeXt's LayerScale."""

_CODE = {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer", "function"}
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__", "__tuple__"}
"""Values in the arguments of operators, which have no module."""
_MAX_CONFIG_BYTES = 16 * 2**20

_FORBIDDEN_OPS = (
    b"PyFunc", b"WriteFile", b"ReadFile", b"MatchingFiles", b"PrintV2", b"DebugIdentity", b"RemoteCall", b"FileWriter",
    b"TableFromTextFile", b"TFRecord", b"TextLineDataset",
)  # fmt: skip
"""Parts of the names of TensorFlow operations that run code or touch files; no graph of tlray's has one."""


def find_threats(folder: Path) -> Iterator[str]:
    """Yield a phrase for each part of a bundle's model files that could run code or touch files."""
    keras_file, graph = folder / "model.keras", folder / "saved_model" / "saved_model.pb"
    if keras_file.is_file():
        yield from _check_keras(keras_file)
    if graph.is_file():
        data = graph.read_bytes()
        for name in _FORBIDDEN_OPS:
            if name in data:
                yield f"saved_model holds the operation {name.decode()}, which reaches out of the graph"


def _check_keras(path: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            strange = sorted(set(archive.namelist()) - _FILES)
            if strange:
                yield f"model.keras holds {strange[0]!r}, which no Keras model does"
            if archive.getinfo("config.json").file_size > _MAX_CONFIG_BYTES:
                yield "model.keras holds a config.json that is too large"
                return
        foreign = list_foreign(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError):  # RuntimeError: too deep
        yield "model.keras is not a Keras 3 archive"
        return
    for name in foreign:
        yield f"model.keras holds {name}, which could run code of its own"


def list_foreign(path: Path) -> list[str]:
    """Return the names in a `.keras` archive's config that are not plain layers and functions of Keras itself, sorted.

    Raises:
        BadZipFile, KeyError, ValueError, ...: it is not such an archive.
    """
    with zipfile.ZipFile(path) as archive:
        return sorted(set(_iter_foreign(json.loads(archive.read("config.json")))))


def _iter_foreign(node: Json) -> Iterator[str]:
    """Yield the names in a Keras config that are not plain layers and functions of Keras itself."""
    if isinstance(node, list):
        for value in node:
            yield from _iter_foreign(value)
    if isinstance(node, dict):
        if "class_name" in node:
            name, module = str(node["class_name"]), node.get("module")
            ours = module in _MODULES or str(module).startswith(_APPLICATIONS)
            if not (ours and name not in _CODE) and not (module is None and name in _VALUES):
                yield f"{module}.{name}" if module else name
        for value in node.values():
            yield from _iter_foreign(value)
