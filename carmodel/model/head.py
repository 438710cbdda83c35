"""The classifier head of every network, and the parts of a network around it."""

import keras
from keras import KerasTensor, layers

DROPOUT = "head_dropout"
LOGITS = "logits"
PREDICTIONS = "predictions"


def head(pooled: KerasTensor, classes: int, dropout: float = 0.0) -> KerasTensor:
    """Turn pooled features (B, C) into float32 probabilities (B, classes).

    A dense layer named "logits" is followed by a softmax named "predictions". Training uses the logits, since a
    cross-entropy clips probabilities, and a clipped probability has no gradient. Both layers stay float32 under a
    mixed-precision policy, since a softmax in 16 bits loses small probabilities.

    Args:
        pooled: features (B, C).
        classes: number of classes.
        dropout: dropout rate of the features.
    """
    if dropout > 0:
        pooled = layers.Dropout(dropout, name=DROPOUT)(pooled)
    logits = layers.Dense(classes, dtype="float32", name=LOGITS)(pooled)
    return layers.Softmax(dtype="float32", name=PREDICTIONS)(logits)


def logits_of(network: keras.Model) -> keras.Model:
    """Return the network without its softmax: image in, logits float32 (B, classes) out. It shares the layers."""
    return keras.Model(network.input, network.get_layer(LOGITS).output, name="logits_of_network")


def with_mirror_image(network: keras.Model) -> keras.Model:
    """Return a network that averages the probabilities of a photo and of its mirror image. It shares the layers.

    Both are in one batch, so the graph contains the layers only once.
    """
    image = keras.Input(network.input_shape[1:], dtype="uint8", name="image")
    both = network(keras.ops.concatenate([image, keras.ops.flip(image, axis=2)]))
    pairs = keras.ops.reshape(both, (2, -1, network.output_shape[-1]))
    average = layers.Identity(dtype="float32", name=PREDICTIONS)(keras.ops.mean(pairs, axis=0))
    return keras.Model(image, average, name=f"{network.name}_and_mirror_image")


def features_of(network: keras.Model) -> keras.Model:
    """Return the layers below the head: image in, pooled features (B, C) out. The layers are shared."""
    return keras.Model(network.input, head_layers(network)[0].input, name="features")


def head_layers(network: keras.Model) -> list[keras.Layer]:
    """Return the layers between features and logits: a dropout, if there is one, and the dense layer.

    This also works for networks of earlier versions, whose head is one dense layer with a softmax.
    """
    names = {layer.name for layer in network.layers}
    dense = network.get_layer(LOGITS if LOGITS in names else PREDICTIONS)
    # By its place, since the backbone may have layers of any name, and earlier versions used another name.
    dropout = [layer for layer in network.layers if isinstance(layer, layers.Dropout) and layer.output is dense.input]
    return [*dropout, dense]


def head_weights(network: keras.Model) -> tuple:
    """Return the kernel (C, classes) and the bias (classes,) of a network's head."""
    return tuple(head_layers(network)[-1].get_weights())
