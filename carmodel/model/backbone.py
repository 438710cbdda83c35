"""Any network of `keras.applications` under our head, and what is done with the part below a head."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

from carmodel.errors import InputError
from carmodel.model.head import HEAD, head


def application(name: str, classes: int, image_size: int, weights: str = "none") -> keras.Model:
    """Build a network of `keras.applications`, average-pooled, with our head in the place of its own.

    Input: "image", uint8 (B, image_size, image_size, 3), RGB. Output: "predictions", float32 (B, classes), softmax.
    The network's own `preprocess_input` runs inside, as standard layers. The Keras model is one layer of the result,
    named as Keras names it.

    Args:
        name: one of `carmodel.parameters.APPLICATIONS`.
        classes: number of classes.
        image_size: side of the square images in pixels.
        weights: "none", "imagenet" (Keras downloads them), or a Keras weights file of the network without its top.

    Raises:
        InputError: an image too small for it, a missing or unfitting file, or a failed download.
    """
    function = getattr(keras.applications, name)
    image = keras.Input((image_size, image_size, 3), dtype="uint8", name="image")
    reverse, mean, variance = _preprocessing(sys.modules[function.__module__].preprocess_input)
    x = keras.ops.flip(image, axis=-1) if reverse else image
    # In float32 under any policy: 16 bits would round the mean.
    x = layers.Normalization(mean=mean, variance=variance, dtype="float32", name="preprocess")(x)
    backbone = without_top(name, image_size, weights)
    return keras.Model(image, head(backbone(x), classes), name=name)


def without_top(name: str, image_size: int, weights: str = "none") -> keras.Model:
    """Build the network itself: preprocessed (B, image_size, image_size, 3) in, average-pooled features (B, C) out.

    Args and errors as for `application`.
    """
    function = getattr(keras.applications, name)
    arguments = {"include_top": False, "pooling": "avg", "input_shape": (image_size, image_size, 3)}
    downloads = weights == "imagenet"
    try:
        backbone = function(weights="imagenet" if downloads else None, **arguments)
    except ValueError as error:
        raise InputError(f"{name} with image_size={image_size}: {error}") from None
    except Exception as error:  # Keras raises a bare Exception when a download fails.
        if not downloads:
            raise
        raise InputError(
            f"weights: Keras could not download the imagenet weights of {name} ({error}); without a network, fetch the "
            "file elsewhere and give its path as weights"
        ) from error
    if weights not in ("none", "imagenet"):
        load_file(backbone, weights)
    return backbone


def load_file(model: keras.Model, weights: str) -> None:
    """Load a Keras weights file into `model`.

    Raises:
        InputError: no such file, or one that does not fit; names the file and the network.
    """
    if not Path(weights).is_file():
        raise InputError(f"weights: no file {weights!r}; give none, imagenet, or the path of a Keras weights file")
    try:
        with warnings.catch_warnings():
            # With this warning Keras leaves layers as they were.
            warnings.filterwarnings("error", message="Skipping nested container")
            model.load_weights(weights)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        raise InputError(
            f"weights: {weights!r} is not a weights file of {model.name}, or is damaged; give one of that very network"
        ) from error


def freeze(model: keras.Model) -> None:
    """Leave the head alone trainable. Batch normalisation below it then uses its stored statistics in training too."""
    for layer in model.layers:
        layer.trainable = layer.name == HEAD


def features(model: keras.Model) -> keras.Model:
    """Return the part below the head, sharing its weights: image (B, H, W, 3) in, pooled features (B, C) out."""
    return keras.Model(model.input, model.get_layer(HEAD).input, name="features")


def _preprocessing(preprocess_input: Callable[[np.ndarray], np.ndarray]) -> tuple[bool, list[float], list[float]]:
    """Read a `preprocess_input` as: whether RGB becomes BGR, then a mean and a variance for each channel.

    All of Keras's have this form, and four colours tell which. As standard layers it saves and loads anywhere.
    """
    colours = np.concatenate([np.zeros((1, 3)), 255.0 * np.eye(3)]).astype("float32")
    black, *primaries = preprocess_input(colours.reshape(4, 1, 1, 3)).reshape(4, 3).astype("float64")
    gains = (np.array(primaries) - black) / 255.0
    reverse = not np.allclose(gains, np.diag(np.diag(gains)))
    gain = np.diag(gains[::-1] if reverse else gains)
    return reverse, (-black / gain).tolist(), (gain**-2).tolist()
