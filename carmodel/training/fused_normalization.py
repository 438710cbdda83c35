"""Train batch normalisation, and the Scale after it, as one operation of TensorFlow instead of about ten.

Keras 3 computes the mean, the variance and the result with separate operations. Each reads all activations from memory,
and so does Scale. TensorFlow's fused operation, which Keras 2 used, does the same in two passes, on CPUs and on GPUs.
"""

from typing import Any

import keras
from keras import Operation, layers, ops

from carmodel.model.folding import chains, with_replaced_chains
from carmodel.model.scale import Scale


class FusedNormalization(layers.Layer):
    """Compute a batch normalisation, and the Scales after it, as one operation.

    The variables are those of the given layers. In training, the moving statistics are updated as Keras does.

    Args:
        chain: a `BatchNormalization` layer, then `Scale` layers.

    Input and output:
        (B, H, W, C), as for the batch normalisation.
    """

    def __init__(self, chain: list[layers.Layer], **kwargs: Any) -> None:
        # Without autocast, gamma and beta are float32 even under a mixed-precision policy.
        super().__init__(name=chain[0].name, dtype=chain[0].dtype_policy, autocast=False, **kwargs)
        self.normalization, self.scales = chain[0], chain[1:]
        self.built = True

    def call(self, x: Any, training: bool = False, mask: None = None) -> Any:
        """Return the normalised and scaled `x`. Images have no `mask`, which batch normalisation takes, too."""
        import tensorflow as tf

        norm = self.normalization
        gain = ops.convert_to_tensor(norm.gamma) if norm.scale else ops.ones(x.shape[-1:])
        offset = ops.convert_to_tensor(norm.beta) if norm.center else ops.zeros(x.shape[-1:])
        for scale in self.scales:
            gain, offset = gain * scale.gamma, offset * scale.gamma + scale.beta
        of_batch = bool(training and norm.trainable)
        moving = norm.moving_mean, norm.moving_variance
        x = ops.cast(x, self.compute_dtype)
        mean, variance = ([], []) if of_batch else (ops.convert_to_tensor(value) for value in moving)
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gain, offset=offset, mean=mean, variance=variance, epsilon=norm.epsilon, is_training=of_batch
        )
        if of_batch:
            # The operation returns the unbiased variance, and Keras tracks the biased one.
            count = ops.cast(ops.size(x) // x.shape[-1], "float32")
            for variable, value in zip(moving, (mean, variance * (count - 1) / count), strict=True):
                variable.assign(variable * norm.momentum + value * (1 - norm.momentum))
        return y

    def compute_output_spec(self, x: Any, training: bool = False, mask: None = None) -> keras.KerasTensor:
        """Return the shape and dtype of the output."""
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)


def with_fused_normalization(network: keras.Model) -> keras.Model:
    """Return a model that computes each batch normalisation, with the Scales after it, as one operation.

    Args:
        network: a functional model.

    Returns:
        a model with the same inputs, outputs and variables, so training it trains `network`. It is `network` itself
        under other backends than TensorFlow: they compile the whole step, and so combine the operations themselves.
    """
    if keras.backend.backend() != "tensorflow":
        return network
    found = chains(network, _is_fusable, lambda operation: type(operation) is Scale)
    return with_replaced_chains(network, found, FusedNormalization)


def batch_normalizations(model: keras.Model) -> list[layers.BatchNormalization]:
    """Return the batch normalisations of a model, including those in a model inside it and in fused layers."""
    own = [layer for outer in model.layers for layer in (outer.layers if isinstance(outer, keras.Model) else [outer])]
    plain = [layer.normalization if isinstance(layer, FusedNormalization) else layer for layer in own]
    return [layer for layer in plain if isinstance(layer, layers.BatchNormalization)]


def _is_fusable(operation: Operation) -> bool:
    return (
        type(operation) is layers.BatchNormalization
        and operation.axis in (-1, 3)
        and len(operation.input.shape) == 4
        and not (operation.renorm or operation.synchronized)
    )
