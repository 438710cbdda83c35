"""Give batches to Keras so that no call waits for tf.data."""

from typing import Any

import keras

from carmodel.training.batches import Batches

PREFETCHED = 2
"""Batches that are prepared while the device computes."""


def as_dataset(batches: Batches) -> Any:
    """Return batches as a data set of the Keras backend, for `fit` and `predict`. It starts again in each epoch.

    For a `PyDataset`, Keras makes a tf.data pipeline that tunes itself, see `untuned`.

    Args:
        batches: for training or validation.

    Returns:
        a `tf.data.Dataset` under TensorFlow, and `batches` under another backend.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    def signature(array: Any) -> tf.TensorSpec:
        return tf.TensorSpec((None, *array.shape[1:]), array.dtype)

    dataset = tf.data.Dataset.from_generator(
        lambda: (batches[step] for step in range(len(batches))),
        output_signature=keras.tree.map_structure(signature, batches[0]),
    )
    counted = dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))
    return untuned(counted.prefetch(PREFETCHED))


def untuned(dataset: Any) -> Any:
    """Return a `tf.data.Dataset` that does not tune itself.

    The thread that tunes a pipeline sleeps twice as long each time, from 10 ms up to a minute (``OptimizeLoop`` in
    tensorflow/core/framework/model.cc). The end of an iteration may have to wait until the thread wakes up, so an epoch of
    11 s takes 11 or 20 s.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
