"""Train with the stored statistics of batch normalisation, which is computed inside the convolution before it."""

from typing import Any

import keras
from keras import layers, ops

from carmodel.model.folding import foldable_chains, gain_and_offset, with_replaced_chains
from carmodel.training.convolution import conv, depthwise_conv


class NormalizedConvolution(layers.Layer):
    """Compute a convolution and the normalisation after it as one convolution.

    With fixed statistics, batch normalisation multiplies each channel by a gain and adds an offset. The gain can multiply
    the small kernel instead of the large output::

        gain * conv(x, kernel) + offset = conv(x, gain * kernel) + offset

    The variables are those of the given layers, so kernel, gamma and beta are trained as usual.

    Args:
        chain: a `Conv2D` or `DepthwiseConv2D` without activation, then `BatchNormalization` and `Scale` layers.

    Input and output:
        as for the convolution, (B, H, W, C) and (B, h, w, D).
    """

    def __init__(self, chain: list[layers.Layer], **kwargs: Any) -> None:
        # Without autocast, the gain is computed in float32 even under a mixed-precision policy.
        super().__init__(name=chain[0].name, dtype=chain[0].dtype_policy, autocast=False, **kwargs)
        self.convolution, self.followers = chain[0], chain[1:]
        self.built = True

    def call(self, x: Any) -> Any:
        """Return the normalised convolution of `x`."""
        convolution = self.convolution
        depthwise = isinstance(convolution, layers.DepthwiseConv2D)
        bias = convolution.bias if convolution.use_bias else 0.0
        gain, offset = gain_and_offset(self.followers, bias, ops.convert_to_tensor)
        # A depthwise kernel is (height, width, input channels, multiplier), and its output channels have the same order.
        kernel = convolution.kernel * (ops.reshape(gain, convolution.kernel.shape[2:]) if depthwise else gain)
        x, kernel = ops.cast(x, self.compute_dtype), ops.cast(kernel, self.compute_dtype)
        convolve = depthwise_conv if depthwise else conv
        y = convolve(
            x,
            kernel,
            strides=convolution.strides,
            padding=convolution.padding,
            dilation_rate=convolution.dilation_rate,
        )
        # 16 bits would round the offset.
        return ops.cast(ops.cast(y, self.variable_dtype) + offset, self.compute_dtype)

    def compute_output_spec(self, x: Any) -> keras.KerasTensor:
        """Return the shape and dtype of the output."""
        return keras.KerasTensor(self.convolution.compute_output_shape(x.shape), dtype=self.compute_dtype)


def with_fixed_statistics(network: keras.Model) -> keras.Model:
    """Return a model whose batch normalisations also use their stored statistics in training.

    Statistics of small batches are noisy, and those of ImageNet suit photos of cars. On two cores with AVX2, training is
    1.3 to 1.4 times as fast as with Keras's separate normalisations.

    Args:
        network: a functional model.

    Returns:
        a model with the same inputs, outputs and variables, so training it trains `network`.
    """

    def keywords(layer: layers.Layer) -> dict[str, Any]:
        # A batch normalisation that does not follow a convolution stays a layer.
        return {"training": False} if isinstance(layer, layers.BatchNormalization) else {}

    return with_replaced_chains(network, foldable_chains(network), NormalizedConvolution, keywords)
