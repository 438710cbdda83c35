"""The classifier head that every network ends with."""

import keras
from keras import KerasTensor

HEAD = "predictions"


def head(pooled: KerasTensor, classes: int) -> KerasTensor:
    """Turn pooled features (B, C) into float32 probabilities (B, classes) with a softmax layer named "predictions".

    The layer stays float32 under a mixed-precision policy: a softmax in 16 bits loses the small probabilities.
    """
    return keras.layers.Dense(classes, activation="softmax", dtype="float32", name=HEAD)(pooled)
