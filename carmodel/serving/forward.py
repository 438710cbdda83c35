"""The forward pass for any number of photos, in traces of fixed sizes."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

SIZES = (32, 16, 8, 4, 2, 1)
"""Rows of a trace. Powers of two make any number without padding; the largest bounds the network's memory."""


class Forward:
    """A network's forward pass on the CPU or GPU, traced when it is made and never again.

    Keras's own `predict_on_batch` traces anew when the batch size changes, in the middle of a request.

    Args:
        network: uint8 (B, H, W, 3) in, probabilities (B, C) out.
        sizes: rows of the traces, the largest first. What is left below the smallest is padded with zeros.
    """

    def __init__(self, network: keras.Model, sizes: Sequence[int] = SIZES) -> None:
        self.sizes = tuple(sizes)
        self._image = network.input_shape[1:]
        self._classes = network.output_shape[-1]
        # XLA was slower than oneDNN on CPUs.
        call = tf.function(lambda images: network(images, training=False), autograph=False, jit_compile=False)
        self._traces = {
            size: call.get_concrete_function(tf.TensorSpec((size, *self._image), tf.uint8)) for size in self.sizes
        }
        for size in self.sizes:  # the first call of each builds its kernels
            self(np.zeros((size, *self._image), np.uint8))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Turn uint8 (N, H, W, 3) into float32 (N, C), for any N. Threads may call it at the same time."""
        answers = [np.empty((0, self._classes), np.float32)]
        start = 0
        while start < len(images):
            size = next((size for size in self.sizes if size <= len(images) - start), self.sizes[-1])
            part = images[start : start + size]
            if len(part) < size:
                part = np.concatenate([part, np.zeros((size - len(part), *self._image), np.uint8)])
            answers.append(self._traces[size](tf.constant(part)).numpy()[: len(images) - start])
            start += size
        return np.concatenate(answers)
