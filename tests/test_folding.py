"""Folding: the network without normalisations gives the answers of the network with them."""

from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from carmodel.model.backbone import application
from carmodel.model.folding import fold, in_float32
from carmodel.model.resnet import resnet
from carmodel.model.scale import Scale
from tests.policy import mixed_bfloat16

AFFINE = (layers.BatchNormalization, Scale)


def randomised(model: keras.Model, seed: int) -> keras.Model:
    """Set statistics, gains and offsets to random values, as after a training."""
    numbers = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        for weight in layer.weights if isinstance(layer, AFFINE) else ():
            if "variance" in weight.name:
                weight.assign(numbers.uniform(0.3, 2.0, weight.shape))
            else:
                weight.assign(numbers.normal(*((0.8, 0.4) if "gamma" in weight.name else (0, 0.3)), weight.shape))
    return model


def photos(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, size, size, 3), np.uint8)


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(x, training=False))


def left_over(model: keras.Model) -> list[str]:
    return [layer.name for layer in model._flatten_layers() if isinstance(layer, AFFINE)]


def test_the_folded_residual_network_answers_alike_also_after_saving(tmp_path: Path) -> None:
    model = randomised(resnet(26, 5, width=8), 26)
    before = model.get_weights()
    folded = fold(model)
    assert np.ptp(predict(model, photos(64))) > 1e-3
    assert left_over(folded) == []
    assert len(folded.layers) == len(model.layers) - len(left_over(model))
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    folded.set_weights([weight + 1 for weight in folded.get_weights()])
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept, err_msg="the original shares no weights")
    np.testing.assert_allclose(predict(loaded, photos(64)), predict(model, photos(64)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "wholly"),
    [("MobileNetV2", True), ("ResNet50V2", False)],  # which normalises also after additions
)
def test_networks_of_keras_applications_answer_alike_and_what_cannot_fold_stays(name: str, wholly: bool) -> None:
    model = randomised(application(name, 5), 1)
    folded = fold(model)
    np.testing.assert_allclose(predict(folded, photos(64)), predict(model, photos(64)), atol=1e-5)
    assert len(left_over(folded)) < len(left_over(model))
    assert (left_over(folded) == []) == wholly


def test_channels_that_never_varied_fold_exactly() -> None:
    model = randomised(resnet(14, 5, width=4), 2)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(np.where(np.arange(layer.moving_variance.shape[0]) % 2, 0.0, 1.0))
            layer.moving_mean.assign(np.zeros(layer.moving_mean.shape))
    for layer in model.layers:
        if isinstance(layer, Scale):  # such a channel is blown up by 1 / sqrt(epsilon), and training keeps it small
            layer.gamma.assign(layer.gamma * np.where(np.arange(layer.gamma.shape[0]) % 2, 0.003, 1.0))
    np.testing.assert_allclose(predict(fold(model), photos(32)), predict(model, photos(32)), atol=1e-5)


convolutions = st.fixed_dictionaries({"use_bias": st.booleans(), "padding": st.sampled_from(["same", "valid"])})
norms = st.fixed_dictionaries({"center": st.booleans(), "scale": st.booleans()})


@settings(max_examples=25, deadline=None)
@given(
    convolution=convolutions,
    depthwise=st.booleans(),
    chain=st.lists(st.one_of(st.none(), norms), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_any_chain_of_affine_layers_folds_into_its_convolution(
    convolution: dict[str, Any], depthwise: bool, chain: list[dict[str, bool] | None], seed: int
) -> None:
    keras.utils.set_random_seed(seed)
    x = image = keras.Input((6, 5, 3))
    convolution = convolution | {"bias_initializer": "random_normal"}
    kind = partial(layers.DepthwiseConv2D, depth_multiplier=2) if depthwise else partial(layers.Conv2D, 4)
    x = kind(kernel_size=3, **convolution)(x)
    for norm in chain:
        x = Scale()(x) if norm is None else layers.BatchNormalization(**norm)(x)
    model = randomised(keras.Model(image, x), seed)
    folded = fold(model)
    assert left_over(folded) == []
    inputs = np.random.default_rng(seed).normal(size=(2, 6, 5, 3)).astype("float32")
    expected = predict(model, inputs)
    np.testing.assert_allclose(predict(folded, inputs), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_an_output_that_is_used_twice_or_activated_is_left_as_it_is() -> None:
    image = keras.Input((6, 6, 3))
    twice = layers.Conv2D(3, 1)(image)
    used = layers.Add()([twice, layers.BatchNormalization()(twice)])
    activated = layers.BatchNormalization()(layers.Conv2D(3, 1, activation="relu")(used))
    shared = layers.Conv2D(3, 1)
    both = layers.Add()([layers.BatchNormalization()(shared(activated)), Scale()(shared(used))])
    shown = layers.Conv2D(3, 1)(both)
    model = randomised(keras.Model(image, [shown, Scale()(shown)]), 5)
    folded = fold(model)
    assert len(left_over(folded)) == 5
    x = np.random.default_rng(5).normal(size=(2, 6, 6, 3)).astype("float32")
    for after, before in zip(folded(x), model(x), strict=True):
        expected = keras.ops.convert_to_numpy(before)
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(after), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
        )


class Subclassed(keras.Model):
    """A model that is not functional."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.normalization = layers.BatchNormalization()

    def call(self, x: object) -> object:
        return self.normalization(x)


def test_a_model_inside_that_is_not_functional_is_left_as_it_is() -> None:
    image = keras.Input((32, 32, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(image))
    model = randomised(keras.Model(image, Subclassed()(x)), 7)
    folded = fold(model)
    assert [type(layer) for layer in folded.layers] == [layers.InputLayer, layers.Conv2D, Subclassed]
    np.testing.assert_allclose(predict(folded, photos(32)), predict(model, photos(32)), rtol=1e-4, atol=1e-4)


def test_a_network_trained_in_bfloat16_is_copied_to_float32_with_its_weights() -> None:
    with mixed_bfloat16():
        model = randomised(resnet(14, 5, width=4), 6)
    exact = in_float32(model)
    assert {layer.compute_dtype for layer in exact.layers} == {"float32"}
    np.testing.assert_allclose(predict(exact, photos(32)), predict(model, photos(32)), atol=0.05)
    np.testing.assert_allclose(predict(fold(exact), photos(32)), predict(exact, photos(32)), atol=1e-5)
