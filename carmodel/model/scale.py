"""The custom Scale layer, which follows BatchNormalization: a trainable gain and offset per channel."""

from typing import Any

import keras
from keras import KerasTensor, initializers, regularizers


@keras.saving.register_keras_serializable(package="carmodel")
class Scale(keras.layers.Layer):
    """Multiply each channel by a trainable `gamma` and add a trainable `beta`.

    Formula, for channel `c` on the last axis::

        y[..., c] = gamma[c] * x[..., c] + beta[c]

    The residual networks of He et al. (2015, https://arxiv.org/abs/1512.03385) were published for Caffe
    (https://github.com/KaimingHe/deep-residual-networks). There, batch normalisation only normalises, and a "Scale" layer
    after it has gamma and beta. The car classifier that Data Insights and Databricks described in 2020 does the same:
    https://www.databricks.com/blog/2020/05/14/a-convolutional-neural-network-implementation-for-car-classification.html

    Put it after ``BatchNormalization(center=False, scale=False)``. Both then fold exactly into the convolution before.

    Args:
        gamma_initializer: initial gain. With "zeros" at the end of a residual branch, the block starts as its shortcut.
        beta_initializer: initial offset.
        gamma_regularizer: optional penalty on the gain.
        beta_regularizer: optional penalty on the offset.

    Input and output shape:
        ``(..., channels)`` of any rank, in the compute dtype of the layer. `gamma` and `beta` are float32 ``(channels,)``.

    Raises:
        ValueError: the size of the last axis is not known when the layer is built.
    """

    def __init__(
        self,
        gamma_initializer: str | dict | initializers.Initializer = "ones",
        beta_initializer: str | dict | initializers.Initializer = "zeros",
        gamma_regularizer: str | dict | regularizers.Regularizer | None = None,
        beta_regularizer: str | dict | regularizers.Regularizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Create the layer. See the class for the arguments."""
        super().__init__(**kwargs)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create `gamma` and `beta` for the channels of `input_shape`."""
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"{self.name}: the size of the last axis, the channels, must be known; got {input_shape}")
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
        """Scale `inputs`, and return the same shape and dtype. Compute in float32, since 16 bits would round gamma and beta."""
        scaled = keras.ops.cast(inputs, "float32") * self.gamma + self.beta
        return keras.ops.cast(scaled, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return `input_shape`."""
        return input_shape

    def get_config(self) -> dict:
        """Return the arguments that create an equal layer."""
        return super().get_config() | {
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_regularizer": regularizers.serialize(self.gamma_regularizer),
            "beta_regularizer": regularizers.serialize(self.beta_regularizer),
        }
