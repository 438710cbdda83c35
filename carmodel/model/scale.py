"""The Scale layer: a trainable gain and offset for each channel."""

from typing import Any

import keras
from keras import KerasTensor, initializers, regularizers


@keras.saving.register_keras_serializable(package="carmodel")
class Scale(keras.layers.Layer):
    """Multiply each channel by a trainable `gamma` and add a trainable `beta`.

    Formula, for channel `c` on the last axis::

        y[..., c] = gamma[c] * x[..., c] + beta[c]

    The original residual networks of He et al. (2015, https://arxiv.org/abs/1512.03385) were published for Caffe, where
    batch normalisation only normalises and a "Scale" layer after it holds the affine half
    (https://github.com/KaimingHe/deep-residual-networks). The car model classifier that Data Insights and Databricks
    described in 2020 keeps the two apart in the same way:
    https://www.databricks.com/blog/2020/05/14/a-convolutional-neural-network-implementation-for-car-classification.html
    Used after ``BatchNormalization(center=False, scale=False)``, so that both fold exactly into the convolution before.

    Args:
        gamma_initializer: initial gain; "zeros" at the end of a residual branch makes the block start as its shortcut.
        beta_initializer: initial offset.
        gamma_regularizer: optional penalty on the gain.
        beta_regularizer: optional penalty on the offset.

    Input and output shape:
        ``(..., channels)``, any rank from 1 up, in the layer's compute dtype; `gamma` and `beta` are ``(channels,)``.

    Raises:
        ValueError: on building, when the size of the last axis is not known.
    """

    def __init__(
        self,
        gamma_initializer: str | dict | initializers.Initializer = "ones",
        beta_initializer: str | dict | initializers.Initializer = "zeros",
        gamma_regularizer: str | dict | regularizers.Regularizer | None = None,
        beta_regularizer: str | dict | regularizers.Regularizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the initialisers and regularisers; see the class."""
        super().__init__(**kwargs)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make `gamma` and `beta` for the channels of `input_shape`."""
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"{self.name}: Scale needs the size of the last axis, the channels; it got {input_shape}")
        self.gamma = self.add_weight(
            name="gamma",
            shape=(channels,),
            initializer=self.gamma_initializer,
            regularizer=self.gamma_regularizer,
            autocast=False,
        )
        self.beta = self.add_weight(
            name="beta",
            shape=(channels,),
            initializer=self.beta_initializer,
            regularizer=self.beta_regularizer,
            autocast=False,
        )

    def call(self, inputs: KerasTensor) -> KerasTensor:
        """Scale `inputs`; same shape and dtype out. Computed in float32: 16 bits would round gamma and beta."""
        scaled = keras.ops.cast(inputs, "float32") * self.gamma + self.beta
        return keras.ops.cast(scaled, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return `input_shape`."""
        return input_shape

    def get_config(self) -> dict:
        """Return everything needed to make the layer again."""
        return super().get_config() | {
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_regularizer": regularizers.serialize(self.gamma_regularizer),
            "beta_regularizer": regularizers.serialize(self.beta_regularizer),
        }
