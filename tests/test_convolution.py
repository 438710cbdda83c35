"""The convolutions of the training."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from carmodel.training.convolution import conv, depthwise_conv

CONVOLUTIONS = {conv: ops.conv, depthwise_conv: ops.depthwise_conv}


@settings(max_examples=50)
@given(
    convolve=st.sampled_from(list(CONVOLUTIONS)),
    height=st.integers(5, 12),
    width=st.integers(5, 12),
    side=st.sampled_from([1, 3, 5]),
    outputs=st.integers(1, 2),
    stride=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid"]),
)
def test_answers_and_gradients_are_those_of_keras(
    *, convolve: Callable, height: int, width: int, side: int, outputs: int, stride: int, padding: str
) -> None:
    numbers = np.random.default_rng(0)
    x = tf.constant(numbers.normal(size=(2, height, width, 3)), tf.float32)
    kernel = tf.constant(numbers.normal(size=(side, side, 3, outputs)), tf.float32)
    seen = []
    for way in (convolve, CONVOLUTIONS[convolve]):

        @tf.function
        def work(x: tf.Tensor, kernel: tf.Tensor, way=way) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                y = way(x, kernel, strides=(stride, stride), padding=padding, dilation_rate=(1, 1))
                loss = tf.reduce_sum(y * tf.sin(y))
            return [y, *tape.gradient(loss, [x, kernel])]

        seen.append(work(x, kernel))
    for own, other in zip(*seen, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "dilation_rate"), [(None, (1, 1)), (9, (2, 2))], ids=["any size", "dilation"])
def test_other_convolutions_are_those_of_keras(size: int | None, dilation_rate: tuple[int, int]) -> None:
    convolution = {"strides": (1, 1), "padding": "same", "dilation_rate": dilation_rate}
    work = tf.function(lambda x, kernel: depthwise_conv(x, kernel, **convolution))
    traced = work.get_concrete_function(tf.TensorSpec((None, size, size, 3)), tf.TensorSpec((3, 3, 3, 1)))
    x, kernel = tf.random.normal((2, 9, 9, 3)), tf.random.normal((3, 3, 3, 1))
    np.testing.assert_allclose(traced(x, kernel), ops.depthwise_conv(x, kernel, **convolution), atol=1e-5)
