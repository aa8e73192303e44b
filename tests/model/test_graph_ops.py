import pytest

from tests.model.data import encode_field, encode_nodes, make_graph
from tlray.model.graph_ops import GraphError, find_foreign_ops

SAVE = "__inference__traced_save_12"
SAVING = ("StringJoin", "ShardedFilename", "SaveV2", "MergeV2Checkpoints", "Identity")


@pytest.mark.parametrize(
    "name",
    [
        "PyFunc", "EagerPyFunc", "PyFuncStateless", "ReadFile", "WriteFile", "WholeFileReaderV2", "LMDBReader",
        "SaveV2", "CacheDataset", "SqlDataset", "DebugNanCount", "DebugIdentityV3", "RemoteCall", "PrintV2",
        "MatchingFiles", "SymbolicGradient", "XlaLaunchV2", "LoadDataset", "VarHandleOp", "conv2d", "Conv2D ",
        "__inference_other_1",
    ],
)  # fmt: skip
def test_an_operation_that_is_not_known_is_found_wherever_it_stands(name):
    assert find_foreign_ops(make_graph([name])) == [name]
    assert find_foreign_ops(make_graph(functions={"__inference_serve_1": ["Relu", name]})) == [name]


def test_operations_that_compute_and_calls_of_functions_are_known():
    graph = make_graph(["NoOp", "__inference_serve_1"], {"__inference_serve_1": ["Const", "FusedBatchNormV3"]})
    assert find_foreign_ops(graph) == []


def test_a_function_cannot_lend_its_name_to_an_operation():
    assert find_foreign_ops(make_graph(["ReadFile"], {"ReadFile": ["Relu"]})) == ["ReadFile"]


def test_all_are_named_once_in_order():
    assert find_foreign_ops(make_graph(["B", "A", "B"], {"__inference_f_1": ["C"]})) == ["A", "B", "C"]


def test_saving_functions_that_nothing_calls_may_save():
    assert find_foreign_ops(make_graph(["StatefulPartitionedCall"], {SAVE: SAVING})) == []


@pytest.mark.parametrize(
    "graph",
    [
        make_graph(functions={SAVE: SAVING, "__inference_serve_1": [SAVE]}),
        make_graph(functions={SAVE: SAVING}, objects=f"signature {SAVE}"),
        make_graph(functions={"__inference_saving_12": SAVING}),
        make_graph(SAVING, {}),
    ],
    ids=["called", "a signature", "another name", "outside of functions"],
)
def test_others_may_not_save(graph):
    assert find_foreign_ops(graph) == ["MergeV2Checkpoints", "SaveV2", "ShardedFilename", "StringJoin"]


def test_a_saving_function_may_only_save():
    assert find_foreign_ops(make_graph(functions={SAVE: [*SAVING, "WriteFile"]})) == ["WriteFile"]


def test_a_node_with_two_operations_counts_with_both():
    node = encode_field(1, encode_field(2, "WriteFile"), encode_field(2, "Relu"))
    assert find_foreign_ops(encode_field(2, encode_field(2, node), encode_field(7, "o"))) == ["WriteFile"]


def test_a_graph_in_pieces_is_read_whole():
    pieces = [encode_field(2, encode_nodes(1, [name])) for name in ("Relu", "WriteFile")]
    assert find_foreign_ops(encode_field(2, *pieces, encode_field(7, "o"))) == ["WriteFile"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it holds 0 graphs"),
        (make_graph() * 2, "it holds 2 graphs"),
        (make_graph(objects=""), "it holds no objects"),
        (make_graph()[:-3], "cut short"),
        (b"\x13\x12\x00\x14", "not a protocol buffer"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "cut short"),
        (b"\xff", "cut short"),
        (b"\xfa\xff\xff\xff\xff\x01\x00", "damaged"),
    ],
)
def test_what_tensorflow_2_does_not_write_is_refused(data, reason):
    with pytest.raises(GraphError, match=reason):
        find_foreign_ops(data)
