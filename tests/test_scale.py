"""The Scale layer."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from carmodel.model.scale import Scale


@settings(max_examples=20, deadline=None)
@given(
    x=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-10, 10, width=32)
    ),
    seed=st.integers(0, 2**16),
)
def test_it_multiplies_each_channel_by_gamma_and_adds_beta(x: np.ndarray, seed: int) -> None:
    gamma, beta = np.random.default_rng(seed).normal(size=(2, x.shape[-1])).astype("float32")
    layer = Scale()
    layer.build(x.shape)
    layer.set_weights([gamma, beta])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)), x * gamma + beta, rtol=1e-5, atol=1e-5)


def test_it_starts_as_the_identity_and_both_weights_train() -> None:
    layer, x = Scale(), np.arange(12, dtype="float32").reshape(2, 2, 3)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x)), x)
    assert [(w.name, tuple(w.shape)) for w in layer.trainable_weights] == [("gamma", (3,)), ("beta", (3,))]
    assert not layer.non_trainable_weights


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_under_mixed_precision_it_computes_in_16_bits_with_float32_weights(policy: str) -> None:
    layer = Scale(dtype=policy)
    y = layer(np.ones((2, 3), "float32"))
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    assert {w.dtype for w in layer.weights} == {"float32"}


def test_under_mixed_precision_gamma_and_beta_are_not_rounded() -> None:
    layer = Scale(dtype="mixed_bfloat16")
    layer.build((None, 1))
    layer.set_weights([np.array([1.002]), np.array([-1.0])])  # bfloat16 would round gamma to 1
    assert float(layer(np.ones((1, 1), "float32"))[0, 0]) == pytest.approx(0.002, rel=0.01)


def test_an_unknown_number_of_channels_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="size of the last axis"):
        Scale().build((None, 4, None))


def test_its_config_makes_the_same_layer_again() -> None:
    layer = Scale("zeros", keras.initializers.Constant(0.5), "l2", keras.regularizers.L1(0.1), name="s")
    config = layer.get_config()
    again = Scale.from_config(config)
    assert again.get_config() == config
    again.build((None, 2))
    np.testing.assert_array_equal(again.get_weights(), [[0, 0], [0.5, 0.5]])
    assert keras.saving.get_registered_name(Scale) == "carmodel>Scale"


def test_regularizers_add_their_penalty() -> None:
    layer = Scale(gamma_regularizer=keras.regularizers.L2(0.5), beta_regularizer="l1")
    layer.build((None, 4))
    assert float(sum(layer.losses)) == pytest.approx(0.5 * 4)
