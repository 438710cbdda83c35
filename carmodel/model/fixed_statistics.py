"""Train with the stored statistics of batch normalisation, which is computed inside the convolution before it."""

from typing import Any

import keras
from keras import layers, ops

from carmodel.model.folding import foldable_chains
from carmodel.model.scale import Scale


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
        gain, offset = 1.0, convolution.bias if convolution.use_bias else 0.0
        for layer in self.followers:
            own_gain, own_offset = _gain_and_offset(layer)
            gain, offset = gain * own_gain, offset * own_gain + own_offset
        # A depthwise kernel is (height, width, input channels, multiplier), and its output channels have the same order.
        kernel = convolution.kernel * (ops.reshape(gain, convolution.kernel.shape[2:]) if depthwise else gain)
        convolve = ops.depthwise_conv if depthwise else ops.conv
        y = convolve(
            ops.cast(x, self.compute_dtype),
            ops.cast(kernel, self.compute_dtype),
            strides=convolution.strides,
            padding=convolution.padding,
            dilation_rate=convolution.dilation_rate,
        )
        return y + ops.cast(offset, self.compute_dtype)

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
    chains = {id(chain[0]): chain for chain in foldable_chains(network)}
    followers = {id(layer) for chain in chains.values() for layer in chain[1:]}

    def clone(layer: layers.Layer) -> layers.Layer:
        if id(layer) in followers:
            return layers.Identity(name=layer.name)
        return NormalizedConvolution(chains[id(layer)]) if id(layer) in chains else layer

    def call(layer: layers.Layer, *arguments: Any, **keywords: Any) -> Any:
        if isinstance(layer, layers.Identity):
            return arguments[0]
        if isinstance(layer, layers.BatchNormalization):
            keywords["training"] = False
        return layer(*arguments, **keywords)

    return keras.models.clone_model(network, clone_function=clone, call_function=call)


def _gain_and_offset(layer: layers.Layer) -> tuple[Any, Any]:
    """Return the gain and the offset of a layer, float32 (C,) each."""
    if isinstance(layer, Scale):
        return ops.convert_to_tensor(layer.gamma), ops.convert_to_tensor(layer.beta)
    gain = ops.rsqrt(layer.moving_variance + layer.epsilon)
    if layer.scale:
        gain = gain * layer.gamma
    offset = -gain * layer.moving_mean
    return gain, offset + layer.beta if layer.center else offset
