"""Find code in a bundle's model files before anything is deserialised: what is not known to be harmless is refused."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tlray.model.graph_ops import GraphError, find_foreign_ops
from tlray.model.openvino_layers import MODEL, OOD_SCORE, WEIGHTS, find_foreign_layers
from tlray.storage.records import Json

_GRAPH = "saved_model.pb"
_GRAPH_FILES = re.compile(r"saved_model\.pb|fingerprint\.pb|variables/variables\.(index|data-\d{5}-of-\d{5})")
_KERAS_FILES = {"config.json", "metadata.json", "model.weights.h5"}

_NETWORK_FILES = {MODEL, WEIGHTS, OOD_SCORE}

_LAYERS = frozenset(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention AlphaDropout Attention AugMix
    AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D BatchNormalization Bidirectional CenterCrop
    Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D
    Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping2D Cropping3D CutMix Dense DepthwiseConv1D
    DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Equalization Flatten GRU GRUCell GaussianDropout
    GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D
    GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention Identity InputLayer LSTM LSTMCell
    LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum MixUp
    MultiHeadAttention Multiply Normalization PReLU Permute RMSNormalization RNN RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip
    RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation
    RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape
    Resizing SeparableConv1D SeparableConv2D SimpleRNN SimpleRNNCell Softmax Solarization SpatialDropout1D
    SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells Subtract TimeDistributed UnitNormalization
    UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """.split()  # noqa: SIM905  (columns of names read better)
)
"""Layers of images; StringLookup, for one, reads whatever file it names."""

_CLASSES = {
    "keras": {"DTypePolicy", "FloatDTypePolicy", "Functional", "Model", "Sequential"},
    "keras.layers": _LAYERS,
    "keras.src.applications.convnext": {"LayerScale", "StochasticDepth"},
    "keras.src.applications.inception_resnet_v2": {"CustomScaleLayer"},
    "keras.src.models.functional": {"Functional"},
    "keras.src.models.sequential": {"Sequential"},
    "keras.src.ops.core": {
        "Cast", "ConvertToTensor", "SaturateCast", "Scatter", "ScatterUpdate", "Slice", "SliceUpdate", "StopGradient",
        "Unstack",
    },
}  # fmt: skip
_MODULES = {
    f"keras.{name}"
    for name in (
        "activations", "constraints", "initializers", "losses", "metrics", "optimizers", "optimizers.schedules",
        "regularizers",
    )
}  # fmt: skip
_OPERATORS = {f"keras.src.ops.{name}" for name in ("image", "linalg", "math", "nn", "numpy")}
_TAKING_FUNCTIONS = {"function", "JVP"}
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__", "__tuple__"}
"""Values in the arguments of operators, which have no module."""
_MAX_CONFIG_BYTES = 16 * 2**20


def find_threats(folder: Path) -> Iterator[str]:
    """Yield a phrase for each part of a bundle's model files that could run code or touch files."""
    keras_file, saved_model = folder / "model.keras", folder / "saved_model"
    if keras_file.is_file():
        yield from _check_keras(keras_file)
    if saved_model.is_dir():
        yield from _check_saved_model(saved_model)
    if (folder / "openvino").is_dir():
        yield from _check_openvino(folder / "openvino")


def _check_saved_model(folder: Path) -> Iterator[str]:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir()]
    for name in names:
        if not _GRAPH_FILES.fullmatch(name):
            yield f"saved_model holds {name!r}, which is no part of a graph"
    if _GRAPH not in names:
        return
    try:
        operations = find_foreign_ops((folder / _GRAPH).read_bytes())
    except GraphError as error:
        yield f"saved_model holds no graph of TensorFlow 2 ({error})"
        return
    if operations:
        yield f"saved_model holds {', '.join(operations[:5])}, which no layer of Keras for images needs"


def _check_openvino(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).as_posix() not in _NETWORK_FILES:
            yield f"openvino holds {path.relative_to(folder).as_posix()!r}, which is no part of a network"
    if not (folder / MODEL).is_file():
        return
    num_bytes = (folder / WEIGHTS).stat().st_size if (folder / WEIGHTS).is_file() else 0
    try:
        operations = find_foreign_layers((folder / MODEL).read_bytes(), num_bytes)
    except GraphError as error:
        yield f"openvino holds no network ({error})"
        return
    if operations:
        yield f"openvino holds {', '.join(operations[:5])}, which no layer of Keras for images needs"


def _check_keras(path: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            strange = sorted(set(archive.namelist()) - _KERAS_FILES)
            if strange:
                yield f"model.keras holds {strange[0]!r}, which no Keras model does"
            if archive.getinfo("config.json").file_size > _MAX_CONFIG_BYTES:
                yield "model.keras holds a config.json that is too large"
                return
            config = json.loads(archive.read("config.json"))
        if isinstance(config, dict):
            config.pop("compile_config", None)  # the optimizer and losses of a model, which is loaded without them
        foreign = list_foreign(config)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError):  # RuntimeError: too deep
        yield "model.keras is not a Keras 3 archive"
        return
    for name in foreign:
        yield f"model.keras holds {name}, which is none of Keras's own layers and functions for images"


def list_foreign(config: Json) -> list[str]:
    """Return the names in a Keras config that are not plain layers and functions of Keras itself, sorted.

    Raises:
        RecursionError: it is nested too deep.
    """
    return sorted(set(_iter_foreign(config)))


def _iter_foreign(node: Json) -> Iterator[str]:
    if isinstance(node, list):
        for value in node:
            yield from _iter_foreign(value)
    if isinstance(node, dict):
        if "class_name" in node:
            name, module = str(node["class_name"]), node.get("module")
            if not (name in _VALUES if module is None else _is_known(str(module), name)):
                yield f"{module}.{name}" if module else name
        for value in node.values():
            yield from _iter_foreign(value)


def _is_known(module: str, name: str) -> bool:
    if module in _MODULES or module in _OPERATORS:
        return name not in _TAKING_FUNCTIONS
    return name in _CLASSES.get(module, ())
