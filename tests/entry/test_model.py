"""What needs TensorFlow but no Ray."""

import io

import h5py
import numpy as np
import pytest

from tlray.backbones import BACKBONES, BASE, INPUT
from tlray.errors import WeightsError

SIZES = {"inception_v3": 75, "mobilenet_v2": 64}


@pytest.fixture(autouse=True)
def _quiet_keras(recwarn):
    """Keras and TensorFlow warn about themselves."""


@pytest.mark.parametrize("backbone", BACKBONES)
def test_boundaries_are_layers_that_the_whole_network_passes(backbone):
    entry = BACKBONES[backbone]
    base = entry.build(SIZES[backbone])
    order = {layer.name: position for position, layer in enumerate(base.layers)}
    assert entry.default_boundary in entry.boundaries
    for boundary in entry.boundaries:
        if boundary == INPUT:
            assert entry.list_open_layers(base, boundary) == base.layers
            continue
        position = order[boundary]
        for layer in entry.list_open_layers(base, boundary):
            for tensor in layer.input if isinstance(layer.input, list) else [layer.input]:
                source = tensor._keras_history.operation.name
                assert order[source] >= position, (boundary, layer.name, source)


@pytest.mark.parametrize(("phase", "moves"), [("head", False), ("finetune", True)])
def test_a_phase_trains_what_it_should(phase, moves):
    from tlray.model import build_model, open_phase

    model = build_model("mobilenet_v2", 64, (8,), 3)
    open_phase(model, phase, "mobilenet_v2", "block_14_add", train_batchnorm=False)
    base = model.get_layer(BASE)
    trained = {layer.name for layer in base.layers if layer.trainable_variables}
    expected = {"block_15_expand", "block_15_depthwise", "block_15_project", "block_16_expand", "block_16_depthwise"}
    assert trained == (expected | {"block_16_project", "Conv_1"} if moves else set())
    assert len(model.get_layer("dense_0").trainable_variables) == 2


def test_the_warp_equals_keras_apply_affine_transform():
    from keras.src.legacy.preprocessing.image import apply_affine_transform

    from tlray.augment import compose_transform, warp

    image = np.random.default_rng(0).uniform(0, 255, (61, 61, 3)).astype(np.float32)
    for shear, zx, zy, flip in [(10, 0.8, 1.2, False), (-7, 1.1, 0.9, True), (0, 1.3, 0.7, False), (5, 1, 1, True)]:
        expected = apply_affine_transform(
            image, shear=shear, zx=zx, zy=zy, row_axis=0, col_axis=1, channel_axis=2, fill_mode="nearest"
        )
        expected = expected[:, ::-1] if flip else expected
        transform = compose_transform(61, shear_deg=shear, zoom_columns=zx, zoom_rows=zy, flip=flip)
        np.testing.assert_allclose(warp(image[None], transform[None])[0], expected, atol=0.02)


def test_weights_of_both_layouts_load_and_others_are_refused(test_data):
    from tlray.model import build_model

    weights = test_data / "weights"
    inception = (weights / "inception_v3_notop.weights.h5").read_bytes()
    mobilenet = (weights / "mobilenet_v2_notop.h5").read_bytes()
    with h5py.File(io.BytesIO(mobilenet)) as file:
        found: list[h5py.Dataset] = []
        file["Conv1"].visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
        stored = found[0][()]
    model = build_model("mobilenet_v2", 64, (8,), 3, base_weights=mobilenet)
    np.testing.assert_array_equal(model.get_layer(BASE).get_layer("Conv1").get_weights()[0], stored)
    build_model("inception_v3", 75, (8,), 3, base_weights=inception)
    with pytest.raises(WeightsError, match="not of a mobilenet_v2"):
        build_model("mobilenet_v2", 64, (8,), 3, base_weights=inception)
    with pytest.raises(WeightsError, match="not of a inception_v3"):
        build_model("inception_v3", 75, (8,), 3, base_weights=mobilenet)
