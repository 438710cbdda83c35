"""Convert a Keras model to ONNX, the format that ONNX Runtime reads."""

import logging
import os
from tempfile import TemporaryDirectory

import keras
import tensorflow as tf

from carmodel.quiet_tensorflow import stderr_hidden

OPSET = 17

# Otherwise tf2onnx copies all weights before each of its optimizations, to undo one that fails. The copies take 0.3 to 0.4
# of the time. Without them, the conversion fails if an optimization does, and TensorFlow runs the network.
os.environ.setdefault("TF2ONNX_CATCH_ERRORS", "FALSE")


def to_onnx(network: keras.Model, image_size: int) -> bytes:
    """Convert a network with tf2onnx (https://github.com/onnx/tensorflow-onnx).

    `network.export(format="onnx")` makes inputs of the constants of Keras's `Normalization`. A SavedModel keeps them as
    constants, so the network is saved as one first. TensorFlow's own function saves it faster than `network.export`, and the
    conversion returns the same weights.

    Args:
        network: uint8 (B, H, W, 3) in, probabilities (B, C) out.
        image_size: side of the square images.

    Returns:
        the ONNX model, with the same input and output, for any batch size.

    Raises:
        Exception: tf2onnx cannot convert an operation of the network, or one of its optimizations fails. It raises exceptions
            of several types.
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
        model, _ = tf2onnx.convert.from_graph_def(graph, input_names=inputs, output_names=outputs, opset=OPSET)
    converted: bytes = model.SerializeToString()
    return converted
