"""What needs TensorFlow but no Ray."""

import io
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from tlray.errors import StoppedError, WeightsError
from tlray.model.backbones import BACKBONES, INPUT, read_walks

SIZES = {"inception_v3": 75, "mobilenet_v2": 64, "efficientnet_v2_b0": 64, "resnet50_v2": 64}


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


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_base_is_what_its_walk_says(backbone):
    from tlray.model.walk import walk

    entry = BACKBONES[backbone]
    assert walk(entry) == read_walks()[entry.keras_name]


def test_boundaries_are_the_last_layers_before_further_convolutions():
    """A chain, a residual block whose inside no path may skip, and a layer that Keras numbers."""
    import keras

    from tlray.model.walk import find_boundaries

    def build():
        inputs = keras.Input((8, 8, 3))
        stem = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="stem")(inputs)
        relu = keras.layers.ReLU(name="stem_relu")(stem)
        padded = keras.layers.ZeroPadding2D(name="padded")(relu)
        relu = keras.layers.Conv2D(4, 3, name="second")(padded)
        inner = keras.layers.DepthwiseConv2D(3, padding="same", name="inner")(relu)
        inner = keras.layers.Conv2D(4, 1, name="inner_project")(inner)
        added = keras.layers.Add(name="added")([relu, inner])
        numbered = keras.layers.Conv2D(5, 1)(added)
        return keras.Model(inputs, keras.layers.Conv2D(6, 1, name="last")(numbered))

    costs = np.cumsum([16 * 27 * 4, 16 * 36 * 4, 16 * (9 * 4 + 16), 16 * 20, 16 * 30])
    found = find_boundaries(build(), build())
    assert list(found) == [INPUT, "stem_relu", "second", "added", "last"]
    assert [cut.frozen_share for cut in found.values()] == [0.0, *np.round(costs[[0, 1, 2, 4]] / costs[-1], 3)]
    assert (found["added"].side_px, found["added"].channels) == (4, 4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_base_is_the_same_whole_and_split_and_is_exported(backbone, tmp_path):
    import keras

    from tlray.model.network import POOL, Network, assemble_model, build_base, build_head, build_tail, cut_tail
    from tlray.model.safety import find_threats
    from tlray.model.serving import freeze_classifier, save_for_serving

    entry, side = BACKBONES[backbone], SIZES[backbone]
    base, head = build_base(backbone, side, weights=None, seed=0), build_head(backbone, (), 3, seed=0)
    tail = cut_tail(base, entry.default_boundary)
    network = Network(backbone, "activations", build_tail(tail), tail.positions, head, train_batchnorm=False)
    network.assign_weights(tail.weights)
    network.open_base(entry.default_boundary)
    model = assemble_model(backbone, base, head)
    pixels = np.random.default_rng(0).integers(0, 255, (2, side, side, 3), np.uint8)
    front = keras.Model(base.input, base.get_layer(entry.default_boundary).output)
    activations = front(pixels * entry.scale + entry.offset, training=False)
    whole = model(pixels.astype(np.float32), training=False).numpy()
    split = keras.ops.softmax(network.call(activations, training=True)).numpy()
    np.testing.assert_allclose(split, whole, atol=1e-5)
    assert 0 < len(network.trainable_variables) < len(base.trainable_variables)
    frozen = freeze_classifier(model, model.get_layer(POOL).output, side, None)
    save_for_serving(frozen, tmp_path / "saved_model")
    model.save(tmp_path / "model.keras")
    assert list(find_threats(tmp_path)) == []


@pytest.mark.parametrize("boundary", [None, "block_14_add"])
def test_a_phase_trains_what_it_should(boundary):
    network = make_network("pixels")
    network.open_base(boundary)
    trained = {layer.name for layer in network.base.layers if layer.trainable_variables}
    expected = {"block_15_expand", "block_15_depthwise", "block_15_project", "block_16_expand", "block_16_depthwise"}
    assert trained == (expected | {"block_16_project", "Conv_1"} if boundary else set())
    assert len(network.trainable_variables) == 4 + len(trained)


def make_network(entrance, boundary="block_14_add", *, train_batchnorm=False):
    from tlray.model.network import Network, build_base, build_head, build_tail, cut_tail, find_positions

    base = build_base("mobilenet_v2", 64, weights=None, seed=1, train_batchnorm=train_batchnorm)
    positions = find_positions(base)
    tail = None
    if entrance == "activations":
        tail = cut_tail(base, boundary)
        base, positions = build_tail(tail, train_batchnorm=train_batchnorm), tail.positions
    elif entrance == "pooled":
        base, positions = None, {}
    head = build_head("mobilenet_v2", (8,), 3, seed=1)
    network = Network("mobilenet_v2", entrance, base, positions, head, train_batchnorm=train_batchnorm)
    if tail is not None:
        network.assign_weights(tail.weights)
    return network


def test_the_network_answers_the_same_from_every_entrance():
    import keras

    from tlray.model.network import assemble_model

    whole = make_network("pixels")
    middle = whole.base.get_layer("block_14_add").output
    parts = keras.Model(whole.base.input, [middle, whole.base.output])
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.float32)
    activations, features = (value.numpy() for value in parts(pixels / 127.5 - 1, training=False))
    inputs = {"pixels": pixels, "activations": activations, "pooled": features.mean(axis=(1, 2))}
    expected = assemble_model("mobilenet_v2", whole.base, whole.head)(pixels).numpy()
    for entrance, values in inputs.items():
        answer = keras.ops.softmax(make_network(entrance).call(values, training=False))
        np.testing.assert_allclose(answer, expected, atol=1e-6, err_msg=entrance)


@pytest.mark.parametrize("entrance", ["pixels", "activations"])
def test_batchnorm_uses_its_statistics_unless_it_is_trained(entrance):
    """In a training step too: the saved model has these statistics."""
    shape = (4, 64, 64, 3) if entrance == "pixels" else (4, 2, 2, 160)
    inputs = np.random.default_rng(0).uniform(0, 200, shape).astype(np.float32)
    for train_batchnorm in (False, True):
        network = make_network(entrance, train_batchnorm=train_batchnorm)
        network.open_base("block_14_add")
        served = network.embed(inputs, training=False).numpy()
        trained = network.embed(inputs, training=True).numpy()
        difference = np.abs(trained - served).max() / np.abs(served).max()
        assert difference > 0.1 if train_batchnorm else difference == 0


def test_the_saved_model_divides_its_logits_by_the_temperature():
    import keras

    from tlray.training.export import _assemble

    network = make_network("pixels")
    for layer in network.head:
        layer.bias.assign(np.linspace(-3, 3, layer.units))
    task = SimpleNamespace(
        backbone="mobilenet_v2", image_size_px=64, head_units=(8,), classes=("a", "b", "c"), seed=1, base_weights=None
    )
    model = _assemble(task, network.read_weights(opened_only=False), temperature=2.5)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.float32)
    logits = network.call(pixels, training=False)
    np.testing.assert_allclose(model(pixels), keras.ops.softmax(logits / 2.5), atol=1e-6)
    assert np.abs(model(pixels) - keras.ops.softmax(logits)).max() > 0.05


def test_weights_have_the_same_names_whichever_part_is_built():
    whole, tail = make_network("pixels"), make_network("activations")
    for network in (whole, tail):
        network.open_base("block_14_add")
    a, b = (network.read_weights(opened_only=True) for network in (whole, tail))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_builder_leaves_the_process_as_it_was(tmp_path):
    """A worker trains in the process in which it has computed features in bfloat16."""
    import keras
    import tensorflow as tf

    from tests.features.data import make_frozen, plan_views
    from tlray.features.build import NO_WORK, ShardBuilder
    from tlray.model.precision import has_bfloat16, is_bfloat16_refused

    if not has_bfloat16() or is_bfloat16_refused():
        pytest.skip("this CPU, or oneDNN's limit for it, has no bfloat16")
    cache = plan_views(tmp_path, 1, train=8, frozen=make_frozen(precision="bfloat16"))
    builder = ShardBuilder(cache, [], [], on_gpu=False)
    assert tf.config.optimizer.get_experimental_options()["auto_mixed_precision_onednn_bfloat16"]
    assert builder.build(NO_WORK).images == 0
    builder.close()
    assert not tf.config.optimizer.get_experimental_options()["auto_mixed_precision_onednn_bfloat16"]
    assert keras.layers.Dense(1).name == "dense"
    assert keras.config.dtype_policy().name == "float32"


def test_a_frozen_graph_answers_like_the_model():
    import tensorflow as tf

    from tlray.model.serving import freeze

    network = make_network("pixels")
    spec = tf.TensorSpec((None, 64, 64, 3), tf.float32)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.float32)
    expected = network.call(pixels, training=False).numpy()
    variables = [*network.base.variables, *(variable for layer in network.head for variable in layer.variables)]
    frozen = freeze(lambda images: network.call(images, training=False), variables, spec)
    for variable in variables:
        variable.assign(np.zeros(variable.shape))
    np.testing.assert_allclose(frozen(tf.constant(pixels)), expected, atol=1e-5)


def test_dropout_masks_multiply_what_the_dense_layers_give():
    network = make_network("pooled")
    features = np.random.default_rng(0).uniform(0, 1, (4, 1280)).astype(np.float32)
    nothing = network.call(features, training=True, masks=np.zeros((4, 8), np.float32)).numpy()
    np.testing.assert_allclose(nothing, np.zeros((4, 3)), atol=1e-6)
    ones = network.call(features, training=True, masks=np.ones((4, 8), np.float32)).numpy()
    np.testing.assert_array_equal(ones, network.call(features, training=True).numpy())


def test_the_loss_is_kerass_own_with_label_smoothing():
    import keras
    import tensorflow as tf

    from tlray.training.steps import _cross_entropy

    values = np.random.default_rng(0).normal(0, 3, (7, 5)).astype(np.float32)
    values[:2] *= 30  # as sure as can be, one of them wrongly: from its probability no gradient would come
    labels = np.array([values[0].argmax(), values[1].argmin(), 0, 1, 2, 3, 4], np.int32)
    logits = tf.Variable(values)
    for smoothing in (0.0, 0.2):
        with tf.GradientTape(persistent=True) as tape:
            ours = _cross_entropy(labels, logits, smoothing)
            targets = np.eye(5, dtype=np.float32)[labels]
            theirs = keras.losses.categorical_crossentropy(targets, logits, from_logits=True, label_smoothing=smoothing)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
        gradient = tape.gradient(ours, logits).numpy()
        np.testing.assert_allclose(gradient, tape.gradient(theirs, logits), atol=1e-6)
        assert np.abs(gradient[1]).max() > 0.7


def test_the_warp_equals_keras_apply_affine_transform():
    from keras.src.legacy.preprocessing.image import apply_affine_transform

    from tlray.images.augment import compose_transform, warp

    image = np.random.default_rng(0).uniform(0, 255, (61, 61, 3)).astype(np.float32)
    for shear, zx, zy, flip in [(10, 0.8, 1.2, False), (-7, 1.1, 0.9, True), (0, 1.3, 0.7, False), (5, 1, 1, True)]:
        expected = apply_affine_transform(
            image, shear=shear, zx=zx, zy=zy, row_axis=0, col_axis=1, channel_axis=2, fill_mode="nearest"
        )
        expected = expected[:, ::-1] if flip else expected
        transform = compose_transform(61, shear_deg=shear, zoom_columns=zx, zoom_rows=zy, flip=flip)
        np.testing.assert_allclose(warp(image[None], transform[None])[0], expected, atol=0.02)


def test_weights_of_both_layouts_load_and_others_are_refused(test_data):
    from tlray.model.network import build_base

    weights = test_data / "weights"
    inception = (weights / "inception_v3_notop.weights.h5").read_bytes()
    mobilenet = (weights / "mobilenet_v2_notop.h5").read_bytes()
    with h5py.File(io.BytesIO(mobilenet)) as file:
        found: list[h5py.Dataset] = []
        file["Conv1"].visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
        stored = found[0][()]
    base = build_base("mobilenet_v2", 64, weights=mobilenet, seed=0)
    np.testing.assert_array_equal(base.get_layer("Conv1").get_weights()[0], stored)
    build_base("inception_v3", 75, weights=inception, seed=0)
    with pytest.raises(WeightsError, match="not of a mobilenet_v2"):
        build_base("mobilenet_v2", 64, weights=inception, seed=0)
    with pytest.raises(WeightsError, match="not of a inception_v3"):
        build_base("inception_v3", 75, weights=mobilenet, seed=0)


def test_an_engine_that_moves_a_golden_answer_is_not_used(bundle, monkeypatch):
    """The answers are set here: what a bundle trained on another CPU would answer in bfloat16, nobody knows."""
    import tlray
    from tlray.model import engine
    from tlray.model.engines.openvino_engine import OpenVinoEngine
    from tlray.model.engines.tensorflow_engine import TensorFlowEngine

    opened = tlray.load_bundle(str(bundle))
    expected = np.stack([image.probabilities for image in opened.load_golden()])
    moves = {"float32": 0.0, "bfloat16": 0.05}

    for kind in (OpenVinoEngine, TensorFlowEngine):
        monkeypatch.setattr(kind, "predict_golden", lambda self, pixels: expected + moves[self.form.precision])
    monkeypatch.setattr(engine, "detect_fastest", lambda *, gpus: "bfloat16")
    chosen = engine.open_engine(opened, 4, num_threads=1)
    assert chosen.form.precision == "float32"
    assert "bfloat16: a golden probability moves by 0.05, 0.02 are allowed" in chosen.form.note
    with pytest.raises(StoppedError, match="give another --precision"):
        engine.open_engine(opened, 4, precision="bfloat16")
    with pytest.raises(StoppedError, match="takes auto or bfloat16 or float32 on this CPU; got float16"):
        engine.open_engine(opened, 4, precision="float16")
    moves["bfloat16"] = 0.01
    assert str(engine.open_engine(opened, 4, num_threads=1).form) == "bfloat16, OpenVINO on 1 thread"
    moves["float32"] = 0.003
    with pytest.raises(StoppedError, match="float32: a golden probability moves by"):
        engine.open_engine(opened, 4, precision="float32")
    assert engine.find_golden_fault(opened.load_golden(), expected, 1e-6) is None
    assert "nan" in engine.find_golden_fault(opened.load_golden(), expected * np.nan, 1e-6)
    assert "label" in engine.find_golden_fault(opened.load_golden(), np.roll(expected, 1, axis=1), 2.0)


def test_the_graph_scores_as_the_arrays_do():
    """Classes of unequal size, one of them without images."""
    import keras

    from tlray.metrics.ood import fit_ood_score
    from tlray.model.serving import freeze_classifier

    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (60, 4, 4, 3)).astype(np.uint8)
    labels = np.repeat([0, 1, 3], [40, 18, 2])
    inputs = keras.Input((4, 4, 3))
    pooled = keras.layers.Dense(16, kernel_initializer=keras.initializers.GlorotNormal(0))(
        keras.layers.Flatten()(inputs)
    )
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(pooled))
    features = keras.Model(inputs, pooled).predict(pixels, verbose=0)
    ood_score = fit_ood_score(features, labels, 4, features[:0])
    frozen = freeze_classifier(model, pooled, 4, ood_score)
    unknown = random.integers(0, 2, (10, 4, 4, 3)).astype(np.uint8) * 255
    for images in (pixels, unknown):
        outputs = frozen(images)
        np.testing.assert_allclose(outputs["ood_score"], ood_score.measure(outputs["embedding"].numpy()), rtol=1e-4)


class StandInGpus:
    """What TensorFlow's configuration would be told on a machine with `count` GPUs."""

    def __init__(self, monkeypatch, count):
        from tlray.model import tf_runtime

        self.told = {}
        config = tf_runtime.tf.config
        gpus = [f"GPU:{index}" for index in range(count)]
        monkeypatch.setattr(tf_runtime, "read_gpu_memory", lambda: 16384)
        monkeypatch.setattr(config, "list_physical_devices", lambda kind: gpus if kind == "GPU" else ["CPU:0"])
        monkeypatch.setattr(
            config, "set_logical_device_configuration", lambda gpu, limits: self._tell(gpu, limits[0].memory_limit)
        )
        monkeypatch.setattr(config.experimental, "set_memory_growth", lambda gpu, grows: self._tell(gpu, grows))
        monkeypatch.setattr(
            config.experimental, "enable_tensor_float_32_execution", lambda allowed: self._tell("TF32", allowed)
        )

    def _tell(self, name, value):
        self.told[name] = value


@pytest.mark.parametrize(
    ("seen", "booked", "told"),
    [
        (2, 0, {"GPU:0": True, "GPU:1": True}),  # outside of Ray
        (1, 1, {"GPU:0": True}),
        (1, 0.5, {"GPU:0": 7372}),  # 0.9 of half of 16 GiB
        (0, 0, {}),
    ],
)
def test_memory_of_a_gpu_is_taken_as_needed_or_by_the_booked_share(monkeypatch, seen, booked, told):
    from tlray.model.tf_runtime import prepare_gpus

    gpus = StandInGpus(monkeypatch, seen)
    prepare_gpus(booked, allow_cpu=False)
    assert gpus.told == {**told, "TF32": False}


def test_a_booked_gpu_that_tensorflow_does_not_see_ends_the_run(monkeypatch):
    from tlray.model.tf_runtime import prepare_gpus

    StandInGpus(monkeypatch, 0)
    with pytest.raises(StoppedError, match=r"Ray booked a GPU of .+, and TensorFlow sees none there; .+ --allow-cpu"):
        prepare_gpus(0.5, allow_cpu=False)
    prepare_gpus(0.5, allow_cpu=True)


@pytest.mark.parametrize(("gpus", "name"), [(0, "RING"), (1, "NCCL"), (8, "NCCL")])
def test_gradients_of_gpus_are_summed_by_nccl(gpus, name):
    import tensorflow as tf

    from tlray.training.steps import choose_communication

    assert choose_communication(gpus) == name
    assert name in tf.distribute.experimental.CommunicationImplementation.__members__


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_frozen_part_that_a_cpu_refuses_in_bfloat16_is_computed_in_float32(precision, monkeypatch):
    import tensorflow as tf

    from tlray.features import build
    from tlray.features.cache import FrozenBase
    from tlray.images.limits import Limits
    from tlray.model import tf_runtime
    from tlray.model.precision import Precision

    allowed = [precision == "bfloat16"]
    monkeypatch.setattr(tf_runtime, "allow_bfloat16", lambda *, allowed: told.append(allowed))
    told = []

    def freeze(*_, mixed):
        def run(pixels, places, transforms):
            if not told and allowed[0]:
                raise tf.errors.UnknownError(None, None, "could not create a primitive descriptor")
            if precision == "float32":
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            return {"pooled": pixels}

        return run

    monkeypatch.setattr(build, "_freeze_base", freeze)
    frozen = FrozenBase("mobilenet_v2", 32, "block_12_add", None, "", 0, Precision(precision, precision), Limits())
    if precision == "float32":
        with pytest.raises(tf.errors.ResourceExhaustedError):
            build._open_frozen_base(frozen, None, "", mixed=False)
        return
    assert build._open_frozen_base(frozen, None, "", mixed=False) is not None
    assert told == [False]


@pytest.mark.parametrize("class_weights", [(1.0, 1.0, 1.0), (0.5, 1.0, 4.0)])
def test_a_mixture_is_trained_on_both_of_its_labels(class_weights):
    """With a linear head the mixture of two images' features has the mixture of their logits."""
    import keras
    import tensorflow as tf

    from tlray.model.network import Network, build_head, make_optimizer
    from tlray.training.schedule import draw_dropout, draw_mixing, pair_neighbours
    from tlray.training.steps import TrainStep

    keras.config.set_dtype_policy("float32")
    head = build_head("mobilenet_v2", (), 3, seed=1)
    network = Network("mobilenet_v2", "pooled", None, {}, head, train_batchnorm=False)
    optimizer = make_optimizer("sgd", 1e-2)
    optimizer.build(network.trainable_variables)
    step = TrainStep(tf.distribute.get_strategy(), network, optimizer, label_smoothing=0.0, clip_norm=None)
    random = np.random.default_rng(0)
    features = random.normal(size=(6, network.num_features)).astype(np.float32)
    labels, counts = random.integers(0, 3, 6).astype(np.int32), np.array([1, 1, 1, 1, 1, 0], np.float32)
    partners, shares = pair_neighbours(6), draw_mixing(0, 1, 2, 6, 0.2)
    masks = draw_dropout(0, 1, 2, 6, (network.num_features,), 0.3)
    by_class = np.array(class_weights, np.float32)
    batch = {"inputs": features, "labels": labels, "weights": counts * by_class[labels], "counts": counts}
    mixed = {"partners": partners, "shares": shares, "partner_weights": counts * by_class[labels[partners]]}
    kernel, bias = (np.array(variable) for variable in head[-1].variables)

    inputs = (shares[:, None] * features + (1 - shares[:, None]) * features[partners]) * masks
    logs = np.log(keras.ops.softmax(inputs @ kernel + bias))
    own, other = (-logs[np.arange(6), seen] * by_class[seen] for seen in (labels, labels[partners]))
    expected = (counts * (shares * own + (1 - shares) * other)).sum()
    found = step.step({**batch, **mixed, "masks": masks, "total": np.float32(5)})
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    assert found[1] == ((logs.argmax(axis=1) == labels) * counts).sum()
    assert abs(expected - (counts * own).sum()) > 1e-3
    assert np.abs(np.array(head[-1].kernel) - kernel).max() > 1e-5


@pytest.mark.parametrize(
    ("losses", "kept"), [([[1.0, 2.0], [0.5, 1.5]], "finetune"), ([[1.0, 2.0], [1.0, 2.5]], "head")]
)
def test_phase_2_is_kept_only_if_the_validation_images_gain_by_it(losses, kept, monkeypatch):
    import tensorflow as tf

    from tests.factories import make_epoch
    from tlray.training.checkpoint import TrainingState
    from tlray.training.loop import TrainingLoop

    loop = object.__new__(TrainingLoop)
    loop._strategy = tf.distribute.get_strategy()
    rows = np.array([0, 1])
    weights = np.array([1.0, 3.0])
    loop.task = SimpleNamespace(must_gain=True, calibration_rows=rows, labels=rows, class_weights=weights)
    loop.state = TrainingState(
        weights={"head": "after"}, best=make_epoch(9, phase="finetune"), before=make_epoch(3, phase="head"),
        before_weights={"head": "before"},
    )  # fmt: skip
    by_weights = {"before": np.array(losses[0]) * weights, "after": np.array(losses[1]) * weights}
    monkeypatch.setattr(loop, "_compute_losses", lambda opened, tried: by_weights[tried["head"]], raising=False)
    record, chosen, gain = loop.choose_epoch(None)
    assert (record.phase, chosen["head"]) == (kept, "after" if kept == "finetune" else "before")
    assert gain.mean == pytest.approx((0.5 + 3 * 0.5) / 4 if kept == "finetune" else -3 * 0.5 / 4)
    loop.task.must_gain = False
    assert loop.choose_epoch(None)[0].phase == "finetune"
