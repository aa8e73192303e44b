import os

import numpy as np
import pytest

from tlray.config import ImportConfig
from tlray.errors import ConfigError, WeightsError
from tlray.importer.files import load_model
from tlray.importer.network import draw_images, wrap
from tlray.model.safety import find_threats

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
# Keras saves weights by a call that NumPy will drop
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZE = 16
PIXELS = np.stack([pixels for _, _, pixels in draw_images(SIZE)])


def make_config(**options):
    return ImportConfig(model="m.keras", classes="c", output="o", **options)


def make_body(spread=0.01):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    initializer = keras.initializers.RandomNormal(stddev=spread)
    hidden = keras.layers.Conv2D(8, 3, strides=2, activation="relu", kernel_initializer=initializer)(inputs)
    return inputs, keras.layers.GlobalAveragePooling2D()(hidden)


def make_model(end, outputs=2):
    """A network whose end is put on by `end(features)`."""
    inputs, features = make_body()
    return keras.Model(inputs, end(features, outputs))


def dense(activation=None):
    return lambda features, outputs: keras.layers.Dense(outputs, activation=activation)(features)


def nested(activation):
    def end(features, outputs):
        head = keras.Sequential([keras.Input(features.shape[1:]), keras.layers.Dense(outputs, activation=activation)])
        return head(features)

    return end


def layer(activation):
    return lambda features, outputs: keras.layers.Activation(activation)(keras.layers.Dense(outputs)(features))


def operation(name):
    return lambda features, outputs: getattr(keras.ops, name)(keras.layers.Dense(outputs)(features))


def cast(activation):
    return lambda features, outputs: keras.layers.Activation("linear", dtype="float32")(
        nested(activation)(features, outputs)
    )


def run(network):
    """Probabilities of the wrapped network at temperature 1."""
    return network.scale(1.0)(PIXELS.astype(np.float32)).numpy()


@pytest.mark.parametrize("end", [dense("softmax"), nested("softmax"), layer("softmax"), operation("softmax")])
def test_a_softmax_in_any_dress_stays(end):
    model = make_model(end, 3)
    expected = model(PIXELS.astype(np.float32)).numpy()
    network = wrap(model, SIZE, make_config(), ["a", "b", "c"])
    np.testing.assert_allclose(run(network), expected, atol=1e-5)


def test_logits_get_a_softmax():
    model = make_model(dense(), 3)
    expected = keras.ops.softmax(model(PIXELS.astype(np.float32))).numpy()
    np.testing.assert_allclose(run(wrap(model, SIZE, make_config(), list("abc"))), expected, atol=1e-5)


@pytest.mark.parametrize(
    "end",
    [dense("sigmoid"), nested("sigmoid"), layer("sigmoid"), operation("sigmoid"), cast("sigmoid")],
    ids=["dense", "nested", "layer", "operation", "cast"],
)
def test_sigmoids_of_several_outputs_are_refused(end):
    with pytest.raises(WeightsError, match="must end in a softmax or give logits; its outputs"):
        wrap(make_model(end), SIZE, make_config(), ["a", "b"])


@pytest.mark.parametrize(
    ("end", "sigmoid"),
    [(dense("sigmoid"), False), (nested("sigmoid"), False), (layer("sigmoid"), False), (dense(), True)],
)
def test_one_output_becomes_two_classes(end, sigmoid):
    model = make_model(end, 1)
    second = model(PIXELS.astype(np.float32)).numpy()[:, 0]
    second = 1 / (1 + np.exp(-second)) if sigmoid else second
    network = wrap(model, SIZE, make_config(), ["cat", "dog"])
    np.testing.assert_allclose(run(network), np.stack([1 - second, second], axis=1), atol=1e-5)
    assert network.logits is not None


def test_the_number_of_names_must_be_that_of_the_outputs():
    with pytest.raises(ConfigError, match="as many names as the model has outputs, 3; got 2"):
        wrap(make_model(dense(), 3), SIZE, make_config(), ["a", "b"])
    with pytest.raises(ConfigError, match="as many names as the model has outputs, 1; got 3"):
        wrap(make_model(dense(), 1), SIZE, make_config(), ["a", "b", "c"])


@pytest.mark.parametrize("name", ["caffe", "torch", "tf"])
def test_preprocessing_is_that_of_keras_applications(name):
    from keras.src.applications.imagenet_utils import preprocess_input

    model = make_model(dense("softmax"), 3)
    expected = model(preprocess_input(PIXELS.astype(np.float32).copy(), mode=name)).numpy()
    network = wrap(model, SIZE, make_config(preprocessing=name), list("abc"))
    np.testing.assert_allclose(run(network), expected, atol=1e-4)


def test_preprocessing_has_no_scale_of_ones_own():
    with pytest.raises(ConfigError, match="--preprocessing caffe takes no --scale and --offset"):
        make_config(preprocessing="caffe", scale=0.5).check()


def test_what_is_preprocessed_inside_is_safe_to_keep(tmp_path):
    inputs = keras.Input((SIZE, SIZE, 3))
    turned = keras.applications.vgg16.preprocess_input(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(turned)))
    wrap(model, SIZE, make_config(), ["a", "b"]).scale(1.0).save(tmp_path / "model.keras")
    assert list(find_threats(tmp_path)) == []


def test_features_are_what_enters_the_last_dense_layer():
    network = wrap(make_model(dense("softmax"), 3), SIZE, make_config(), list("abc"))
    probabilities, features = network.run(PIXELS)
    assert (probabilities.shape, features.shape) == ((16, 3), (16, 8))


def save(tmp_path, model):
    model.save(tmp_path / "m.keras")
    return (tmp_path / "m.keras").read_bytes()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((SIZE, SIZE, 1), r"must take RGB images .*keras\.layers\.Concatenate of three copies"),
        ((SIZE, SIZE + 8, 3), "must take square images .* it takes 16 x 24 pixels"),
    ],
)
def test_other_inputs_are_named(tmp_path, shape, expected):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    with pytest.raises(WeightsError, match=expected):
        load_model("theirs.keras", save(tmp_path, model))


def test_two_outputs_are_named(tmp_path):
    inputs, features = make_body()
    model = keras.Model(inputs, [keras.layers.Dense(2)(features), features])
    with pytest.raises(WeightsError, match="it takes 1 and gives 2"):
        load_model("theirs.keras", save(tmp_path, model))
