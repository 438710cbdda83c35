"""From the trained to the served network: folded and rounded only as far as the answers allow."""

import keras
import numpy as np
import pytest

from carmodel.model.resnet import resnet
from carmodel.model.scale import Scale
from carmodel.serving.inference_model import BFLOAT16_BOUND, build_inference_model, judge_bfloat16
from carmodel.training.precision import fast_bfloat16
from tests.policy import mixed_bfloat16

SIZE = 32


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = resnet(14, 6, width=4)
    for layer in model.layers:
        if isinstance(layer, Scale):
            layer.gamma.assign(keras.random.uniform(layer.gamma.shape, 0.5, 1.5))
    return model


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)


def scales(network: keras.Model) -> int:
    return sum(isinstance(layer, Scale) for layer in network.layers)


def test_the_network_is_folded_and_its_largest_change_reported(trained: keras.Model, photos: np.ndarray) -> None:
    served = build_inference_model(trained, photos, folded=True, precision="float32")
    assert (served.folded, served.precision, served.notes) == (True, "float32", [])
    assert served.metrics["folding_max_change"] <= 1e-5
    assert served.metrics["onnx_max_change"] <= 1e-4
    assert (scales(served.network), scales(trained)) == (0, 17)
    np.testing.assert_allclose(served.network(photos), trained(photos), atol=1e-5)


def test_onnx_runtime_gives_the_network_s_answers(trained: keras.Model, photos: np.ndarray) -> None:
    served = build_inference_model(trained, photos, folded=True, precision="float32")
    assert served.onnx
    np.testing.assert_allclose(served.forward(photos), trained(photos), atol=1e-4)


def test_the_answers_to_a_photo_and_its_mirror_image_are_averaged(trained: keras.Model, photos: np.ndarray) -> None:
    served = build_inference_model(trained, photos, folded=True, precision="float32", flip=True)
    average = (trained(photos).numpy() + trained(photos[:, :, ::-1]).numpy()) / 2
    np.testing.assert_allclose(served.forward(photos), average, atol=1e-4)
    assert served.folded


def test_a_network_is_converted_whose_optimization_fails_without_copies(photos: np.ndarray) -> None:
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(image))
    # One of tf2onnx's optimizations cannot move a scalar that is added to a convolution.
    x = keras.layers.GlobalAveragePooling2D()(keras.activations.hard_sigmoid(x))
    network = keras.Model(image, keras.layers.Dense(3, activation="softmax")(x))
    served = build_inference_model(network, photos, folded=True, precision="float32")
    assert served.engine == "onnxruntime" and served.notes == []
    np.testing.assert_allclose(served.forward(photos), network(photos), atol=1e-4)


def test_tensorflow_runs_a_network_that_cannot_be_converted(photos: np.ndarray) -> None:
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(image))
    # The converter knows no inverse hyperbolic sine of complex numbers.
    x = keras.layers.Dense(3)(keras.ops.real(keras.ops.arcsinh(keras.ops.cast(x, "complex64"))))
    model = keras.Model(image, keras.layers.Softmax()(x))
    served = build_inference_model(model, photos, folded=True, precision="float32")
    assert served.onnx is None
    assert "it cannot be converted for ONNX Runtime" in served.notes[-1]
    np.testing.assert_allclose(served.forward(photos), model(photos), atol=1e-5)


def test_tensorflow_runs_a_network_whose_answers_onnx_runtime_changes(
    trained: keras.Model, photos: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carmodel.serving.inference_model.ONNX_BOUND", 0.0)
    served = build_inference_model(trained, photos, folded=True, precision="float32")
    assert served.onnx is None
    assert "ONNX Runtime changes a probability by" in served.notes[-1]


def test_unfolded_is_the_trained_network_itself(trained: keras.Model, photos: np.ndarray) -> None:
    served = build_inference_model(trained, photos, folded=False, precision="float32")
    assert served.network is trained
    assert not served.folded


def test_a_network_that_folding_would_change_is_served_as_trained_with_a_note(photos: np.ndarray) -> None:
    keras.utils.set_random_seed(2)
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    # A faint signal on a large constant: what is equal in algebra is not in float32.
    seen = keras.layers.Conv2D(4, 3, use_bias=False)(keras.layers.Rescaling(1e-6, offset=1.0)(image))
    bn = keras.layers.BatchNormalization(center=False, scale=False, epsilon=1e-12)
    x = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(bn(seen)))
    values = keras.Model(image, seen)(photos).numpy()
    bn.moving_mean.assign(values.mean((0, 1, 2)))
    bn.moving_variance.assign(values.var((0, 1, 2)))
    model = keras.Model(image, x)
    served = build_inference_model(model, photos, folded=True, precision="float32")
    assert served.network is model
    assert not served.folded
    assert "folding changes a probability by" in served.notes[0]


def test_bfloat16_is_used_where_the_processor_has_it_and_said_where_not(
    trained: keras.Model, photos: np.ndarray
) -> None:
    served = build_inference_model(trained, photos, folded=True, precision="bfloat16")
    if fast_bfloat16():
        assert {"bfloat16_max_change", "bfloat16_top1_agreement"} <= set(served.metrics)
    else:
        assert served.precision == "float32"
        assert "bfloat16 is not faster" in served.notes[0]


def test_bfloat16_that_moves_a_probability_or_an_answer_too_far_is_not_used() -> None:
    exact = np.full((400, 4), 0.1)
    exact[:, 0] = 0.7
    near = exact + np.array([-0.8 * BFLOAT16_BOUND, 0, 0, 0.8 * BFLOAT16_BOUND])
    assert judge_bfloat16(near, exact)[::2] == ("bfloat16", "")
    far = exact.copy()
    far[7] -= [2 * BFLOAT16_BOUND, 0, 0, 0]
    precision, measured, note = judge_bfloat16(far, exact)
    assert precision == "float32"
    assert measured == {"bfloat16_max_change": pytest.approx(0.1), "bfloat16_top1_agreement": 1.0}
    assert "changes a probability by 0.100" in note
    close = np.tile([0.26, 0.25, 0.25, 0.24], (400, 1))
    swapped = close.copy()
    swapped[:3] = [0.25, 0.26, 0.25, 0.24]
    precision, measured, note = judge_bfloat16(swapped, close)
    assert (precision, measured["bfloat16_top1_agreement"]) == ("float32", 0.9925)
    assert "keeps 99.25% of the most likely classes" in note


def test_a_network_trained_in_bfloat16_is_served_in_float32(photos: np.ndarray) -> None:
    with mixed_bfloat16():
        trained = resnet(14, 6, width=4)
    for folded in (True, False):
        served = build_inference_model(trained, photos, folded, "float32")
        assert served.folded == folded
        assert {layer.compute_dtype for layer in served.network.layers} == {"float32"}
