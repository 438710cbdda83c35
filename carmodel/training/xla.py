"""Compile a part of the training step with XLA on a CPU, where the rest of the step is not compiled."""

from collections.abc import Callable
from functools import cache
from typing import Any

from carmodel.training.precision import tensorflow_on_cpu


def compiled_on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of tensors with XLA under TensorFlow on a CPU.

    XLA combines many small operations into few, which makes augmentation about twice as fast. On GPUs, and under other
    backends, Keras compiles the whole step where it can, so the function is returned as it is.
    """
    if not tensorflow_on_cpu():
        return function
    import tensorflow as tf

    _start_quietly()
    return tf.function(function, jit_compile=True)


@cache
def _start_quietly() -> None:
    """Start XLA. It announces itself when it first compiles, whatever ``TF_CPP_MIN_LOG_LEVEL`` is, so this is hidden."""
    import tensorflow as tf

    from carmodel.quiet_tensorflow import stderr_hidden

    with stderr_hidden():
        tf.function(lambda: tf.constant(0) + 0, jit_compile=True)()
