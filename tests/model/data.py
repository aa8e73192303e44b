"""A small bundle without TensorFlow: its model files have the right names, and contents that pass every check."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.factories import make_epoch
from tlray.metrics.calibration import CalibrationRecord
from tlray.model.bundle import GOLDEN, NETWORK, save_bundle
from tlray.model.manifest import (
    Architecture,
    GoldenImage,
    GoldenRecord,
    KeptEpoch,
    Manifest,
    Metrics,
    Preprocessing,
    RoleCounts,
    TrainingRecord,
)
from tlray.storage.records import dump_record

CONFIG = {
    "class_name": "Functional",
    "module": "keras.src.models.functional",
    "config": {"layers": [{"class_name": "Dense", "module": "keras.layers", "config": {"units": 2}}]},
}

OPTIONS = {
    "data": "/photos | mine", "backbone": "mobilenet_v2", "weights": "none", "head_epochs": 5, "finetune_epochs": 7,
    "head_optimizer": "adam", "finetune_optimizer": "sgd", "finetune_from": "block_12_add", "shear": 10.0, "zoom": 0.2,
    "horizontal_flip": True, "seed": 1, "lr_head": None,
}  # fmt: skip


def make_keras_file(config: object = CONFIG, **files: bytes | str) -> bytes:
    """Return an archive as Keras writes it; `files` are added, `_` in a name stands for a dot."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("metadata.json", "{}")
        for name, data in files.items():
            archive.writestr(name.replace("_", "."), data)
    return buffer.getvalue()


def encode_field(number: int, *contents: bytes | str) -> bytes:
    """Return a field of a protocol buffer that holds a string or a message."""
    data = b"".join(content.encode() if isinstance(content, str) else content for content in contents)
    length, digits = len(data), bytearray()
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2]) + bytes([*digits, length]) + data


def encode_nodes(number: int, operations: Iterable[str]) -> bytes:
    return b"".join(encode_field(number, encode_field(1, "name"), encode_field(2, each)) for each in operations)


def make_graph(
    operations: Iterable[str] = ("Placeholder", "Conv2D"),
    functions: Mapping[str, Iterable[str]] = {"__inference_serve_1": ("MatMul", "Softmax")},
    objects: str = "objects",
) -> bytes:
    """Return a `saved_model.pb` with these operations outside of functions and in each function."""
    library = [
        encode_field(1, encode_field(1, encode_field(1, name)), encode_nodes(3, inside))
        for name, inside in functions.items()
    ]
    graph = encode_field(2, encode_nodes(1, operations), encode_field(2, *library))
    return b"\x08\x01" + encode_field(2, graph, encode_field(7, objects) if objects else b"")


def make_network(layers: Iterable[str | tuple[str, str]]) -> bytes:
    """Return a `model.xml` with layers of these types, each of opset1 or of the set given with it."""
    pairs = [(layer, "opset1") if isinstance(layer, str) else layer for layer in layers]
    lines = [
        f'<layer id="{index}" type="{kind}" version="{opset}"><data/></layer>'
        for index, (kind, opset) in enumerate(pairs)
    ]
    return f"<net><layers>{''.join(lines)}</layers></net>".encode()


def fit_checksums(bundle: Path) -> None:
    """Make the checksums of a bundle's manifest those of its files."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"] = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def make_model_files(keras_file: bytes | None = None, graph: bytes | None = None) -> dict[str, bytes]:
    """Return the model files of two classes with one golden image."""
    golden = GoldenRecord([GoldenImage("golden/0.png", "owl", [0.25, 0.75])])
    return {
        "model.keras": keras_file or make_keras_file(),
        NETWORK: make_network(["Parameter", "Result"]),
        "saved_model/saved_model.pb": graph or make_graph(),
        "golden/0.png": b"png",
        GOLDEN: dump_record(golden),
    }


def write_bundle(uri: str, model_files: dict[str, bytes] | None = None) -> Manifest:
    """Write a bundle of the classes cat and owl."""
    return save_bundle(
        uri,
        model_files or make_model_files(),
        make_reports=lambda manifest: {"report.html": manifest.model_id.encode()},
        architecture=Architecture("mobilenet_v2", (16,), 2, 1280, "a" * 64),
        classes=["cat", "owl"],
        preprocessing=Preprocessing(48, 1 / 127.5, -1.0),
        calibration=CalibrationRecord(1.5, 40, None),
        thresholds=None,
        training=TrainingRecord(OPTIONS, {"lr_head": 0.1}, "b" * 64, RoleCounts(80, 20, 0), 3),
        metrics=Metrics(kept=KeptEpoch("finetune", 2)),
        history=[make_epoch(1), make_epoch(2, phase="finetune")],
    )
