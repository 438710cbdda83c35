"""Run a network on any number of photos, as small batches of fixed sizes in parallel."""

import os
from concurrent.futures import Future, ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from carmodel.training.precision import gpus, onednn_bfloat16

CPU_SIZES = (4, 2, 1)
"""Batch sizes on a CPU. Larger batches spill activations out of the CPU cache."""

GPU_SIZES = (32, 16, 8, 4, 2, 1)
"""Batch sizes on a GPU, which needs many rows to be busy."""


class Forward:
    """The forward pass of a network, traced once per batch size, when it is created.

    Keras's `predict` traces again when the batch size changes, in the middle of a request. The sizes are powers of two,
    so any number of rows is a sum of sizes and no row is padded. On a CPU, one batch per core runs at a time,
    even if there are more callers. This limits the memory.

    Args:
        network: uint8 (B, H, W, 3) in, probabilities (B, C) out.
        image_size: side of the square images.
        bfloat16: whether oneDNN computes in bfloat16.

    Attributes:
        largest: largest batch size.
        workers: number of batches that run at a time.
    """

    def __init__(self, network: keras.Model, image_size: int, bfloat16: bool = False) -> None:
        sizes, self.workers = (GPU_SIZES, 1) if gpus() else (CPU_SIZES, os.cpu_count() or 1)
        self.largest = sizes[0]
        self._classes = network.output_shape[-1]
        # TensorFlow keeps a copy of this option in each thread.
        self._pool = ThreadPoolExecutor(self.workers, "forward", initializer=onednn_bfloat16, initargs=(bfloat16,))
        shape = (image_size, image_size, 3)
        # XLA was slower than oneDNN on CPUs.
        call = tf.function(lambda images: network(images, training=False), autograph=False, jit_compile=False)
        self._traces = {size: call.get_concrete_function(tf.TensorSpec((size, *shape), tf.uint8)) for size in sizes}
        for size in sizes:  # the first call builds the kernels
            self(np.zeros((size, *shape), np.uint8))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities, float32 (N, C), of uint8 (N, H, W, 3). Many threads may call it at once."""
        started = [self.start(images[i : i + self.largest]) for i in range(0, len(images), self.largest)]
        return np.concatenate([np.empty((0, self._classes), np.float32), *(future.result() for future in started)])

    def start(self, images: np.ndarray) -> Future[np.ndarray]:
        """Queue a batch, uint8 (N, H, W, 3) with N up to `largest`. The result is float32 (N, C)."""
        return self._pool.submit(self._run, images)

    def _run(self, images: np.ndarray) -> np.ndarray:
        answers = []
        while len(images):
            size = next(size for size in self._traces if size <= len(images))
            answers.append(self._traces[size](tf.constant(images[:size])).numpy())
            images = images[size:]
        return np.concatenate(answers)
