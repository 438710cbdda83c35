"""Run a network with TensorFlow, on a GPU, or in bfloat16."""

import logging

import keras
import numpy as np
import tensorflow as tf

# Registers the layer, so that saved models with it can be loaded.
import carmodel.model.scale  # noqa: F401
from carmodel.data.threads import cores
from carmodel.training.precision import fast_bfloat16, gpus, onednn_bfloat16

CPU_SIZES = (4, 2, 1)
"""Batch sizes on a CPU. Larger batches spill activations out of the CPU cache."""

GPU_SIZES = (32, 16, 8, 4, 2, 1)
"""Batch sizes on a GPU, which needs many rows to be busy."""

logger = logging.getLogger(__name__)


class TensorFlowEngine:
    """A network in TensorFlow, traced once per batch size, when it is created.

    Keras's `predict` traces again when the batch size changes, in the middle of a request.

    Args:
        network: uint8 (B, H, W, 3) in, probabilities (B, C) out.
        image_size: side of the square images.
        bfloat16: whether oneDNN computes in bfloat16.

    Attributes:
        sizes: batch sizes, the largest one first.
        workers: number of batches to run at a time.
        classes: number of probabilities per image.
    """

    def __init__(self, network: keras.Model, image_size: int, bfloat16: bool = False) -> None:
        self.sizes: tuple[int, ...]
        self.sizes, self.workers = (GPU_SIZES, 1) if gpus() else (CPU_SIZES, cores())
        self.classes: int = network.output_shape[-1]
        self._bfloat16 = bfloat16
        shape = (image_size, image_size, 3)
        # XLA was slower than oneDNN on CPUs.
        call = tf.function(lambda images: network(images, training=False), autograph=False, jit_compile=False)
        self._traces = {
            size: call.get_concrete_function(tf.TensorSpec((size, *shape), tf.uint8)) for size in self.sizes
        }

    def start_thread(self) -> None:
        """Choose bfloat16 or float32 in this thread: TensorFlow keeps a copy of this option in each thread."""
        onednn_bfloat16(self._bfloat16)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities, float32 (B, C), of uint8 (B, H, W, 3), where B is one of `sizes`."""
        answers: np.ndarray = self._traces[len(images)](tf.constant(images)).numpy()
        return answers


def load_keras_file(file: str, image_size: int, precision: str) -> TensorFlowEngine:
    """Load a saved network, in float32 if bfloat16 is not faster on this processor.

    Args:
        file: a ``.keras`` file.
        image_size: side of the square images.
        precision: "float32" or "bfloat16".
    """
    bfloat16 = precision == "bfloat16" and bool(fast_bfloat16())
    if precision == "bfloat16" and not bfloat16:
        logger.warning("float32 is used, because bfloat16 is not faster on this processor")
    return TensorFlowEngine(keras.saving.load_model(file, compile=False), image_size, bfloat16)
