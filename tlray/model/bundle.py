"""Write, verify and open a bundle: one trained model as one directory.

bundle.json      model id, classes, preprocessing, metrics, checksums
model.keras      the Keras model: float32 pixels in [0, 255] in, probabilities out
openvino/        the same in OpenVINO's format, uint8 [N, S, S, 3] in, with the references of the ood_score
saved_model/     the same for plain `tf.saved_model.load`: uint8 [N, S, S, 3] in, float32 [N, C] out
golden/          encoded images and the float32 probabilities that a CPU gave for them
metrics/         what is told by class, see class_tables
training/        history.json, config.yaml, label_errors.csv, tensorboard/
report.html      the training and the metrics as one page
README.md        the model card
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.errors import UNREACHABLE, BundleError, Code, FetchError, OutageError, TlrayError
from tlray.images.thumbnail import make_thumbnail
from tlray.metrics.calibration import CalibrationRecord
from tlray.metrics.thresholds import Thresholds
from tlray.model.card import write_card
from tlray.model.class_tables import drop_class_tables, join_class_tables, write_class_tables
from tlray.model.manifest import (
    DECODER,
    FORMAT,
    Architecture,
    EpochRecord,
    GoldenRecord,
    Manifest,
    Metrics,
    Preprocessing,
    TrainingRecord,
    compute_model_id,
    hash_preprocessing,
    sign,
)
from tlray.model.safety import find_threats
from tlray.notebook import Card, Picture, Shown, name_classes
from tlray.storage.records import RecordError, dump_record, parse_record, parse_records

MANIFEST = "bundle.json"
HISTORY = "training/history.json"
GOLDEN = "golden/golden.json"
NETWORK = "openvino/model.xml"
"""The network in OpenVINO's format; a bundle has none if OpenVINO cannot convert it."""

_SHOWN = 8
CARD = "README.md"

_MODEL_FILES = re.compile(r"model\.keras|(openvino|saved_model|golden|metrics)(/[^/]+)+")
_NEEDED = ("model.keras", "saved_model/saved_model.pb", GOLDEN)
_PACKAGES = ("tlray", "tensorflow", "keras", "openvino", "ray", "numpy", "pyarrow", "pillow")


@dataclass(frozen=True)
class Golden:
    """A golden image: its name in the bundle, its encoded bytes and its probabilities, float32 `[C]`."""

    file: str
    data: bytes
    probabilities: npt.NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class Bundle(Shown):
    """A verified bundle: its local directory, a copy if it came from object storage, and its address."""

    path: Path
    uri: str
    manifest: Manifest

    @property
    def model_id(self) -> str:
        """Id of the model."""
        return self.manifest.model_id

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.manifest.classes

    @property
    def image_size_px(self) -> int:
        """Side S of the square input."""
        return self.manifest.preprocessing.image_size

    @property
    def num_features(self) -> int:
        """Length D of an image's pooled features; 0 if the model gives none."""
        return self.manifest.architecture.num_features

    @property
    def preprocessing_fingerprint(self) -> str:
        """sha256 of the preprocessing."""
        return hash_preprocessing(self.manifest.preprocessing)

    def describe(self) -> Card:
        """Return what a notebook shows: the classes, how good the model is, and its golden images."""
        manifest = self.manifest
        figures = [
            ("classes", name_classes(self.classes)),
            ("network", f"{manifest.architecture.backbone}, {self.image_size_px} px"),
        ]
        for role, measured in manifest.metrics.list_measured():
            name = manifest.metrics.name(role)
            figures.append((f"{name} accuracy", f"{measured.accuracy:.3f} of {measured.images:,} images"))
        if manifest.thresholds is not None:
            kept = f"{manifest.thresholds.kept:.1%} of the labels"
            figures.append((f"promised {manifest.thresholds.target_precision:g} right", kept))
        figures += [("model id", self.model_id[:12]), ("address", self.uri)]
        return Card("Bundle", figures)

    def read_pictures(self) -> list[Picture]:
        """Read the golden images with their labels."""
        pictures = []
        for image in self.load_golden()[:_SHOWN]:
            uri = make_thumbnail(image.data)
            if uri is not None:
                label = int(image.probabilities.argmax())
                pictures.append(Picture(uri, f"{self.classes[label]} {image.probabilities[label]:.0%}"))
        return pictures

    def load_golden(self) -> list[Golden]:
        """Load the golden images with their probabilities."""
        record = parse_record(GoldenRecord, (self.path / GOLDEN).read_bytes())
        return [
            Golden(image.file, (self.path / image.file).read_bytes(), np.array(image.probabilities, np.float32))
            for image in record.images
        ]

    def load_history(self) -> list[EpochRecord]:
        """Load the history; empty if the bundle has none.

        Raises:
            BundleError: it is damaged.
        """
        path = self.path / HISTORY
        with _explain_damage(self.uri, HISTORY):
            return parse_records(EpochRecord, path.read_bytes()) if path.is_file() else []

    def read_inference_files(self) -> dict[str, bytes]:
        """Read the files that an engine needs, by name, but for the SavedModel of `read_saved_model`."""
        names = [name for name in self.manifest.files if name.startswith(("openvino/", "golden/"))]
        return {name: (self.path / name).read_bytes() for name in [MANIFEST, *names]}

    def read_saved_model(self) -> dict[str, bytes]:
        """Read the files that TensorFlow needs besides, by name."""
        names = [name for name in self.manifest.files if name.startswith("saved_model/")]
        return {name: (self.path / name).read_bytes() for name in names}


def save_bundle(
    uri: str,
    model_files: Mapping[str, bytes],
    *,
    make_reports: Callable[[Manifest], dict[str, bytes]],
    architecture: Architecture,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    calibration: CalibrationRecord,
    thresholds: Thresholds | None,
    training: TrainingRecord | None,
    metrics: Metrics,
    history: Sequence[EpochRecord],
) -> Manifest:
    """Write a bundle that appears whole or not at all; return its manifest.

    Args:
        uri: a new folder or s3:// prefix.
        model_files: `model.keras`, `openvino/...`, `saved_model/...` and `golden/...` by name.
        make_reports: makes files for people, by name, from the manifest; no checksum covers them.

    Raises:
        OutputError: it cannot be written.
    """
    manifest = sign(
        Manifest(
            format=FORMAT,
            model_id="",
            architecture=architecture,
            classes=tuple(classes),
            preprocessing=preprocessing,
            calibration=calibration,
            thresholds=thresholds,
            training=training,
            metrics=metrics,
            versions=list_versions(),
            files={},
        )
    )
    covered = {**model_files, **write_class_tables(manifest)}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(covered.items())}
    manifest = replace(manifest, files=hashes)
    files = {
        **covered,
        **make_reports(manifest),
        HISTORY: dump_record(list(history)),
        CARD: write_card(manifest).encode(),
        MANIFEST: dump_record(drop_class_tables(manifest)),
    }
    storage.put_folder(uri, files, last=MANIFEST)
    return manifest


def read_manifest(uri: str) -> Manifest:
    """Read `bundle.json` strictly, without a comparison with the files and without what is told by class.

    Raises:
        BundleError: it is missing, damaged, or of another format.
    """
    try:
        data = storage.get(storage.join(uri, MANIFEST))
    except FetchError as error:
        if error.code in UNREACHABLE:
            raise _explain_reach(uri, error) from None
        raise BundleError(f"{uri} is not a bundle: it holds no {MANIFEST}; give what tlray train wrote") from None
    with contextlib.suppress(ValueError, RecursionError):
        plain = json.loads(data)
        found = plain.get("format") if isinstance(plain, dict) else None
        if isinstance(found, int) and found != FORMAT:
            remedy = "train or import the model again" if found < FORMAT else "update tlray"
            raise BundleError(f"{uri} has bundle format {found}, this tlray reads {FORMAT}; {remedy}")
    with _explain_damage(uri, MANIFEST):
        manifest = parse_record(Manifest, data)
    if (decoder := manifest.preprocessing.decoder) != DECODER:
        remedy = "train or import the model again"
        raise BundleError(f"{uri} was made for the decoder {decoder}, this tlray has {DECODER}; {remedy}")
    return manifest


def load_bundle(uri: str) -> Bundle:
    """Verify a bundle and open it; one from object storage is copied to local disk first.

    Raises:
        BundleError: it is not a bundle, a file is missing or changed, or its parts do not fit together.
    """
    uri = storage.resolve(uri)
    manifest = read_manifest(uri)
    strange = [name for name in manifest.files if not _is_model_file(name)]
    if strange:
        raise BundleError(
            f"{uri} is refused: its {MANIFEST} names {strange[0]!r}, and a bundle's files are model.keras and what "
            "lies below openvino/, saved_model/, golden/ and metrics/; use bundles that tlray train wrote"
        )
    path = _download(uri, manifest) if storage.is_s3(uri) else Path(uri)
    faults = [fault for name, expected in manifest.files.items() if (fault := _check_file(path, name, expected))]
    if compute_model_id(manifest) != manifest.model_id:
        faults.append("bundle.json was edited: its model id does not fit")
    if len(manifest.classes) != manifest.architecture.num_classes:
        faults.append(f"{len(manifest.classes)} class names for {manifest.architecture.num_classes} outputs")
    faults += [f"{needed} is not listed" for needed in _NEEDED if needed not in manifest.files]
    threats = list(find_threats(path))
    if threats:
        raise BundleError(f"{uri} is refused: {'; '.join(threats)}; use bundles that tlray train wrote")
    if faults:
        raise BundleError(f"{uri} is not what was saved ({'; '.join(faults)}); train or copy it again")
    _check_golden(uri, path, manifest)
    with _explain_damage(uri, "metrics/"):
        manifest = join_class_tables(manifest, path)
    return Bundle(path, uri, manifest)


def _check_golden(uri: str, path: Path, manifest: Manifest) -> None:
    with _explain_damage(uri, GOLDEN):
        images = parse_record(GoldenRecord, (path / GOLDEN).read_bytes()).images
    for image in images:
        if image.file not in manifest.files:
            raise BundleError(f"{uri} is refused: {GOLDEN} names {image.file!r}, which {MANIFEST} does not")
    if not images or any(len(image.probabilities) != len(manifest.classes) for image in images):
        raise BundleError(f"{uri} is damaged: {GOLDEN} holds no probabilities of its classes; train or copy it again")


def _explain_reach(uri: str, error: FetchError) -> TlrayError:
    """Return the error of a bundle that is there, for all we know, but cannot be read."""
    if error.code is Code.DENIED:
        return BundleError(f"{uri} cannot be read: {error}")
    return OutageError(f"{uri} cannot be read: {error}; run the same command again")


@contextlib.contextmanager
def _explain_damage(uri: str, name: str) -> Iterator[None]:
    try:
        yield
    except RecordError as error:
        raise BundleError(f"{uri} is damaged: {name}: {error}; train or copy it again") from None


def list_versions() -> dict[str, str]:
    """Return the versions of tlray and its main dependencies."""
    return {name: metadata.version(name) for name in _PACKAGES}


def unpack(files: dict[str, bytes], folder: Path) -> None:
    """Write files below a folder by their relative names."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _is_model_file(name: str) -> bool:
    """Return whether a name, which the manifest's author chose freely, stays inside a bundle."""
    plain = name.isprintable() and not set(name) & set("\\:") and not {".", ".."} & set(name.split("/"))
    return plain and _MODEL_FILES.fullmatch(name) is not None


def _download(uri: str, manifest: Manifest) -> Path:
    """Copy the files that the manifest names, and the history, to a local folder."""
    folder = _make_download_folder(uri, manifest.model_id)
    names = [name for name, expected in manifest.files.items() if _check_file(folder, name, expected) is not None]
    names.append(HISTORY)
    for name, data in zip(names, storage.get_many(storage.join(uri, name) for name in names), strict=True):
        if isinstance(data, FetchError):
            if data.code in UNREACHABLE:
                raise _explain_reach(uri, data)
            if name in manifest.files:
                raise BundleError(f"{uri} is not what was saved ({name}: {data}); train or copy it again")
        else:
            try:
                unpack({name: data}, folder)
            except OSError as error:  # a name that is too long, or a file and a folder at once
                raise BundleError(f"{uri} cannot be copied here ({name}: {error.strerror})") from None
    (folder / MANIFEST).write_bytes(dump_record(manifest))
    return folder


@cache
def _make_download_folder(uri: str, model_id: str) -> Path:
    """Return a folder that exists as long as the process."""
    _DOWNLOADS.append(tempfile.TemporaryDirectory(prefix="tlray-bundle-"))
    return Path(_DOWNLOADS[-1].name)


_DOWNLOADS: list[tempfile.TemporaryDirectory[str]] = []


def _check_file(folder: Path, name: str, expected: str) -> str | None:
    path = folder / name
    try:
        if not path.is_file():
            return f"{name} is missing"
        with path.open("rb") as file:
            return None if hashlib.file_digest(file, "sha256").hexdigest() == expected else f"{name} was changed"
    except OSError as error:  # also a name that is too long
        return f"{name} cannot be read ({error.strerror})"
