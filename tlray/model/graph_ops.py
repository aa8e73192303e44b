"""Find the operations in a SavedModel that do more than compute, without TensorFlow, which takes seconds to import.

The file is a protocol buffer: `SavedModel.meta_graphs.graph_def` holds nodes, and a library of functions with nodes of
their own. https://protobuf.dev/programming-guides/encoding describes the encoding.
"""

from __future__ import annotations

import re
from typing import TypeAlias

_COMPUTING = frozenset(
    """
    Const HostConst Identity IdentityN NoOp Placeholder PlaceholderWithDefault StopGradient PreventGradient EnsureShape
    Case If PartitionedCall StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile While
    Abs Acos Acosh Add AddN AddV2 Angle ApproximateEqual Asin Asinh Atan Atan2 Atanh BesselI0e BesselI1e BitwiseAnd
    BitwiseOr BitwiseXor Cast Ceil ClipByValue Complex ComplexAbs Conj Cos Cosh Digamma Div DivNoNan Elu Equal Erf Erfc
    Erfinv Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual Igamma Igammac Imag Inv Invert IsFinite IsInf IsNan
    LeakyRelu LeftShift Less LessEqual Lgamma Log Log1p LogicalAnd LogicalNot LogicalOr LogSoftmax Maximum Minimum Mod
    Mul MulNoNan Ndtri Neg NextAfter NotEqual Polygamma Pow Real RealDiv Reciprocal Relu Relu6 RightShift Rint Round
    Rsqrt Select SelectV2 Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Square SquaredDifference Sub Tan
    Tanh TruncateDiv TruncateMod Xdivy Xlog1py Xlogy Zeta
    All Any ArgMax ArgMin Bincount Bucketize Cumprod Cumsum CumulativeLogsumexp DenseBincount EuclideanNorm
    HistogramFixedWidth InTopKV2 L2Loss LowerBound Max Mean Min NthElement Prod SegmentMax SegmentMean SegmentMin
    SegmentProd SegmentSum Sum TopKV2 UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum
    UpperBound
    AvgPool AvgPool3D BatchNormWithGlobalNormalization BiasAdd BiasAddV1 Conv Conv2D Conv2DBackpropInput
    Conv2DBackpropInputV2 Conv3D Conv3DBackpropInputV2 DataFormatDimMap DataFormatVecPermute DepthwiseConv2dNative
    DepthwiseConv2dNativeBackpropInput Dilation2D ExtractImagePatches ExtractVolumePatches FusedBatchNorm
    FusedBatchNormV2 FusedBatchNormV3 LRN MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax
    BandedTriangularSolve BatchMatMul BatchMatMulV2 BatchMatMulV3 Cholesky Cross Einsum LogMatrixDeterminant Lu MatMul
    MatrixBandPart MatrixDeterminant MatrixDiagPartV3 MatrixDiagV3 MatrixInverse MatrixSetDiagV3 MatrixSolve
    MatrixTriangularSolve Qr SelfAdjointEigV2 Svd FFT FFT2D FFT3D IFFT IFFT2D IFFT3D IRFFT IRFFT2D RFFT RFFT2D
    BatchToSpaceND Bitcast BroadcastArgs BroadcastTo Concat ConcatOffset ConcatV2 DepthToSpace DynamicPartition
    DynamicStitch ExpandDims Fill Gather GatherNd GatherV2 InvertPermutation LinSpace ListDiff MirrorPad OneHot
    OnesLike Pack Pad PadV2 ParallelDynamicStitch Range Rank Reshape Reverse ReverseSequence ReverseV2 Roll ScatterNd
    Shape ShapeN Size Slice SpaceToBatchND SpaceToDepth Split SplitV Squeeze StridedSlice TensorScatterAdd
    TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate Tile Transpose
    Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 Unpack Where ZerosLike
    TensorListConcatV2 TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem TensorListLength
    TensorListReserve TensorListResize TensorListSetItem TensorListStack EmptyTensorList
    StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomNormalV2 StatelessRandomUniformFullIntV2
    StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessTruncatedNormalV2
    AdjustContrastv2 AdjustHue AdjustSaturation CropAndResize HSVToRGB ImageProjectiveTransformV2
    ImageProjectiveTransformV3 ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor RGBToHSV ScaleAndTranslate
    Dequantize FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel QuantizeAndDequantizeV2
    QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 QuantizeV2
    """.split()  # noqa: SIM905  (columns of names read better)
)
"""Operations whose results depend on their inputs alone, of which the graphs of Keras's layers consist."""

_SAVING = frozenset(
    {"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename", "StaticRegexFullMatch", "StringJoin"}
)
_SAVER = re.compile(r"__inference__traced_(save|restore)_\d+")
"""Functions that TensorFlow adds to each SavedModel to save and restore variables; its loader calls neither."""

_FUNCTION = "__inference_"
"""Start of the names of functions; no operation's name starts so."""

_Fields: TypeAlias = list[tuple[int, memoryview]]
"""Numbers and contents of those fields of a message that are strings or messages, in order."""


class GraphError(ValueError):
    """A file that is not a SavedModel of one graph with its objects."""


def find_foreign_ops(saved_model: bytes) -> list[str]:
    """Return the operations of a `saved_model.pb` that are not known only to compute, sorted.

    Raises:
        GraphError: it is not a SavedModel as TensorFlow 2 writes it.
    """
    meta_graphs = _take(_parse(memoryview(saved_model)), 2)
    if len(meta_graphs) != 1:
        raise GraphError(f"it holds {len(meta_graphs)} graphs, and not one")
    meta_graph = _parse(meta_graphs[0])
    objects = _take(meta_graph, 7)
    if not objects:  # TensorFlow would run nodes outside of functions
        raise GraphError("it holds no objects")
    graphs = [_parse(graph) for graph in _take(meta_graph, 2)]
    functions = [function for graph in graphs for library in _take(graph, 2) for function in _take(_parse(library), 1)]
    names = [_name_function(function) for function in functions]
    found = {op for graph in graphs for node in _take(graph, 1) for op in _list_ops(node)}
    for function, name in zip(functions, names, strict=True):
        ops = {op for node in _take(_parse(function), 3) for op in _list_ops(node)}
        if _SAVER.fullmatch(name):
            mention = re.compile(re.escape(name.encode()))
            if not any(mention.search(other) for other in (*objects, *functions) if other is not function):
                ops -= _SAVING
        found |= ops
    return sorted(op for op in found - _COMPUTING if not (op.startswith(_FUNCTION) and op in names))


def _name_function(function: memoryview) -> str:
    """Return the name of a FunctionDef: `signature.name`, of which the last counts."""
    names = [name for signature in _take(_parse(function), 1) for name in _take(_parse(signature), 1)]
    return _decode(names[-1]) if names else ""


def _list_ops(node: memoryview) -> list[str]:
    """Return the operation of a NodeDef, or all that it names."""
    return [_decode(op) for op in _take(_parse(node), 2)]


def _decode(text: memoryview) -> str:
    return bytes(text).decode("utf-8", "backslashreplace")


def _take(fields: _Fields, number: int) -> list[memoryview]:
    return [content for each, content in fields if each == number]


def _parse(message: memoryview) -> _Fields:
    """Return the fields of a message that are strings or messages.

    Raises:
        GraphError: it is cut short, or not encoded as TensorFlow does.
    """
    fields: _Fields = []
    position, end = 0, len(message)
    while position < end:
        tag, position = _read_varint(message, position)
        kind, number = tag & 7, tag >> 3
        if kind == 0:
            _, position = _read_varint(message, position)
        elif kind == 1:
            position += 8
        elif kind == 5:
            position += 4
        elif kind == 2:
            length, position = _read_varint(message, position)
            fields.append((number, message[position : position + length]))
            position += length
        else:
            raise GraphError("it is not a protocol buffer as TensorFlow writes it")
        if position > end or number >> 29:
            raise GraphError("it is cut short or damaged")
    return fields


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return an integer of at most 64 bits, and the position behind it."""
    value = 0
    for index, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise GraphError("it is cut short or damaged")
