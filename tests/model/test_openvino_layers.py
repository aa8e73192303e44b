import pytest

from tests.model.data import make_network
from tlray.model.graph_ops import GraphError
from tlray.model.openvino_layers import find_foreign_layers


def test_layers_that_compute_are_known():
    assert find_foreign_layers(make_network(["Parameter", "Convolution", "ReLU", "Result"]), 0) == []


def test_layers_that_keep_a_state_or_are_of_an_extension_are_named():
    network = make_network(["Convolution", "ReadValue", ("FFTW", "extension"), ("Add", "extension")])
    assert find_foreign_layers(network, 0) == ["ReadValue", "extension.Add", "extension.FFTW"]


def test_layers_inside_of_others_are_looked_at():
    inner = make_network(["Assign"]).replace(b"net>", b"body>")
    assert find_foreign_layers(make_network(["If"]).replace(b"</net>", inner + b"</net>"), 0) == ["Assign"]


@pytest.mark.parametrize(
    ("place", "fits"),
    [
        ('offset="0" size="32"', True),
        ('offset="4" size="32"', False),
        ('offset="-4" size="4"', False),
        ('offset="4" size="-4"', False),
        ('offset="4"', False),
        ('offset="x" size="4"', False),
        ("", False),
    ],
)
def test_constants_lie_within_the_weights(place, fits):
    network = make_network(["Const"]).replace(b"<data/>", f"<data {place}/>".encode())
    if fits:
        assert find_foreign_layers(network, 32) == []
    else:
        with pytest.raises(GraphError, match="a constant"):
            find_foreign_layers(network, 32)


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (b"", "cut short"),
        (make_network(["Add"])[:-5], "cut short"),
        (b"<net/>", "no layers"),
        (make_network(["Add"]).replace(b"net", b"nut"), "no layers"),
        (b'<!DOCTYPE net [<!ENTITY a "aaaa">]>' + make_network(["Add"]), "no plain XML"),
    ],
)
def test_what_is_no_network_is_refused(network, told):
    with pytest.raises(GraphError, match=told):
        find_foreign_layers(network, 0)
