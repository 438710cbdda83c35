"""Weights for the residual network: exactly those of Keras Applications' ResNet-50, -101 and -152, or its own."""

import re
from pathlib import Path

import h5py
import keras
import numpy as np

from carmodel.errors import InputError
from carmodel.model.backbone import load_file, load_network, without_top
from carmodel.model.head import LOGITS, PREDICTIONS
from carmodel.model.resnet import STD, resnet
from carmodel.parameters import PUBLISHED

_FIRST = "stem_conv1"
_HEAD = (LOGITS, PREDICTIONS)


def load_resnet_weights(model: keras.Model, depth: int, weights: str) -> None:
    """Fill a network of `carmodel.model.resnet.resnet` from a download or a file. The head keeps its own weights.

    Args:
        model: the network to fill.
        depth: its depth.
        weights: "imagenet" (Keras downloads them, without a head); a weights file of Keras Applications' ResNet of that
            depth (.h5 as published or .weights.h5, with or without top); or a .weights.h5 or .keras of our own network.

    Raises:
        InputError: a missing, unreadable or unfitting file, a depth that Keras has not, or a failed download.
    """
    if weights == "imagenet":
        _published(depth, "imagenet")
        source = without_top(f"ResNet{depth}", "imagenet")
    else:
        source = _read(Path(weights), depth, model.get_layer(_FIRST).filters)
    try:
        (_copy_own if _FIRST in _names(source) else copy_weights)(source, model)
    except ValueError as error:
        raise InputError(f"weights: {weights!r} does not fit: {error}") from None


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copy a ResNet of `keras.applications` into ours, exactly: the same photos then give the same answers.

    With theirs ``BN(conv(x) + bias)`` and ours ``Scale(BN(conv(x)))``, the bias goes into the moving mean (mean - bias)
    and their gamma and beta into Scale. Their network sees BGR minus the mean, ours RGB minus the mean, divided by
    `STD`: the first kernel has its input channels reversed and is multiplied by `STD`. The mean is subtracted before
    the padding in both, so zeros mean the mean colour in both. The head is not copied: a weights file has no class names.

    Args:
        source: `keras.applications.ResNet50`, `ResNet101` or `ResNet152`, with or without top.
        target: the network of `carmodel.model.resnet.resnet` of that depth, with the standard width of 64.

    Raises:
        InputError: the two have other blocks or channels; nothing is copied then.
    """
    twins = {layer.name: _twin(layer.name) for layer in target.layers if isinstance(layer, keras.layers.Conv2D)}
    theirs = {layer.name for layer in source.layers if isinstance(layer, keras.layers.Conv2D)}
    if set(twins.values()) != {name.removesuffix("_conv") for name in theirs}:
        raise InputError(f"{source.name} has other blocks than {target.name}")
    if source.get_layer("conv1_conv").filters != target.get_layer(_FIRST).filters:
        raise InputError(f"{source.name} has 64 channels in its first stage, {target.name} another width")
    for name, twin in twins.items():
        kernel, bias = source.get_layer(f"{twin}_conv").get_weights()
        gamma, beta, mean, variance = source.get_layer(f"{twin}_bn").get_weights()
        if name == _FIRST:
            kernel = kernel[:, :, ::-1] * STD
        target.get_layer(name).set_weights([kernel])
        target.get_layer(name.replace("_conv", "_bn")).set_weights([mean - bias, variance])
        target.get_layer(name.replace("_conv", "_scale")).set_weights([gamma, beta])


def _twin(name: str) -> str:
    """Keras's name for the layers of a convolution of ours: stage2_block1_conv3 is conv2_block1_3."""
    return "conv1" if name == _FIRST else re.sub(r"stage(\d+_block\d+)_conv", r"conv\1_", name)


def _names(model: keras.Model) -> set[str]:
    return {layer.name for layer in model.layers}


def _published(depth: int, what: str) -> None:
    if depth not in PUBLISHED:
        depths = ", ".join(map(str, PUBLISHED))
        raise InputError(f"weights: {what!r} is for the depths {depths} of Keras Applications; depth {depth} has none")


def _read(path: Path, depth: int, width: int) -> keras.Model:
    """Read a file into a network of the kind that it was written from, whatever its number of classes."""
    if not path.is_file():
        raise InputError(f"weights: no file {str(path)!r}; give none, imagenet, or the path of a Keras weights file")
    if path.suffix == ".keras":
        return load_network(path)
    own, classes = _inspect(path)
    if own:
        source = resnet(depth, classes or 1, width)
    else:
        _published(depth, str(path))
        if classes is None:
            source = without_top(f"ResNet{depth}")
        else:
            source = getattr(keras.applications, f"ResNet{depth}")(weights=None, classes=classes)
    load_file(source, str(path))
    return source


def _inspect(path: Path) -> tuple[bool, int | None]:
    """Tell whether an HDF5 weights file is of our network, and its classes: columns of its one matrix, the head's."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with h5py.File(path) as file:
            file.visititems(lambda name, x: shapes.update({name: x.shape}) if isinstance(x, h5py.Dataset) else None)
    except OSError as error:
        raise InputError(f"weights: {str(path)!r} is not an HDF5 or .keras file: {error}") from None
    own = any(name.startswith("layers/scale/") for name in shapes)
    return own, next((shape[1] for shape in shapes.values() if len(shape) == 2), None)


def _copy_own(source: keras.Model, target: keras.Model) -> None:
    """Copy a network of this project into another, without the head."""
    theirs = {layer.name: layer.get_weights() for layer in source.layers if layer.weights and layer.name not in _HEAD}
    ours = {layer.name: layer for layer in target.layers if layer.weights and layer.name not in _HEAD}
    if {name: _shapes(weights) for name, weights in theirs.items()} != {
        name: _shapes(layer.get_weights()) for name, layer in ours.items()
    }:
        raise InputError(f"{source.name} has other blocks or channels than {target.name}")
    for name, layer in ours.items():
        layer.set_weights(theirs[name])


def _shapes(weights: list[np.ndarray]) -> list[tuple[int, ...]]:
    return [weight.shape for weight in weights]
