"""One trained model as one directory: saved by training, verified by everything that loads it.

bundle.json      what it is: model id, classes, preprocessing, metrics, checksums
model.keras      the Keras model: float32 pixels in [0, 255] in, probabilities out
saved_model/     the same for plain `tf.saved_model.load`: uint8 [N, S, S, 3] in, float32 [N, C] out
golden/          encoded images and the float32 probabilities that a CPU gave for them
training/        history.json, config.yaml, label_errors.csv, tensorboard/
report.html      what was trained and how good it is, as one page
README.md        the model card
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.errors import BundleError, FetchError
from tlray.model.card import write_card
from tlray.model.safety import find_threats

FORMAT = 1
MANIFEST = "bundle.json"
HISTORY = "training/history.json"
GOLDEN = "golden/golden.json"
CARD = "README.md"

_REQUIRED = {"format", "model_id", "architecture", "classes", "preprocessing", "calibration", "files"}
_MODEL_FILES = re.compile(r"model\.keras|(saved_model|golden)(/[^/]+)+")
_PACKAGES = ("tlray", "tensorflow", "keras", "ray", "numpy", "pyarrow", "pillow")


@dataclass(frozen=True)
class Golden:
    """An image and its answer, by which any engine is checked.

    Attributes:
        file: its name inside the bundle.
        data: the encoded image.
        probabilities: float32 `[C]`.
    """

    file: str
    data: bytes
    probabilities: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: the local directory that holds it (a copy, where it came from object storage).
        uri: where it was loaded from.
        manifest: `bundle.json`.
    """

    path: Path
    uri: str
    manifest: dict[str, Any]

    @property
    def model_id(self) -> str:
        """sha256 over architecture, weights, preprocessing, class list and calibration."""
        return str(self.manifest["model_id"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return tuple(self.manifest["classes"])

    @property
    def image_size_px(self) -> int:
        """Side S of the square input."""
        return int(self.manifest["preprocessing"]["image_size"])

    @property
    def num_features(self) -> int:
        """Length D of an image's pooled features; 0 where the model gives none."""
        return int(self.manifest["architecture"].get("num_features", 0))

    @property
    def preprocessing_fingerprint(self) -> str:
        """sha256 over the preprocessing."""
        return hash_json(self.manifest["preprocessing"])

    def load_golden(self) -> list[Golden]:
        """The golden images with their answers."""
        answers = json.loads((self.path / GOLDEN).read_text())
        return [
            Golden(
                file=entry["file"],
                data=(self.path / entry["file"]).read_bytes(),
                probabilities=np.array(entry["probabilities"], np.float32),
            )
            for entry in answers["images"]
        ]

    def load_history(self) -> list[dict[str, Any]]:
        """One record an epoch; empty where the bundle carries none."""
        path = self.path / HISTORY
        return json.loads(path.read_text()) if path.is_file() else []

    def read_inference_files(self) -> dict[str, bytes]:
        """What labelling needs, by name: the manifest, the SavedModel and the golden images."""
        names = [name for name in self.manifest["files"] if name.startswith(("saved_model/", "golden/"))]
        return {name: (self.path / name).read_bytes() for name in [MANIFEST, *names]}


def make_preprocessing(image_size_px: int, scale: float, offset: float) -> dict[str, Any]:
    """How an encoded image becomes the network's input, as `bundle.json` records it."""
    return {
        "image_size": image_size_px,
        "decoder": "tlray.images.decode",
        "mode": "RGB",
        "exif": "upright",
        "alpha": "over white",
        "resize": "bilinear, squashed",
        "scale": scale,
        "offset": offset,
    }


def hash_json(value: Any) -> str:
    """sha256 of a JSON value in one canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def compute_model_id(manifest: dict[str, Any]) -> str:
    """sha256 over architecture (which names the weights' hash), preprocessing, class list and calibration."""
    return hash_json({key: manifest[key] for key in ("architecture", "preprocessing", "classes", "calibration")})


def save_bundle(
    uri: str,
    model_files: dict[str, bytes],
    *,
    make_reports: Callable[[dict[str, Any]], dict[str, bytes]],
    architecture: dict[str, Any],
    classes: Sequence[str],
    preprocessing: dict[str, Any],
    calibration: dict[str, Any],
    thresholds: dict[str, Any],
    training: dict[str, Any],
    metrics: dict[str, Any],
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """Write a bundle that appears whole or not at all; returns its manifest.

    Args:
        uri: a new folder or s3:// prefix.
        model_files: `model.keras`, `saved_model/...` and `golden/...` by name.
        make_reports: takes the manifest, gives files for people by name; no checksum covers them.
        architecture: backbone, head, and the sha256 of the weights.
        classes, preprocessing, calibration, thresholds, training, metrics: as in `bundle.json`.
        history: one record an epoch.

    Raises:
        OutputError: it cannot be written.
    """
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "model_id": "",
        "architecture": architecture,
        "classes": list(classes),
        "preprocessing": preprocessing,
        "calibration": calibration,
        "thresholds": thresholds,
        "training": training,
        "metrics": metrics,
        "versions": list_versions(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(model_files.items())},
    }
    manifest["model_id"] = compute_model_id(manifest)
    files = {
        **model_files,
        **make_reports(manifest),
        HISTORY: _dump(history),
        CARD: write_card(manifest).encode(),
        MANIFEST: _dump(manifest),
    }
    storage.put_folder(uri, files, last=MANIFEST)
    return manifest


def read_manifest(uri: str) -> dict[str, Any]:
    """`bundle.json` alone, checked for its form but not against the files.

    Raises:
        BundleError: there is none, or it is of another format.
    """
    try:
        manifest = json.loads(storage.get(storage.join(uri, MANIFEST)))
    except FetchError:
        raise BundleError(f"{uri} is not a bundle: it holds no {MANIFEST}; give what tlray train wrote") from None
    except ValueError:
        raise BundleError(f"{uri} is damaged: its {MANIFEST} is not JSON; train or copy it again") from None
    if not isinstance(manifest, dict) or not manifest.keys() >= _REQUIRED:
        raise BundleError(f"{uri} is not a bundle: its {MANIFEST} lacks fields; give what tlray train wrote")
    if manifest["format"] != FORMAT:
        raise BundleError(f"{uri} has bundle format {manifest['format']}, this tlray reads {FORMAT}; update tlray")
    return manifest


def load_bundle(uri: str) -> Bundle:
    """Verify a bundle and open it; one from object storage is copied to local disk first.

    Raises:
        BundleError: it is not one, a file is missing or changed, or its parts do not fit together.
    """
    uri = storage.resolve(uri)
    manifest = read_manifest(uri)
    strange = [name for name in manifest["files"] if not _is_model_file(name)]
    if strange:
        raise BundleError(
            f"{uri} is refused: its {MANIFEST} names {strange[0]!r}, and a bundle's files are model.keras and what "
            "lies below saved_model/ and golden/; use bundles that tlray train wrote"
        )
    path = _download(uri, manifest) if storage.is_s3(uri) else Path(uri)
    faults = [fault for name, expected in manifest["files"].items() if (fault := _check_file(path, name, expected))]
    if compute_model_id(manifest) != manifest["model_id"]:
        faults.append("bundle.json was edited: its model id does not fit")
    if len(manifest["classes"]) != manifest["architecture"].get("num_classes"):
        faults.append(
            f"{len(manifest['classes'])} class names for {manifest['architecture'].get('num_classes')} outputs"
        )
    for needed in ("model.keras", "saved_model/saved_model.pb", GOLDEN):
        if needed not in manifest["files"]:
            faults.append(f"{needed} is not listed")
    threats = [*find_threats(path)]
    if threats:
        raise BundleError(f"{uri} is refused: {'; '.join(threats)}; use bundles that tlray train wrote")
    if faults:
        raise BundleError(f"{uri} is not what was saved ({'; '.join(faults)}); train or copy it again")
    for image in json.loads((path / GOLDEN).read_text())["images"]:
        if image["file"] not in manifest["files"]:
            raise BundleError(f"{uri} is refused: {GOLDEN} names {image['file']!r}, which {MANIFEST} does not")
    return Bundle(path, uri, manifest)


def list_versions() -> dict[str, str]:
    """Versions of tlray and what it stands on."""
    return {name: metadata.version(name) for name in _PACKAGES}


def unpack(files: dict[str, bytes], folder: Path) -> None:
    """Write files below a folder by their relative names."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _is_model_file(name: str) -> bool:
    """Whether a name is one of a bundle's files; whoever wrote the manifest chose it, so it may lead anywhere."""
    plain = name.isprintable() and not set(name) & set("\\:") and not {".", ".."} & set(name.split("/"))
    return plain and _MODEL_FILES.fullmatch(name) is not None


def _download(uri: str, manifest: dict[str, Any]) -> Path:
    """A local copy of the files that the manifest names, and of the history, in a folder of its own."""
    folder = _make_download_folder(uri, str(manifest["model_id"]))
    names = [name for name, expected in manifest["files"].items() if _check_file(folder, name, expected) is not None]
    names.append(HISTORY)
    for name, data in zip(names, storage.get_many(storage.join(uri, name) for name in names), strict=True):
        if isinstance(data, FetchError):
            if name in manifest["files"]:
                raise BundleError(f"{uri} is not what was saved ({name}: {data}); train or copy it again")
        else:
            try:
                unpack({name: data}, folder)
            except OSError as error:  # a name that is too long, or a file and a folder at once
                raise BundleError(f"{uri} cannot be copied here ({name}: {error.strerror})") from None
    (folder / MANIFEST).write_bytes(_dump(manifest))
    return folder


@cache
def _make_download_folder(uri: str, model_id: str) -> Path:
    """A folder that lives as long as the process."""
    _DOWNLOADS.append(tempfile.TemporaryDirectory(prefix="tlray-bundle-"))
    return Path(_DOWNLOADS[-1].name)


_DOWNLOADS: list[tempfile.TemporaryDirectory[str]] = []


def _check_file(folder: Path, name: str, expected: str) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            return f"{name} was changed"
    return None


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
