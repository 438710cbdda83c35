"""Convolutions whose training is fast on CPUs."""

from typing import Any

from keras import ops

from carmodel.training.precision import tensorflow_on_cpu


def conv(x: Any, kernel: Any, strides: tuple[int, int], padding: str, dilation_rate: tuple[int, int]) -> Any:
    """Return the convolution of images, as `keras.ops.conv` does.

    On CPUs, the gradient of a 1 x 1 kernel is computed as a matrix product, which is faster than oneDNN's gradient.

    Args:
        x: (B, H, W, C).
        kernel: (height, width, C, D), of the same dtype.
        strides: step in pixels, down and across.
        padding: "same" or "valid".
        dilation_rate: distance between the pixels that the kernel covers, down and across.

    Returns:
        (B, h, w, D).
    """
    pointwise = tuple(kernel.shape[:3]) == (1, 1, x.shape[-1]) and tuple(strides) == (1, 1)
    if not (pointwise and tensorflow_on_cpu()):
        return ops.conv(x, kernel, strides=strides, padding=padding, dilation_rate=dilation_rate)
    import tensorflow as tf

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        def gradients(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            dx = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, strides=[1, 1, 1, 1], padding="VALID"
            )
            pixels, dpixels = (tf.reshape(each, (-1, each.shape[-1])) for each in (x, dy))
            return dx, tf.reshape(tf.matmul(pixels, dpixels, transpose_a=True), kernel.shape)

        return tf.raw_ops.Conv2D(input=x, filter=kernel, strides=[1, 1, 1, 1], padding="VALID"), gradients

    return convolve(x, kernel)


def depthwise_conv(x: Any, kernel: Any, strides: tuple[int, int], padding: str, dilation_rate: tuple[int, int]) -> Any:
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
    if None in x.shape[1:3] or tuple(dilation_rate) != (1, 1) or not tensorflow_on_cpu():
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
