import json

import pytest

from tests.model.data import CONFIG, make_graph, make_keras_file, make_network
from tlray.model.safety import find_threats


def find(tmp_path, keras_file=None, graph=None):
    if keras_file is not None:
        (tmp_path / "model.keras").write_bytes(keras_file)
    if graph is not None:
        (tmp_path / "saved_model").mkdir()
        (tmp_path / "saved_model" / "saved_model.pb").write_bytes(graph)
    return list(find_threats(tmp_path))


def test_plain_layers_and_a_plain_graph_are_safe(tmp_path):
    assert find(tmp_path, make_keras_file(model_weights_h5=b"weights"), make_graph()) == []


def test_a_folder_without_model_files_holds_no_threat(tmp_path):
    assert find(tmp_path) == []


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ({"class_name": "Lambda", "module": "keras.layers"}, "keras.layers.Lambda"),
        ({"class_name": "__lambda__", "config": {}}, "__lambda__"),
        ({"class_name": "function", "module": "builtins"}, "builtins.function"),
        ({"class_name": "function", "module": "keras.activations"}, "keras.activations.function"),
        ({"class_name": "TFSMLayer", "module": "keras.layers"}, "keras.layers.TFSMLayer"),
        ({"class_name": "TorchModuleWrapper", "module": "keras.layers"}, "keras.layers.TorchModuleWrapper"),
        ({"class_name": "Mine", "module": "my_package.layers"}, "my_package.layers.Mine"),
        ({"class_name": "Dense", "module": "keras.layersx"}, "keras.layersx.Dense"),
        ({"class_name": "Dense"}, "Dense"),
        ({"class_name": "StringLookup", "module": "keras.layers"}, "keras.layers.StringLookup"),
        ({"class_name": "JVP", "module": "keras.src.ops.linalg"}, "keras.src.ops.linalg.JVP"),
        ({"class_name": "Map", "module": "keras.src.ops.core"}, "keras.src.ops.core.Map"),
        ({"class_name": "get_file", "module": "keras.src.applications.vgg16"}, "keras.src.applications.vgg16.get_file"),
        ({"class_name": "Functional", "module": "keras.utils"}, "keras.utils.Functional"),
        ({"class_name": "system", "module": "os"}, "os.system"),
    ],
)
@pytest.mark.parametrize("depth", [0, 3])
def test_foreign_names_are_found_at_any_depth(tmp_path, node, name, depth):
    for _ in range(depth):
        node = {"config": [{"activation": node}]}
    config = {**CONFIG, "extra": node}
    assert find(tmp_path, make_keras_file(config)) == [
        f"model.keras holds {name}, which is none of Keras's own layers and functions for images"
    ]


def test_each_foreign_name_is_reported_once_in_order(tmp_path):
    nodes = [{"class_name": name, "module": "m"} for name in ("B", "A", "B")]
    assert [text.split()[2] for text in find(tmp_path, make_keras_file(nodes))] == ["m.A,", "m.B,"]


def test_the_tensors_of_a_functional_model_are_safe(tmp_path):
    assert find(tmp_path, make_keras_file([{"class_name": "__keras_tensor__", "config": {}}])) == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("keras.src.applications.convnext", "LayerScale"), ("keras.src.ops.numpy", "Add"), ("keras", "DTypePolicy"),
        ("keras.layers", "MultiHeadAttention"), ("keras.src.ops.core", "Cast"), ("keras.initializers", "GlorotUniform"),
        ("keras.losses", "Huber"),
    ],
)  # fmt: skip
def test_layers_and_functions_of_images_are_safe(tmp_path, module, name):
    assert find(tmp_path, make_keras_file({**CONFIG, "extra": {"class_name": name, "module": module}})) == []


def test_the_losses_that_a_model_was_compiled_with_are_not_looked_at(tmp_path):
    mine = {"class_name": "function", "module": "builtins", "config": "mine"}
    assert find(tmp_path, make_keras_file({**CONFIG, "compile_config": {"loss": mine}})) == []


def test_another_file_in_the_archive_is_a_threat(tmp_path):
    assert find(tmp_path, make_keras_file(evil_py="import os")) == [
        "model.keras holds 'evil.py', which no Keras model does"
    ]


def test_a_large_config_is_not_parsed(tmp_path):
    padded = json.dumps({"class_name": "Lambda"}) + " " * 16 * 2**20
    assert find(tmp_path, make_keras_file(padded)) == ["model.keras holds a config.json that is too large"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04pickle",
        make_keras_file("{"),
        make_keras_file("[" * 100_000),
        make_keras_file()[:-30],
        make_keras_file().replace(b"config.json", b"config.jsom"),
        make_keras_file().replace(b"Functional", b"Functionol"),
    ],
    ids=["empty", "pickle", "no JSON", "deep lists", "cut off", "no config", "changed byte"],
)
def test_anything_but_a_whole_archive_is_refused(tmp_path, data):
    assert "model.keras is not a Keras 3 archive" in find(tmp_path, data)


@pytest.mark.parametrize("name", ["model.py", "saved_model.pbtxt", "saved_model.cpb", "assets/words.txt", "a/b"])
def test_another_file_beside_the_graph_is_a_threat(tmp_path, name):
    (tmp_path / "saved_model" / name).parent.mkdir(parents=True)
    (tmp_path / "saved_model" / name).write_bytes(b"")
    assert list(find_threats(tmp_path)) == [f"saved_model holds {name!r}, which is no part of a graph"]


def test_the_files_of_a_graph_are_safe(tmp_path):
    for name in ("fingerprint.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
        (tmp_path / "saved_model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "saved_model" / name).write_bytes(b"")
    assert find(tmp_path) == []


def test_operations_that_do_more_than_compute_are_named(tmp_path):
    graph = make_graph(["Conv2D", "WriteFile"], {"__inference_serve_1": ["ReadFile", "Relu"]})
    assert find(tmp_path, graph=graph) == [
        "saved_model holds ReadFile, WriteFile, which no layer of Keras for images needs"
    ]


def test_the_files_of_a_network_are_safe_and_no_others(tmp_path):
    folder = tmp_path / "openvino"
    folder.mkdir()
    for name in ("model.bin", "ood_score.npz"):
        (folder / name).write_bytes(b"1234")
    (folder / "model.xml").write_bytes(make_network(["Convolution"]))
    assert list(find_threats(tmp_path)) == []
    (folder / "model.so").write_bytes(b"")
    assert list(find_threats(tmp_path)) == ["openvino holds 'model.so', which is no part of a network"]


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (make_network(["Assign"]), "openvino holds Assign, which no layer of Keras for images needs"),
        (b"<net>", "openvino holds no network (it is cut short or damaged)"),
        (
            make_network(["Const"]).replace(b"<data/>", b'<data offset="0" size="5"/>'),
            "openvino holds no network (a constant lies outside of its weights)",
        ),
    ],
)
def test_a_network_that_does_more_than_compute_is_a_threat(tmp_path, network, told):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "model.bin").write_bytes(b"1234")
    (tmp_path / "openvino" / "model.xml").write_bytes(network)
    assert list(find_threats(tmp_path)) == [told]


def test_a_damaged_graph_is_a_threat(tmp_path):
    assert find(tmp_path, graph=make_graph()[:-5]) == [
        "saved_model holds no graph of TensorFlow 2 (it is cut short or damaged)"
    ]
