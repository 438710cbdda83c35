"""Training with batch normalisation and Scale as one operation."""

import keras
import numpy as np
import pytest

from carmodel.model.folding import foldable_chains
from carmodel.model.head import logits_of
from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training.fused_normalization import FusedNormalization, batch_normalizations, with_fused_normalization
from tests.policy import mixed_bfloat16
from tests.test_fixed_statistics import gradients

NETWORKS = {"scale": {"depth": 14, "width": 4}, "gamma and beta": {"backbone": "MobileNetV2"}}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request: pytest.FixtureRequest) -> keras.Model:
    """A network whose gammas and betas are not those of a new one."""
    keras.utils.set_random_seed(0)
    network = build(Train(**request.param), ["a", "b", "c"])
    rng = np.random.default_rng(0)
    for variable in network.trainable_variables:
        if variable.name in ("gamma", "beta"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return network


def moving(network: keras.Model) -> list[np.ndarray]:
    return [v.numpy() for layer in batch_normalizations(network) for v in (layer.moving_mean, layer.moving_variance)]


@pytest.mark.parametrize("training", [True, False])
def test_answers_gradients_and_moving_statistics_are_those_of_keras(
    network: keras.Model, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rounding moves a few activations across zero, where the gradient of ReLU jumps. That of SiLU does not.
    monkeypatch.setattr(keras.layers.ReLU, "call", lambda _, x: keras.ops.silu(x))
    photos = np.random.default_rng(1).integers(0, 256, (16, 64, 64, 3), np.uint8)
    plain, start = logits_of(network), network.get_weights()
    view = with_fused_normalization(plain)
    assert sum(isinstance(layer, FusedNormalization) for layer in view.layers) == len(batch_normalizations(network))
    assert not any(type(layer).__name__ in ("BatchNormalization", "Scale") for layer in view.layers)
    assert [id(v) for v in view.trainable_variables] == [id(v) for v in plain.trainable_variables]
    expected = plain(photos, training=training).numpy()
    after = moving(network)
    network.set_weights(start)
    answers = view(photos, training=training).numpy()
    np.testing.assert_allclose(answers, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    for own, other in zip(moving(network), after, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-5)
    variables = network.trainable_variables
    ours, theirs = (gradients(model, photos, variables, training=training) for model in (view, plain))
    for variable, own, other in zip(variables, ours, theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=5e-3, atol=5e-3 * np.abs(other).max() + 1e-6, err_msg=variable.path)


def test_frozen_normalisations_use_and_keep_their_statistics(network: keras.Model) -> None:
    for layer in network.layers:
        layer.trainable = False
    photos = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    before = network.get_weights()
    answers = with_fused_normalization(logits_of(network))(photos, training=True)
    np.testing.assert_allclose(answers, logits_of(network)(photos), rtol=1e-3, atol=1e-4)
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), before, strict=True))


def test_the_network_can_be_folded_after_it_was_trained(network: keras.Model) -> None:
    chains = [[layer.name for layer in chain] for chain in foldable_chains(network)]
    with_fused_normalization(logits_of(network))
    assert [[layer.name for layer in chain] for chain in foldable_chains(network)] == chains


def test_mixed_precision_normalises_in_float32() -> None:
    with mixed_bfloat16():
        image = keras.Input((4, 4, 3))
        plain = keras.Model(image, keras.layers.BatchNormalization()(image))
    photos = np.random.default_rng(0).normal(100, 1, (64, 4, 4, 3)).astype("float32")
    seen = with_fused_normalization(plain)(photos, training=True)
    assert seen.dtype == "bfloat16"
    photos = keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.cast(photos, "bfloat16"), "float32"))
    expected = (photos - photos.mean((0, 1, 2))) / photos.std((0, 1, 2))
    np.testing.assert_allclose(keras.ops.cast(seen, "float32"), expected, atol=0.03)
