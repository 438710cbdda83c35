"""The networks of the inference benchmark: with a head that gives different answers to different photos, and their twins."""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from carmodel.model.backbone import application, load_network
from carmodel.model.head import LOGITS, features_of
from carmodel.model.pretrained import copy_weights
from carmodel.model.resnet import resnet
from carmodel.tracking.paths import PRETRAINED

CLASSES = 196
Predict = Callable[[np.ndarray], np.ndarray]
"""uint8 (N, H, W, 3) to probabilities (N, C)."""


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        name: its name.
        network: uint8 (N, H, W, 3) in, probabilities (N, C) out.
        peer_name: what people would use instead in Keras.
        peer: its `predict`.
        flip: whether the classifier averages the answers to a photo and its mirror image.
    """

    name: str
    network: keras.Model
    peer_name: str
    peer: Predict
    flip: bool = False


def residual(images: np.ndarray) -> Subject:
    """Return ResNet-50 with Scale, and `keras.applications.ResNet50` with the same weights."""
    network, twin = resnet(50, CLASSES), keras.applications.ResNet50(weights=None, classes=CLASSES)
    copy_weights(twin, network)
    twin.get_layer("predictions").set_weights(lively_head(network, images))
    return Subject(
        "ResNet-50 with Scale",
        network,
        "keras.applications.ResNet50, predict",
        predict_of(twin, keras.applications.resnet.preprocess_input),
    )


def mobile(images: np.ndarray) -> Subject:
    """Return MobileNetV2 with this project's head, and `keras.applications.MobileNetV2` with the same weights."""
    network, twin = (
        application("MobileNetV2", CLASSES),
        keras.applications.MobileNetV2(weights=None, classes=CLASSES),
    )
    twin.get_layer("predictions").set_weights(lively_head(network, images))
    others = [layer for layer in network.layers if layer.weights and layer.name not in ("preprocess", LOGITS)]
    theirs = [layer for layer in twin.layers if layer.weights and layer.name != "predictions"]
    for layer, other in zip(theirs, others, strict=True):
        layer.set_weights(other.get_weights())
    return Subject(
        "MobileNetV2",
        network,
        "keras.applications.MobileNetV2, predict",
        predict_of(twin, keras.applications.mobilenet_v2.preprocess_input),
    )


def shipped(flip: bool) -> Subject:
    """Return the network of ``pretrained/``, and its own `predict`."""
    network = load_network(PRETRAINED)
    return Subject(
        "The shipped network", network, "Keras model as trained, predict", predict_of(network, None, flip), flip
    )


def predict_of(model: keras.Model, preprocess: Callable | None, flip: bool = False) -> Predict:
    """Return Keras's `predict` with the network's `preprocess_input`, and with the mirror images if `flip` is set."""

    def predict(images: np.ndarray) -> np.ndarray:
        if preprocess:
            images = preprocess(images.astype("float32"))
        answers = model.predict(images, batch_size=len(images), verbose=0)
        if flip:
            answers = (answers + model.predict(images[:, :, ::-1], batch_size=len(images), verbose=0)) / 2
        return answers

    return predict


def lively_head(network: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    """Give a network with random weights a head whose logits vary by about 2 between photos, and return its weights."""
    features = features_of(network).predict(images, batch_size=8, verbose=0)
    spread = features.std(axis=0)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-6 * spread.max())
    random = 2 * np.random.default_rng(0).normal(size=(features.shape[1], CLASSES)) / np.sqrt(features.shape[1])
    kernel = (scale[:, None] * random).astype(np.float32)
    weights = [kernel, -features.mean(axis=0) @ kernel]
    network.get_layer(LOGITS).set_weights(weights)
    return weights
