"""Convert a Keras model to ONNX, the format that ONNX Runtime reads."""

import logging
import os
from functools import partial
from tempfile import TemporaryDirectory

import keras
import tensorflow as tf

from carmodel.quiet_tensorflow import stderr_hidden

OPSET = 17

NO_COPIES = "TF2ONNX_CATCH_ERRORS"
"""Whatever the value of this variable, tf2onnx makes no copies of all weights before each of its optimizations."""


def to_onnx(network: keras.Model, image_size: int) -> bytes:
    """Convert a network with tf2onnx (https://github.com/onnx/tensorflow-onnx).

    `network.export(format="onnx")` makes inputs of the constants of Keras's `Normalization`. A SavedModel keeps them as
    constants, so the network is saved as one first. TensorFlow's own function saves it faster than `network.export`, and the
    conversion returns the same weights. The copies that tf2onnx makes to undo failed optimizations take 0.3 to 0.4 of the
    time, so they are made only if one fails.

    Args:
        network: uint8 (B, H, W, 3) in, probabilities (B, C) out.
        image_size: side of the square images.

    Returns:
        the ONNX model, with the same input and output, for any batch size.

    Raises:
        Exception: tf2onnx cannot convert an operation of the network, and raises exceptions of several types.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in network.variables]
    call = tf.function(lambda image: network(image, training=False), autograph=False)
    image = tf.TensorSpec((None, image_size, image_size, 3), tf.uint8, name="image")
    with TemporaryDirectory(prefix="carmodel-") as folder, stderr_hidden():
        import tf2onnx
        from tf2onnx import tf_loader

        for noisy in ("tf2onnx", "tensorflow"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        tf.saved_model.save(module, folder, signatures={"serve": call.get_concrete_function(image)})
        graph, inputs, outputs = tf_loader.from_saved_model(folder, None, None, tag="serve", signatures=["serve"])
        convert = partial(tf2onnx.convert.from_graph_def, graph, input_names=inputs, output_names=outputs, opset=OPSET)
        os.environ[NO_COPIES] = "FALSE"
        try:
            model, _ = convert()
        except Exception:  # an optimization failed, which tf2onnx can undo if it has copies
            del os.environ[NO_COPIES]
            model, _ = convert()
        finally:
            os.environ.pop(NO_COPIES, None)
    converted: bytes = model.SerializeToString()
    return converted
