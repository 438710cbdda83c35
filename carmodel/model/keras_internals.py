"""The private interfaces of Keras that this project uses.

Each has a test in ``tests/test_keras_internals.py``, so that an upgrade of Keras shows what it breaks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import KerasTensor, Operation, Variable


def inputs_of_calls(operation: Operation, model: keras.Model) -> list[list[KerasTensor]]:
    """Return the input tensors of each call of an operation in a functional model.

    The public `Operation.input` knows the first call only, so it does not show that a layer is shared. Calls in other
    models, such as one that trains the same layers, do not count.
    """
    own = {id(node) for nodes in model._nodes_by_depth.values() for node in nodes}
    return [list(node.input_tensors) for node in operation._inbound_nodes if id(node) in own]


def index_of(optimizer: keras.optimizers.Optimizer, variable: Variable) -> int:
    """Return the position of a variable among those that an optimizer was built for.

    Inside `update_step`, `variable` is a variable of the backend, which has no public link to the Keras variable.
    """
    return optimizer._get_variable_index(variable)


def change_gradients(optimizer: keras.optimizers.Optimizer, change: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
    """Make an optimizer apply a function to the gradients of every update, before it clips them.

    The public `Optimizer.apply` also receives the gradients of micro-batches, which Keras accumulates inside it. A
    subclass would have another name in saved files, so the optimizer is changed in place.
    """
    clip = optimizer._clip_gradients
    optimizer._clip_gradients = lambda gradients: clip(change(gradients))


def has_changed_gradients(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether `change_gradients` was called for an optimizer."""
    return "_clip_gradients" in vars(optimizer)
