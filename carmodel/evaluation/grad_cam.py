"""Show where a network looks: Grad-CAM, R. Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391.

With feature maps A_k of the last convolution and the score s of a class, the map is ``relu(sum_k w_k A_k)``, where ``w_k`` is
the mean of ``ds/dA_k`` over all positions.
"""

import keras
import numpy as np
import tensorflow as tf  # its gradient tape; Keras has no gradients of its own
from keras import ops

from carmodel.model.head import LOGITS


def grad_cam(network: keras.Model, images: np.ndarray, classes: np.ndarray, layer: str = "") -> np.ndarray:
    """Return how much each position of an image supports a class, float32 (B, h, w), from 0 to 1.

    The maximum of each map is 1. A map is 0 everywhere if no position supports the class. To show a map, resize it to the
    size of the image.

    Args:
        network: a flat functional model, uint8 (B, H, W, 3) in and probabilities (B, C) out. If it has a layer "logits", the
            score is the logit of the class, and otherwise the logarithm of its probability.
        images: uint8 (B, H, W, 3).
        classes: int (B,), the class to explain in each image.
        layer: name of the layer with the feature maps (B, h, w, K). An empty name selects the last such layer.

    Raises:
        ValueError: the network has no such layer, or its output also depends on paths that bypass the layer.
    """
    maps = network.get_layer(layer).output if layer else last_feature_maps(network)
    has_logits = LOGITS in {layer.name for layer in network.layers}
    trunk = keras.Model(network.input, maps)
    head = keras.Model(maps, network.get_layer(LOGITS).output if has_logits else network.output)
    features = trunk(images, training=False)
    with tf.GradientTape() as tape:
        tape.watch(features)
        outputs = head(features, training=False)
        outputs = outputs if has_logits else ops.log(ops.maximum(outputs, 1e-30))
        score = ops.sum(ops.take_along_axis(outputs, ops.expand_dims(ops.cast(classes, "int32"), 1), axis=1))
    weights = ops.mean(tape.gradient(score, features), axis=(1, 2), keepdims=True)
    heat = ops.relu(ops.sum(weights * features, axis=-1))
    heat /= ops.maximum(ops.max(heat, axis=(1, 2), keepdims=True), 1e-30)
    return ops.convert_to_numpy(ops.cast(heat, "float32"))


def last_feature_maps(network: keras.Model) -> keras.KerasTensor:
    """Return the last feature maps of a network: a tensor (B, h, w, K), where h and w are not both 1.

    Raises:
        ValueError: it has none.
    """
    layers = [layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer)]
    for layer in reversed(layers):
        output = getattr(layer, "output", None)
        if isinstance(output, keras.KerasTensor) and len(output.shape) == 4 and output.shape[1:3] != (1, 1):
            return output
    raise ValueError(f"{network.name} has no layer with feature maps (B, h, w, K)")
