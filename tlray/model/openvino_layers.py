"""Find the layers of a network in OpenVINO's format that do more than compute, without OpenVINO.

The file is XML: https://docs.openvino.ai/2026/documentation/openvino-ir-format.html describes it.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tlray.model.graph_ops import GraphError

MODEL, WEIGHTS = "model.xml", "model.bin"
"""The network, and its weights beside it."""

OOD_SCORE = "ood_score.npz"
"""References of the out-of-distribution score, which is computed in float32 whatever the network's precision."""

_COMPUTING = frozenset(
    """
    Const Parameter Result If Loop TensorIterator
    Abs Acos Acosh Add Asin Asinh Atan Atanh BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceiling Clamp Convert
    ConvertLike Cos Cosh Divide Elu Equal Erf Exp FakeQuantize Floor FloorMod Gelu Greater GreaterEqual HSigmoid HSwish
    HardSigmoid IsFinite IsInf IsNaN Less LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr LogicalXor Maximum
    Minimum Mish Mod Multiply Negative NotEqual PReLU Power ReLU Round Select Selu Sigmoid Sign Sin Sinh SoftMax
    SoftPlus SoftSign Sqrt SquaredDifference Subtract Swish Tan Tanh
    CumSum ReduceL1 ReduceL2 ReduceLogicalAnd ReduceLogicalOr ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum TopK
    AdaptiveAvgPool AdaptiveMaxPool AvgPool BatchNormInference Convolution ConvolutionBackpropData Einsum
    ExtractImagePatches GRUCell GRUSequence GroupConvolution GroupConvolutionBackpropData GroupNormalization LRN
    LSTMCell LSTMSequence MVN MatMul MaxPool NormalizeL2 RNNCell RNNSequence RMS ScaledDotProductAttention
    BatchToSpace Broadcast Bucketize Concat DepthToSpace Gather GatherElements GatherND Interpolate NonZero OneHot Pad
    RandomUniform Range Reshape ReverseSequence Roll ScatterElementsUpdate ScatterNDUpdate ScatterUpdate ShapeOf
    ShuffleChannels Slice SpaceToBatch SpaceToDepth Split Squeeze StridedSlice Tile Transpose Unsqueeze VariadicSplit
    DFT IDFT IRDFT RDFT Inverse Eye Unique
    """.split()  # noqa: SIM905  (columns of names read better)
)
"""Layers whose results depend on their inputs alone; Assign and ReadValue, for two, keep a state between images."""

_OPSET = re.compile(r"opset\d{1,2}")
_MAX_BYTES = 64 * 2**20


def find_foreign_layers(network: bytes, num_weight_bytes: int) -> list[str]:
    """Return the types of a `model.xml`'s layers that are not known only to compute, sorted.

    Args:
        network: the file.
        num_weight_bytes: size of the `model.bin` beside it.

    Raises:
        GraphError: it is no network, or its constants lie outside of its weights.
    """
    if len(network) > _MAX_BYTES or b"<!" in network:  # a document type may define entities without end
        raise GraphError("it is no plain XML of a network")
    try:
        root = ElementTree.fromstring(network)
    except (ElementTree.ParseError, ValueError):
        raise GraphError("it is cut short or damaged") from None
    layers = list(root.iter("layer"))
    if root.tag != "net" or not layers:
        raise GraphError("it has no layers")
    for layer in layers:
        if layer.get("type") == "Const":
            _check_constant(layer, num_weight_bytes)
    return sorted({name for layer in layers if (name := _name_foreign(layer)) is not None})


def _name_foreign(layer: ElementTree.Element) -> str | None:
    kind, version = str(layer.get("type")), str(layer.get("version"))
    if kind in _COMPUTING and _OPSET.fullmatch(version):
        return None
    return kind if _OPSET.fullmatch(version) else f"{version}.{kind}"


def _check_constant(layer: ElementTree.Element, num_weight_bytes: int) -> None:
    data = layer.find("data")
    try:
        offset, size = (int((data.get(name) if data is not None else None) or "") for name in ("offset", "size"))
    except ValueError:
        raise GraphError("a constant has no place in its weights") from None
    if offset < 0 or size < 0 or offset + size > num_weight_bytes:
        raise GraphError("a constant lies outside of its weights")
