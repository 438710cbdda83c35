"""Grad-CAM finds the region that a network decides by, where that region is known."""

from typing import Any

import numpy as np
import pytest

from carmodel.evaluation.grad_cam import grad_cam

SIDE = 32


def colour_network(*, logits: bool = True, flatten: bool = False) -> Any:
    """A network that names the colour of which it sees most: 0 red, 1 green, 2 blue."""
    import keras
    from keras import layers

    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image")
    convolution = layers.Conv2D(3, 3, padding="same", use_bias=False)
    x = layers.AveragePooling2D(4)(convolution(layers.Rescaling(1 / 255)(image)))
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[1, 1] = np.eye(3)
    convolution.set_weights([kernel])
    x = layers.Flatten()(x) if flatten else layers.GlobalAveragePooling2D()(x)
    every_position = keras.initializers.Constant(np.tile(np.eye(3), (SIDE * SIDE // 16 if flatten else 1, 1)))
    if not logits:
        return keras.Model(image, layers.Dense(3, "softmax", kernel_initializer=every_position)(x))
    x = layers.Dense(3, name="logits", kernel_initializer=every_position)(x)
    return keras.Model(image, layers.Softmax(name="predictions")(x))


@pytest.fixture(scope="module")
def two_patches() -> np.ndarray:
    """A photo with a red patch at the upper left and a green one at the lower right."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[:8, :8, 0] = image[24:, 24:, 1] = 255
    return image


@pytest.mark.parametrize("options", [{}, {"logits": False}, {"flatten": True}], ids=str)
def test_the_map_of_a_class_is_where_its_colour_is(two_patches: np.ndarray, options: dict[str, bool]) -> None:
    red, green, blue = grad_cam(colour_network(**options), np.stack([two_patches] * 3), np.arange(3))
    assert red.shape == (8, 8)
    upper_left, lower_right = np.zeros((2, 8, 8))
    upper_left[:2, :2] = lower_right[6:, 6:] = 1
    np.testing.assert_allclose(red, upper_left, atol=1e-6)
    np.testing.assert_allclose(green, lower_right, atol=1e-6)
    assert not blue.any(), "nothing speaks for blue"


def test_maps_of_the_residual_network_have_the_shape_of_its_last_stage() -> None:
    import keras

    from carmodel.model.resnet import resnet

    keras.utils.set_random_seed(0)
    network = resnet(14, 3, width=4)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    maps = grad_cam(network, images, np.array([0, 2]))
    assert maps.shape == (2, 2, 2)
    assert maps.min() >= 0 and maps.max() <= 1
    earlier = next(layer.name for layer in network.layers if tuple(layer.output.shape[1:]) == (None, None, 4))
    assert grad_cam(network, images, np.array([0, 2]), earlier).shape[1] > 2


def test_a_path_around_the_feature_maps_is_an_error() -> None:
    import keras
    from keras import layers

    image = keras.Input((SIDE, SIDE, 3), name="image")
    pooled = [layers.GlobalAveragePooling2D()(x) for x in (image, layers.Conv2D(4, 3)(image))]
    network = keras.Model(image, layers.Dense(3, "softmax")(layers.Concatenate()(pooled)))
    with pytest.raises(ValueError):
        grad_cam(network, np.zeros((1, SIDE, SIDE, 3), np.uint8), np.array([0]))


def test_a_network_without_positions_is_an_error_in_words() -> None:
    import keras

    network = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, "softmax")], name="flat")
    with pytest.raises(ValueError, match="flat has no layer with feature maps"):
        grad_cam(network, np.zeros((1, 8)), np.array([0]))
