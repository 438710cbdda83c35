"""Training with the stored statistics of batch normalisation."""

from pathlib import Path

import keras
import numpy as np
import pytest

from carmodel.model.head import logits_of
from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training.fixed_statistics import with_fixed_statistics
from tests.policy import mixed_bfloat16

NETWORKS = {"scale": {"depth": 14, "width": 4}, "depthwise": {"backbone": "MobileNetV2"}}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request: pytest.FixtureRequest) -> keras.Model:
    """A network whose statistics, gammas and betas are not those of a new one."""
    keras.utils.set_random_seed(0)
    network = build(Train(**request.param), ["a", "b", "c"])
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization) or type(layer).__name__ == "Scale":
            layer.set_weights([rng.uniform(0.5, 1.5, value.shape) for value in layer.get_weights()])
    return network


def gradients(model: keras.Model, photos: np.ndarray, variables: list, **training: bool) -> list[np.ndarray]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(photos, **training)[:, 0])
    return [gradient.numpy() for gradient in tape.gradient(loss, [variable.value for variable in variables])]


def test_answers_and_gradients_are_those_of_the_normalisations(
    network: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rounding moves a few activations across zero, where the gradient of ReLU jumps. That of SiLU does not.
    monkeypatch.setattr(keras.layers.ReLU, "call", lambda _, x: keras.ops.silu(x))
    photos = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    view, plain = with_fixed_statistics(logits_of(network)), logits_of(network)
    answers = plain(photos, training=False).numpy()
    np.testing.assert_allclose(view(photos, training=True), answers, rtol=1e-3, atol=1e-4 * np.abs(answers).max())
    kinds = {variable.path.rpartition("/")[2] for variable in view.trainable_variables}
    assert kinds >= {"kernel", "gamma", "beta"}
    assert {id(v) for v in view.trainable_variables} == {id(v) for v in plain.trainable_variables}
    ours = gradients(view, photos, network.trainable_variables, training=True)
    theirs = gradients(plain, photos, network.trainable_variables, training=False)
    for variable, own, other in zip(network.trainable_variables, ours, theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-2, atol=1e-3 * np.abs(other).max() + 1e-7, err_msg=variable.path)


def test_frozen_layers_stay_frozen_and_the_network_can_be_saved(network: keras.Model, tmp_path: Path) -> None:
    first = next(layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D))
    first.trainable = False
    view = with_fixed_statistics(logits_of(network))
    assert first.kernel.path not in {variable.path for variable in view.trainable_variables}
    photos = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(loaded(photos), network(photos), atol=1e-6)


def test_under_mixed_precision_the_offset_is_not_rounded_before_it_is_added() -> None:
    with mixed_bfloat16():
        image = keras.Input((1, 1, 1))
        x = keras.layers.BatchNormalization(epsilon=0.0)(keras.layers.Conv2D(1, 1, use_bias=False)(image))
        network = keras.Model(image, x)
    convolution, normalization = network.layers[1:]
    convolution.set_weights([np.ones((1, 1, 1, 1))])
    # 1.00390625 lies between two bfloat16 numbers: rounded first, -1 + 1 is 0.
    normalization.set_weights([np.ones(1), np.array([1.00390625]), np.zeros(1), np.ones(1)])
    answer = with_fixed_statistics(network)(np.full((1, 1, 1, 1), -1.0, np.float32), training=True)
    assert float(answer[0, 0, 0, 0]) == 0.00390625
