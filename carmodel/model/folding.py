"""Fold batch normalisation and Scale into the convolution before them: same answers, fewer passes over memory."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import Operation, layers

from carmodel.model.keras_internals import inputs_of_calls
from carmodel.model.scale import Scale


class Affine(NamedTuple):
    """A convolution, and the affine map ``gain * y + offset`` of its output ``y`` that the layers after it compute.

    Attributes:
        convolution: the layer.
        gain: float64 (C,).
        offset: float64 (C,).
    """

    convolution: layers.Layer
    gain: np.ndarray
    offset: np.ndarray


def fold(model: keras.Model) -> keras.Model:
    """Return a copy for inference with batch normalisations and Scales folded into convolutions.

    At inference, both layers are an affine map of each channel. For example, batch normalisation is
    ``(y - mean) / sqrt(variance + epsilon)``. The map moves into the kernel and the bias of the convolution (Jacob et al.
    2018, https://arxiv.org/abs/1712.05877, section 3.2)::

        a * (W x + b) + c = (a W) x + (a b + c)

    This is exact apart from rounding, with any padding, since the input is padded before the kernel is applied. A layer
    is folded if its input is the output of a `Conv2D` or `DepthwiseConv2D` without activation, with channels last, and no
    other layer uses that output. Other layers are copied unchanged. Models inside the model are folded too.

    Args:
        model: a functional model. It is not changed, and shares no weights with the copy.

    Returns:
        a functional model with the same inputs and outputs.
    """
    affine = {key: folded for graph in _graphs(model) for key, folded in _foldable(graph).items()}

    def changes(operation: Operation) -> dict[str, Any] | None:
        if folded := affine.get(id(operation)):
            return {"use_bias": True} if folded.convolution is operation else None
        return {}

    def weights(layer: layers.Layer) -> list[np.ndarray]:
        return _folded_weights(affine[id(layer)]) if id(layer) in affine else layer.get_weights()

    return _copy(model, changes, weights)


def in_float32(model: keras.Model) -> keras.Model:
    """Return a copy that computes in float32, or `model` itself if it already does. Its weights are float32 in any case."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model
    return _copy(
        model,
        lambda operation: {"dtype": "float32"} if isinstance(operation, layers.Layer) else {},
        lambda layer: layer.get_weights(),
    )


def _copy(
    model: keras.Model,
    changes: Callable[[Operation], dict[str, Any] | None],
    weights: Callable[[layers.Layer], list[np.ndarray]],
) -> keras.Model:
    """Copy a functional model, with changes.

    Args:
        model: the model.
        changes: returns the changes of an operation's config, or None to remove the operation.
        weights: returns the weights of the copy of a layer.
    """
    pairs: list[tuple[Operation, Operation]] = []

    def clone(operation: Operation) -> Operation:
        if (changed := changes(operation)) is None:
            return layers.Identity(name=operation.name)
        pairs.append((operation, type(operation).from_config(operation.get_config() | changed)))
        return pairs[-1][1]

    def call(operation: Operation, *arguments: Any, **keywords: Any) -> Any:
        return arguments[0] if isinstance(operation, layers.Identity) else operation(*arguments, **keywords)

    copy = keras.models.clone_model(model, clone_function=clone, call_function=call, recursive=True)
    for original, twin in pairs:
        if isinstance(original, layers.Layer):
            set_weights(twin, weights(original))
    return copy


def set_weights(layer: layers.Layer, weights: list[np.ndarray]) -> None:
    """Set the weights of a layer, and what it derives from them.

    The networks EfficientNetB0 to B7 contain a `Normalization` that has seen data. It normalises with numbers that it
    derives from its weights, and Keras derives them only when a model is loaded.
    """
    layer.set_weights(weights)
    if isinstance(layer, layers.Normalization):
        layer.finalize_state()


def is_functional(model: keras.Model) -> bool:
    """Return whether a model is a graph of operations, which Keras can copy with changes."""
    return hasattr(model, "operations")


def _graphs(model: keras.Model) -> list[keras.Model]:
    """Return the model and the functional models inside it, at any depth."""
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    own = [model] if is_functional(model) else []
    return own + [graph for each in inner for graph in _graphs(each)]


def foldable_chains(model: keras.Model) -> list[list[layers.Layer]]:
    """Return each convolution of a graph that absorbs other layers, followed by these layers in their order."""
    return [chain for chain in chains(model, _takes_a_bias, _is_affine) if len(chain) > 1]


def chains(
    model: keras.Model, starts: Callable[[Operation], bool], follows: Callable[[Operation], bool]
) -> list[list[layers.Layer]]:
    """Return the chains of layers of a graph in which each layer is the only one that uses the output of the one before.

    Args:
        model: a functional model. Layers that are called more than once are in no chain.
        starts: whether an operation is the first of a chain.
        follows: whether an operation can be a later one.
    """
    calls = [inputs_of_calls(operation, model) for operation in model.operations]
    once = [operation for operation, own in zip(model.operations, calls, strict=True) if len(own) == 1]
    used = [tensor for own in calls for call in own for tensor in call]
    uses = Counter(id(tensor) for tensor in [*used, *model.outputs])
    found: list[list[layers.Layer]] = []
    ends: dict[int, list[layers.Layer]] = {}  # the chain that ends at a tensor, by the id of the tensor
    for operation in once:
        if starts(operation):
            found.append([operation])
            ends[id(operation.output)] = found[-1]
        elif (chain := ends.get(id(operation.input))) and uses[id(operation.input)] == 1 and follows(operation):
            chain.append(operation)
            ends[id(operation.output)] = chain
    return found


def with_replaced_chains(
    network: keras.Model,
    chains: list[list[layers.Layer]],
    replacement: Callable[[list[layers.Layer]], layers.Layer],
    keywords: Callable[[layers.Layer], dict[str, Any]] = lambda layer: {},
) -> keras.Model:
    """Return a model in which one layer computes what the layers of a chain compute. All other layers are shared.

    Args:
        network: a functional model. It is not changed.
        chains: some of its chains, from `chains`.
        replacement: returns the new layer for a chain.
        keywords: returns further arguments of the call of a layer.
    """
    first = {id(chain[0]): chain for chain in chains}
    followers = {id(layer) for chain in chains for layer in chain[1:]}

    def clone(layer: layers.Layer) -> layers.Layer:
        if id(layer) in followers:
            return layers.Identity(name=layer.name)
        return replacement(first[id(layer)]) if id(layer) in first else layer

    def call(layer: layers.Layer, *arguments: Any, **given: Any) -> Any:
        return arguments[0] if isinstance(layer, layers.Identity) else layer(*arguments, **given | keywords(layer))

    return keras.models.clone_model(network, clone_function=clone, call_function=call)


def _foldable(model: keras.Model) -> dict[int, Affine]:
    """Return the affine map of each chain of a graph, by the id of each of its layers."""
    return {id(layer): folded for chain in foldable_chains(model) for folded in [_affine(chain)] for layer in chain}


def _takes_a_bias(operation: Operation) -> bool:
    return (
        type(operation) in (layers.Conv2D, layers.DepthwiseConv2D)
        and operation.activation is keras.activations.linear
        and operation.data_format == "channels_last"
    )


def _is_affine(operation: Operation) -> bool:
    return type(operation) is Scale or (type(operation) is layers.BatchNormalization and operation.axis in (-1, 3))


def _affine(chain: list[layers.Layer]) -> Affine:
    convolution, *followers = chain
    offset = _numbers(convolution.bias) if convolution.use_bias else 0.0
    return Affine(convolution, *gain_and_offset(followers, offset, _numbers))


def gain_and_offset(
    followers: list[layers.Layer], offset: Any, read: Callable[[keras.Variable], Any]
) -> tuple[Any, Any]:
    """Return the gain and the offset of the affine map that layers compute one after another, (C,) each.

    Args:
        followers: at least one batch normalisation, with its stored statistics, or `Scale`.
        offset: an offset that was added before, (C,) or 0.
        read: returns the value of a variable, as an array or as a tensor.
    """
    gain: Any = 1.0
    for layer in followers:
        if isinstance(layer, Scale):
            own_gain, own_offset = read(layer.gamma), read(layer.beta)
        else:
            own_gain = (read(layer.moving_variance) + layer.epsilon) ** -0.5
            if layer.scale:
                own_gain = own_gain * read(layer.gamma)
            own_offset = -own_gain * read(layer.moving_mean)
            if layer.center:
                own_offset = own_offset + read(layer.beta)
        gain, offset = gain * own_gain, offset * own_gain + own_offset
    return gain, offset


def _folded_weights(folded: Affine) -> list[np.ndarray]:
    kernel = _numbers(folded.convolution.kernel)
    # A depthwise kernel is (height, width, input channels, multiplier), and its output channels have the same order.
    depthwise = isinstance(folded.convolution, layers.DepthwiseConv2D)
    by_channel = folded.gain.reshape(kernel.shape[2:] if depthwise else -1)
    return [(kernel * by_channel).astype("float32"), folded.offset.astype("float32")]


def _numbers(weight: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight).astype("float64")
