"""Backbones from elsewhere with this project's head: networks of `keras.applications`, and saved Keras models."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import KerasTensor, layers

from carmodel.errors import InputError
from carmodel.model.folding import set_weights
from carmodel.model.head import head


def application(name: str, classes: int, weights: str = "none", dropout: float = 0.0) -> keras.Model:
    """Build a network of `keras.applications` with this project's head.

    Input: "image", uint8 (B, H, W, 3), RGB, any height and width. Output: "predictions", float32 (B, classes), softmax.
    The network contains its `preprocess_input`, as a standard layer. It is flat: the backbone's layers are layers of the
    network, not a model inside a layer.

    Args:
        name: one of `carmodel.parameters.applications.APPLICATIONS`.
        classes: number of classes.
        weights: "none", "imagenet" (Keras downloads them), or a Keras weights file of the network without its top.
        dropout: dropout rate of the head.

    Raises:
        InputError: the weights file is missing or does not fit, or the download failed.
    """
    function = getattr(keras.applications, name)
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    reverse, mean, variance = _preprocessing(sys.modules[function.__module__].preprocess_input)
    x = keras.ops.flip(image, axis=-1) if reverse else image
    # Always in float32, since 16 bits would round the mean.
    x = layers.Normalization(mean=mean, variance=variance, dtype="float32", name="preprocess")(x)
    return put_head(image, apply_flat(without_top(name, weights), x), classes, dropout, name)


def saved_backbone(file: str | Path, classes: int, dropout: float = 0.0) -> keras.Model:
    """Build a network from a saved Keras model without its top, with this project's head.

    Input and output are those of `application`. The saved model takes RGB values from 0 to 255, (B, H, W, 3) with any
    height and width. It returns a feature map (B, h, w, C), which is averaged over its positions, or features (B, C).

    Args:
        file: a ``.keras`` file.
        classes: number of classes.
        dropout: dropout rate of the head.

    Raises:
        InputError: the file is missing or is not a Keras model, or the model has another input or output.
    """
    backbone = load_network(file)
    if len(backbone.inputs) != 1 or tuple(backbone.input_shape[1:]) != (None, None, 3):
        raise InputError(f"backbone={file} takes {backbone.input_shape}; it must take images (None, None, None, 3)")
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    x = apply_flat(backbone, layers.Rescaling(1.0, dtype="float32", name="to_float")(image))
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    if len(x.shape) != 2:
        raise InputError(f"backbone={file} returns {backbone.output_shape}; it must return a feature map or features")
    return put_head(image, x, classes, dropout, Path(file).stem.replace(".", "_"))


def put_head(image: KerasTensor, features: KerasTensor, classes: int, dropout: float, name: str) -> keras.Model:
    """Return the network from `image` through `features` (B, C) to a new head."""
    network = keras.Model(image, head(features, classes, dropout), name=name)
    # The layers from `apply_flat` also belong to the graph of an intermediate model. Those of a clone do not.
    clone = keras.models.clone_model(network)
    for layer in network.layers:
        set_weights(clone.get_layer(layer.name), layer.get_weights())
    return clone


def load_network(file: str | Path) -> keras.Model:
    """Load a saved Keras model, without its optimizer.

    Raises:
        InputError: the file is missing or is not a Keras model that can be loaded.
    """
    if not Path(file).is_file():
        raise InputError(f"{file}: no such file; give the path of a saved Keras model, such as FILE.keras")
    # Importing the layer registers it with Keras.
    from carmodel.model.scale import Scale

    try:
        model = keras.saving.load_model(file, custom_objects={"Scale": Scale}, compile=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{file} is not a Keras model that this version can load: {error}") from error
    if not isinstance(model, keras.Model):
        raise InputError(f"{file} contains a {type(model).__name__}, not a Keras model")
    return model


def apply_flat(network: keras.Model, x: KerasTensor) -> KerasTensor:
    """Apply copies of the layers of a network to `x`, one by one, so that they become layers of the model around it.

    The copies have the dtype policy of this process, whatever the policy of the saved layers. Layers that scale the input
    stay float32, since 16 bits would round pixels.

    Args:
        network: a functional model with one input and one output.
        x: its input in the new model.

    Returns:
        its output in the new model.
    """
    outputs: list[KerasTensor] = []
    copies: list[tuple[keras.Layer, keras.Layer]] = []

    def clone(layer: keras.Layer) -> keras.Layer:
        settings = layer.get_config()
        if "dtype" in settings:
            exact = isinstance(layer, layers.Normalization | layers.Rescaling)
            settings["dtype"] = "float32" if exact else keras.config.dtype_policy().name
        copies.append((layer, type(layer).from_config(settings)))
        return copies[-1][1]

    def call(layer: keras.Layer, *arguments: object, **keywords: object) -> object:
        outputs.append(layer(*arguments, **keywords))
        return outputs[-1]

    keras.models.clone_model(network, input_tensors=x, clone_function=clone, call_function=call)
    for layer, copy in copies:
        if isinstance(layer, keras.Layer):
            set_weights(copy, layer.get_weights())
    # Operations are called in the order of the graph, so the output of the network comes last.
    return outputs[-1]


def without_top(name: str, weights: str = "none") -> keras.Model:
    """Build a network of `keras.applications` without its top: preprocessed (B, H, W, 3) in, pooled features (B, C) out.

    Args:
        name: see `application`.
        weights: see `application`.

    Raises:
        InputError: see `application`.
    """
    function = getattr(keras.applications, name)
    downloads = weights == "imagenet"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`input_shape` is undefined")
            backbone = function(
                weights="imagenet" if downloads else None, include_top=False, pooling="avg", input_shape=(None, None, 3)
            )
    except ValueError as error:
        raise InputError(f"backbone={name}: {error}") from None
    except Exception as error:  # Keras raises a bare Exception when a download fails.
        if not downloads:
            raise
        raise InputError(
            f"weights: Keras could not download the imagenet weights of {name} ({error}). If this machine has no internet "
            "access, copy the file to it and give its path as weights"
        ) from error
    if weights not in ("none", "imagenet"):
        load_file(backbone, weights)
        if name.startswith("EfficientNetB"):
            _divide_by_root_of_deviation(backbone)
    return backbone


def _divide_by_root_of_deviation(backbone: keras.Model) -> None:
    """Make an EfficientNetB0 to B7 also divide its normalised input by the root of the standard deviation.

    The ImageNet weights need this, and Keras adds the division for ``weights="imagenet"`` only. Without ImageNet weights,
    the variance is 1, and stays 1.
    """
    layer = next(layer for layer in backbone.layers if isinstance(layer, layers.Normalization))
    mean, variance, count = layer.get_weights()
    set_weights(layer, [mean, variance**1.5, count])


def load_file(model: keras.Model, weights: str) -> None:
    """Load a Keras weights file into `model`.

    Raises:
        InputError: the file is missing or does not fit. Names the file and the network.
    """
    if not Path(weights).is_file():
        raise InputError(f"weights: no file {weights!r}; give none, imagenet, or the path of a Keras weights file")
    try:
        with warnings.catch_warnings():
            # Keras only warns about layers that it does not fill.
            warnings.filterwarnings("error", message="Skipping nested container")
            model.load_weights(weights)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        raise InputError(
            f"weights: {weights!r} is not a weights file of {model.name}, or is damaged; give a weights file of that network"
        ) from error


def _preprocessing(preprocess_input: Callable[[np.ndarray], np.ndarray]) -> tuple[bool, list[float], list[float]]:
    """Express a `preprocess_input` as a standard layer, which saves and loads anywhere.

    Each `preprocess_input` of Keras may turn RGB into BGR, then normalises each channel. Its values for four colours
    determine it.

    Returns:
        whether the channels are reversed, and the mean and variance of each channel after that.
    """
    colours = np.concatenate([np.zeros((1, 3)), 255.0 * np.eye(3)]).astype("float32")
    black, *primaries = preprocess_input(colours.reshape(4, 1, 1, 3)).reshape(4, 3).astype("float64")
    gains = (np.array(primaries) - black) / 255.0
    reverse = not np.allclose(gains, np.diag(np.diag(gains)))
    gain = np.diag(gains[::-1] if reverse else gains)
    return reverse, (-black / gain).tolist(), (gain**-2).tolist()
