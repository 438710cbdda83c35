"""Batch normalisation and Scale folded into the convolution before them: the same answers, fewer passes over memory."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import Operation, layers

from carmodel.model.keras_internals import inputs_of_calls
from carmodel.model.scale import Scale


class Affine(NamedTuple):
    """A convolution and what the layers after it do to its output ``y``: ``gain * y + offset``, float64 (C,) each."""

    convolution: layers.Layer
    gain: np.ndarray
    offset: np.ndarray


def fold(model: keras.Model) -> keras.Model:
    """Return a copy for inference in which convolutions have taken in the normalisations and Scales that follow them.

    At inference both layers are an affine map of each channel, ``BN(y) = (y - mean) / sqrt(variance + epsilon)``, which
    is moved into the kernel and the bias (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2)::

        a * (W x + b) + c = (a W) x + (a b + c)

    That is exact but for rounding, also where the convolution pads, since padding comes before the kernel. A layer is
    folded when its input is the output of a `Conv2D` or `DepthwiseConv2D` without activation, channels last, that
    nothing else uses; the others are copied as they are. Models inside the model are folded too.

    Args:
        model: a functional model. It stays as it is; no weights are shared with the copy.

    Returns:
        A functional model with the same inputs and outputs.
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
    """Return a copy that computes in float32, or `model` itself if it does so already. The weights are float32 anyway."""
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
    """Copy a model with changed configurations and weights; an operation whose changes are None is left out."""
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
            twin.set_weights(weights(original))
    return copy


def _graphs(model: keras.Model) -> list[keras.Model]:
    """`model` and the functional models inside it, at any depth."""
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    own = [] if isinstance(model, keras.Sequential) else [model]
    return own + [graph for each in inner for graph in _graphs(each)]


def foldable_chains(model: keras.Model) -> list[list[layers.Layer]]:
    """Return each convolution of a graph that folds, followed by its normalisations and Scales in their order."""
    once = [operation for operation in model.operations if len(inputs_of_calls(operation)) == 1]
    used = [tensor for operation in model.operations for call in inputs_of_calls(operation) for tensor in call]
    uses = Counter(id(tensor) for tensor in [*used, *model.outputs])
    chains: list[list[layers.Layer]] = []
    ends: dict[int, list[layers.Layer]] = {}  # by the id of a tensor: the chain whose last output it is
    for operation in once:
        if _takes_a_bias(operation):
            chains.append([operation])
            ends[id(operation.output)] = chains[-1]
        elif (chain := ends.get(id(operation.input))) and uses[id(operation.input)] == 1 and _is_affine(operation):
            chain.append(operation)
            ends[id(operation.output)] = chain
    return [chain for chain in chains if len(chain) > 1]


def _foldable(model: keras.Model) -> dict[int, Affine]:
    """The operations of a graph that fold, by id: each convolution with all that follows it, and each follower."""
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
    channels = convolution.output.shape[-1]
    gain, offset = np.ones(channels), _numbers(convolution.bias) if convolution.use_bias else np.zeros(channels)
    for layer in followers:
        own_gain, own_offset = _gain_and_offset(layer)
        gain, offset = gain * own_gain, offset * own_gain + own_offset
    return Affine(convolution, gain, offset)


def _gain_and_offset(layer: layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(layer, Scale):
        return _numbers(layer.gamma), _numbers(layer.beta)
    gain = 1.0 / np.sqrt(_numbers(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        gain = gain * _numbers(layer.gamma)
    offset = -gain * _numbers(layer.moving_mean)
    return gain, offset + _numbers(layer.beta) if layer.center else offset


def _folded_weights(folded: Affine) -> list[np.ndarray]:
    kernel = _numbers(folded.convolution.kernel)
    # A depthwise kernel is (height, width, channels in, multiplier), its outputs in that order.
    depthwise = isinstance(folded.convolution, layers.DepthwiseConv2D)
    by_channel = folded.gain.reshape(kernel.shape[2:] if depthwise else -1)
    return [(kernel * by_channel).astype("float32"), folded.offset.astype("float32")]


def _numbers(weight: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight).astype("float64")
