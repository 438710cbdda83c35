"""A depthwise convolution whose training is fast on CPUs."""

from typing import Any

import keras
from keras import ops

from carmodel.training.precision import gpus


def depthwise_convolution(
    x: Any, kernel: Any, strides: tuple[int, int], padding: str, dilation_rate: tuple[int, int]
) -> Any:
    """Return the depthwise convolution of images, as `keras.ops.depthwise_conv` does.

    On CPUs, the gradient of the kernel is computed by TensorFlow's own operation, which is faster than that of oneDNN. All
    other operations use oneDNN.

    Args:
        x: (B, H, W, C).
        kernel: (height, width, C, multiplier), of the same dtype.
        strides: step in pixels, down and across.
        padding: "same" or "valid".
        dilation_rate: distance between the pixels that the kernel covers, down and across.

    Returns:
        (B, h, w, C * multiplier).
    """
    if keras.backend.backend() != "tensorflow" or None in x.shape[1:3] or tuple(dilation_rate) != (1, 1) or gpus():
        return ops.depthwise_conv(x, kernel, strides=strides, padding=padding, dilation_rate=dilation_rate)
    import tensorflow as tf

    step = [1, *strides, 1]
    paddings = [0, 0, *(width for axis in (0, 1) for width in _padding(x, kernel, strides, padding, axis)), 0, 0]

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        def gradients(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            dx = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, strides=step, padding=padding.upper()
            )
            # TensorFlow replaces this operation by that of oneDNN unless the padding is given in pixels
            # (tensorflow/core/common_runtime/mkl_layout_pass.cc).
            dkernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=x,
                filter_sizes=tf.shape(kernel),
                out_backprop=dy,
                strides=step,
                padding="EXPLICIT",
                explicit_paddings=paddings,
            )
            return dx, dkernel

        y = tf.raw_ops.DepthwiseConv2dNative(input=x, filter=kernel, strides=step, padding=padding.upper())
        return y, gradients

    return convolve(x, kernel)


def _padding(x: Any, kernel: Any, strides: tuple[int, int], padding: str, axis: int) -> tuple[int, int]:
    """Return the pixels that are added before and after an axis: 0 for the height, 1 for the width."""
    if padding == "valid":
        return 0, 0
    size, side, step = x.shape[1 + axis], kernel.shape[axis], strides[axis]
    total = max((-(-size // step) - 1) * step + side - size, 0)
    return total // 2, total - total // 2
