"""The forward pass for any number of photos: small batches of fixed sizes, side by side."""

import os
from concurrent.futures import Future, ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from carmodel.training.precision import gpus, onednn_bfloat16

CPU_SIZES = (4, 2, 1)
"""Rows of a batch on a CPU. What more rows leave behind between two layers does not stay in the processor's cache."""

GPU_SIZES = (32, 16, 8, 4, 2, 1)
"""Rows of a batch on a GPU, which only many rows keep busy."""


class Forward:
    """A network's forward pass, traced when it is made and never again.

    Keras's own `predict` traces anew when the batch size changes, in the middle of a request. The sizes are powers of
    two, so that any number of rows is a sum of them and none is padded. On a CPU as many batches run at a time as there
    are cores, whatever the number of callers, which bounds the memory.

    Args:
        network: uint8 (B, H, W, 3) in, probabilities (B, C) out.
        image_size: side of the square images.
        bfloat16: whether oneDNN computes in bfloat16, where the processor has it.

    Attributes:
        largest: most rows of a batch.
        workers: batches that run at a time.
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
        for size in sizes:  # the first call of each builds its kernels
            self(np.zeros((size, *shape), np.uint8))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Turn uint8 (N, H, W, 3) into float32 (N, C), for any N. Threads may call it at the same time."""
        started = [self.start(images[i : i + self.largest]) for i in range(0, len(images), self.largest)]
        return np.concatenate([np.empty((0, self._classes), np.float32), *(future.result() for future in started)])

    def start(self, images: np.ndarray) -> Future[np.ndarray]:
        """Queue a batch, uint8 (N, H, W, 3) with N up to `largest`; its result is float32 (N, C)."""
        return self._pool.submit(self._run, images)

    def _run(self, images: np.ndarray) -> np.ndarray:
        answers = []
        while len(images):
            size = next(size for size in self._traces if size <= len(images))
            answers.append(self._traces[size](tf.constant(images[:size])).numpy())
            images = images[size:]
        return np.concatenate(answers)
