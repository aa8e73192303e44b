"""Read what `tlray import` is given, a Keras 3 archive and class names; say what another file is, and the way out."""

from __future__ import annotations

import io
import json
import tempfile
import unicodedata
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tlray import storage
from tlray.errors import ConfigError, FetchError, WeightsError
from tlray.model.safety import find_threats

if TYPE_CHECKING:
    import keras

_CONVERT = "import keras; keras.saving.load_model('MODEL.h5', compile=False).save('MODEL.keras')"
_KERAS_2 = "load it with Keras 2 (pip install tf-keras) and save its weights for the same model in Keras 3"


def read_classes(uri: str) -> list[str]:
    """Read class names, in the order of a network's outputs.

    A file holds one name a line, a JSON list, or a JSON object of names and indices in either direction, as Keras's
    `class_indices`.

    Raises:
        ConfigError: the file has fewer than two names, a name twice, or indices with a gap.
    """
    try:
        text = _read("--classes", uri).decode("utf-8-sig")
        if "\0" in text:
            raise UnicodeError
    except UnicodeError:
        raise ConfigError(
            [f"--classes takes a text file in UTF-8; got {uri} in another encoding: save it again"]
        ) from None
    try:
        names = json.loads(text)
    except RecursionError:
        names = None
    except ValueError:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(names, dict):
        by_index = {_get_index(name, value): value if isinstance(value, str) else name for name, value in names.items()}
        names = [by_index.get(index) for index in range(len(names))]
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            [
                "--classes takes a file with one name a line, a JSON list, or a JSON object of names and indices "
                f"from 0 on, of two or more (for a model with one output: the class of 0, then that of 1); got {uri}"
            ]
        )
    names = [unicodedata.normalize("NFC", name) for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError([f"--classes takes each name once; got {', '.join(twice[:5])} several times in {uri}"])
    return names


def _get_index(name: str, value: object) -> int | None:
    """Return the index of an entry `name: index` or `"index": name`."""
    if isinstance(value, int):
        return value
    return int(name) if isinstance(value, str) and name.isdecimal() else None


def read_model(uri: str) -> bytes:
    """Read a Keras 3 archive.

    Raises:
        ConfigError: it cannot be read.
        WeightsError: it is something else, which is named with the way out.
    """
    if not storage.is_s3(uri) and Path(storage.resolve(uri)).is_dir():
        raise WeightsError(
            f"{uri} is a folder (a SavedModel?), which keeps no Keras layers; save the model itself with Keras 3 "
            "(model.save('MODEL.keras'))"
        )
    data = _read("the model", uri)
    if problem := _find_problem(data):
        raise WeightsError(f"{uri} {problem}")
    return data


def _find_problem(data: bytes) -> str | None:
    if data.startswith(b"\x89HDF\r\n\x1a\n"):
        return f"is a legacy HDF5 file; convert it with Keras 3 ({_CONVERT}); if that fails, {_KERAS_2}"
    if data.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; git lfs pull fetches the model"
    if not data.startswith(b"PK"):
        return "is no Keras archive; save the model with Keras 3 (model.save('MODEL.keras'))"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            metadata = json.loads(archive.read("metadata.json"))
            version = str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""
            if b'"keras.src.engine.' in archive.read("config.json"):  # where Keras 2 had its models
                version = "2"
    except KeyError:
        return "is a zip archive without a Keras model; save the model with Keras 3 (model.save('MODEL.keras'))"
    except (zipfile.BadZipFile, ValueError, EOFError):
        return "is cut short or damaged; copy it again"
    if version.partition(".")[0] in ("1", "2"):
        return f"was saved by Keras {version}; {_KERAS_2}"
    return None


def load_model(uri: str, data: bytes) -> keras.Model:
    """Load a model; code inside it is an error.

    Raises:
        WeightsError: it cannot be loaded safely, or does not take images and give one row of numbers for each.
    """
    import keras

    with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
        path = Path(folder, "model.keras")
        path.write_bytes(data)
        if threats := [*find_threats(Path(folder))]:
            raise WeightsError(
                f"{uri} cannot be loaded safely ({'; '.join(threats[:3])}); save it with Keras 3, without lambdas and "
                "custom layers"
            )
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # Keras passes on whatever its layers raise
            reason = " ".join(str(error).split()).replace(str(path), uri).partition(". ")[0][:300]
            raise WeightsError(f"{uri} cannot be loaded ({reason}); save it with Keras 3") from None
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise WeightsError(
            f"{uri} must take one batch of images and give one output; it takes {len(model.inputs)} and gives "
            f"{len(model.outputs)}: save keras.Model(inputs, output) of the one that classifies"
        )
    shape = model.inputs[0].shape
    if len(shape) != 4 or shape[-1] != 3:
        grey = ": put keras.layers.Concatenate of three copies before it" if len(shape) == 4 and shape[-1] == 1 else ""
        raise WeightsError(f"{uri} must take RGB images [N, S, S, 3]; it takes {list(shape)}{grey}")
    if shape[1] != shape[2]:
        raise WeightsError(
            f"{uri} must take square images [N, S, S, 3], into which tlray squeezes each picture; it takes "
            f"{shape[1]} x {shape[2]} pixels"
        )
    if len(model.outputs[0].shape) != 2:
        raise WeightsError(f"{uri} must give probabilities or logits [N, C]; it gives {list(model.outputs[0].shape)}")
    return model


def _read(what: str, uri: str) -> bytes:
    try:
        return storage.get(storage.resolve(uri))
    except FetchError as error:
        raise ConfigError([f"{what} {storage.redact(uri)} cannot be read: {error}"]) from None
