"""The dtype policy of a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras


@contextmanager
def mixed_bfloat16() -> Iterator[None]:
    """Let layers that are made in a ``with`` block compute in bfloat16."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
