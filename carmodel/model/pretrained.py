"""Load weights into the residual network: those of Keras Applications' ResNet-50, -101 and -152, or its own."""

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
    """Load weights from a download or a file into a network of `carmodel.model.resnet.resnet`, except for its head.

    Args:
        model: the network to fill.
        depth: its depth.
        weights: "imagenet" (Keras downloads them), a weights file of Keras Applications' ResNet of the same depth (.h5 as
            published, or .weights.h5, with or without top), or a .weights.h5 or .keras file of this project's network.

    Raises:
        InputError: the file is missing, unreadable or of another network, Keras has no weights for the depth, or the
            download failed.
    """
    if weights == "imagenet":
        _published(depth, "imagenet")
        source = without_top(f"ResNet{depth}", "imagenet")
    else:
        source = _read(Path(weights), depth, model)
    try:
        (_copy_own if _FIRST in _names(source) else copy_weights)(source, model)
    except ValueError as error:
        raise InputError(f"weights: {weights!r} does not fit: {error}") from None


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copy the weights of a ResNet of `keras.applications` into this project's network, so that both give the same features.

    Keras computes ``BN(conv(x) + bias)``, and this project ``Scale(BN(conv(x)))``. The bias is subtracted from the moving
    mean, and Keras's gamma and beta become those of Scale. Keras's network takes BGR minus the mean, and this project's
    takes RGB minus the mean, divided by `STD`. The input channels of the first kernel are therefore reversed, and the
    kernel is multiplied by `STD`. Both subtract the mean before padding, so padding has the mean colour in both. The head
    is not copied, since a weights file has no class names.

    Args:
        source: `keras.applications.ResNet50`, `ResNet101` or `ResNet152`, with or without top.
        target: a network of `carmodel.model.resnet.resnet` of the same depth, with the standard width of 64.

    Raises:
        InputError: the two networks have different blocks, channels or strides. Nothing is copied.
    """
    twins = {layer.name: _twin(layer.name) for layer in target.layers if isinstance(layer, keras.layers.Conv2D)}
    theirs = {layer.name for layer in source.layers if isinstance(layer, keras.layers.Conv2D)}
    if set(twins.values()) != {name.removesuffix("_conv") for name in theirs}:
        raise InputError(f"{source.name} and {target.name} have different blocks")
    if source.get_layer("conv1_conv").filters != target.get_layer(_FIRST).filters:
        raise InputError(f"{source.name} and {target.name} have different widths; use width=64")
    if any(target.get_layer(name).strides != source.get_layer(f"{twin}_conv").strides for name, twin in twins.items()):
        raise InputError(f"{source.name} has its strides in the 1x1 convolutions; use stride_in_3x3=false")
    for name, twin in twins.items():
        kernel, bias = source.get_layer(f"{twin}_conv").get_weights()
        gamma, beta, mean, variance = source.get_layer(f"{twin}_bn").get_weights()
        if name == _FIRST:
            kernel = kernel[:, :, ::-1] * STD
        target.get_layer(name).set_weights([kernel])
        target.get_layer(name.replace("_conv", "_bn")).set_weights([mean - bias, variance])
        target.get_layer(name.replace("_conv", "_scale")).set_weights([gamma, beta])


def _twin(name: str) -> str:
    """Return the prefix of Keras's layers for a convolution of this project: conv2_block1_3 for stage2_block1_conv3."""
    return "conv1" if name == _FIRST else re.sub(r"stage(\d+_block\d+)_conv", r"conv\1_", name)


def _names(model: keras.Model) -> set[str]:
    return {layer.name for layer in model.layers}


def _published(depth: int, what: str) -> None:
    if depth not in PUBLISHED:
        depths = ", ".join(map(str, PUBLISHED))
        raise InputError(f"weights: {what!r} needs one of the depths {depths}, but depth={depth}")


def _read(path: Path, depth: int, target: keras.Model) -> keras.Model:
    """Load a file into a network of the kind and the number of classes that it was saved from.

    A weights file of this project's network does not contain its strides. It gets those of `target`.
    """
    if not path.is_file():
        raise InputError(f"weights: no file {str(path)!r}; give none, imagenet, or the path of a Keras weights file")
    if path.suffix == ".keras":
        return load_network(path)
    own, classes = _inspect(path)
    if own:
        width, in_3x3 = target.get_layer(_FIRST).filters, _strides_in_3x3(target)
        source = resnet(depth, classes or 1, width, stride_in_3x3=in_3x3)
    else:
        _published(depth, str(path))
        if classes is None:
            source = without_top(f"ResNet{depth}")
        else:
            source = getattr(keras.applications, f"ResNet{depth}")(weights=None, classes=classes)
    load_file(source, str(path))
    return source


def _inspect(path: Path) -> tuple[bool, int | None]:
    """Return whether an HDF5 weights file belongs to this project's network, and its number of classes or None.

    The number of classes is the number of columns of the only matrix, the kernel of the head.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with h5py.File(path) as file:
            file.visititems(lambda name, x: shapes.update({name: x.shape}) if isinstance(x, h5py.Dataset) else None)
    except OSError as error:
        raise InputError(f"weights: {str(path)!r} is not an HDF5 or .keras file: {error}") from None
    own = any(name.startswith("layers/scale/") for name in shapes)
    return own, next((shape[1] for shape in shapes.values() if len(shape) == 2), None)


def _copy_own(source: keras.Model, target: keras.Model) -> None:
    """Copy the weights of a network of this project to another one, except for the head."""
    theirs = {layer.name: layer.get_weights() for layer in source.layers if layer.weights and layer.name not in _HEAD}
    ours = {layer.name: layer for layer in target.layers if layer.weights and layer.name not in _HEAD}
    if {name: _shapes(weights) for name, weights in theirs.items()} != {
        name: _shapes(layer.get_weights()) for name, layer in ours.items()
    }:
        raise InputError(f"{source.name} and {target.name} have different blocks or channels")
    if _strides_in_3x3(source) != (ours_in_3x3 := _strides_in_3x3(target)):
        raise InputError(
            f"{source.name} has its strides in other layers; use stride_in_3x3={str(not ours_in_3x3).lower()}"
        )
    for name, layer in ours.items():
        layer.set_weights(theirs[name])


def _strides_in_3x3(network: keras.Model) -> bool:
    return network.get_layer("stage3_block1_conv2").strides != (1, 1)


def _shapes(weights: list[np.ndarray]) -> list[tuple[int, ...]]:
    return [weight.shape for weight in weights]
