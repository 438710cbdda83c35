"""On-device augmentation: resized crop, horizontal flip and mixup of a batch of images, from numbers drawn on the host.

A *view* is five float32 numbers a row: ``left, width, top, height`` of the window that is enlarged to the whole frame,
as fractions of the image's side (a negative width looks at the window in a mirror), and ``share``, what mixup keeps of
the row. Drawing them on the host from (seed, epoch, row) makes training reproducible whatever the device, the number of
threads or a resume; looking through them on the device keeps the batches uint8 and the host idle.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

NO_VIEW = np.array([0, 1, 0, 1, 1], np.float32)


def draw(
    rows: int, rng: np.random.Generator, random_crop: float = 1.0, random_flip: bool = False, mixup: float = 0.0
) -> np.ndarray:
    """Draw the views of `rows` images; row r's numbers depend on the generator's seed and r alone.

    Crops have an area uniform in [random_crop, 1] and an aspect log-uniform in [3/4, 4/3] (Szegedy et al. 2015,
    https://arxiv.org/abs/1409.4842), nearer to 1 where the window would leave the frame. Mixup's share is
    Beta(mixup, mixup), the row itself always the larger part (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).

    Returns:
        float32 (rows, 5).
    """
    views = np.tile(NO_VIEW, (rows, 1))
    for_window, for_share = rng.spawn(2)
    uniform = for_window.random((rows, 5))
    if random_crop < 1.0:
        side = np.sqrt(random_crop + (1 - random_crop) * uniform[:, 0])
        stretch = np.clip(np.power(4 / 3, uniform[:, 1] - 0.5), side, 1 / side)
        width, height = side * stretch, side / stretch
        views[:, :4] = np.stack([(1 - width) * uniform[:, 2], width, (1 - height) * uniform[:, 3], height], axis=1)
    if random_flip:
        flipped = uniform[:, 4] < 0.5
        views[flipped, 0] += views[flipped, 1]
        views[flipped, 1] *= -1
    if mixup > 0:
        share = for_share.beta(mixup, mixup, rows)
        views[:, 4] = np.maximum(share, 1 - share)
    return views


def mix(values: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Mixup of a batch's one-hot labels: ``share * row + (1 - share) * next row``, where the first follows the last.

    Args:
        values: float32 (batch, classes).
        views: float32 (batch, 5).
    """
    share = views[:, 4:]
    return share * values + (1 - share) * np.roll(values, -1, axis=0)


@keras.saving.register_keras_serializable("carmodel")
class View(keras.layers.Layer):
    """Show a batch through its views while training; hand it on untouched otherwise.

    Bilinear interpolation of an axis-aligned window is one matrix product a side, with the hat function ``max(0, 1 -
    |source - pixel|)`` as the matrix: unlike a general warp it runs, compiles and gives the same on every backend.

    Input: uint8 (batch, H, W, C) and float32 (batch, 5). Output: uint8 (batch, H, W, C), so that the network sees
    training images of the very type it is served with.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Under a mixed-precision policy the coordinates would lose whole pixels.
        super().__init__(**(kwargs | {"dtype": "float32"}))

    def call(self, images: Any, views: Any, training: bool = False) -> Any:
        """Return the images seen through the views, mixed with the next row of the batch."""
        if not training:
            return images
        _, height, width, _ = images.shape
        seen = ops.cast(images, "float32")
        seen = ops.einsum("nyi,nijc->nyjc", _bilinear(views[:, 2], views[:, 3], height), seen)
        seen = ops.einsum("nxj,nyjc->nyxc", _bilinear(views[:, 0], views[:, 1], width), seen)
        share = views[:, 4][:, None, None, None]
        seen = share * seen + (1 - share) * ops.roll(seen, -1, axis=0)
        return ops.cast(ops.clip(ops.round(seen), 0, 255), "uint8")

    def compute_output_shape(self, images_shape: tuple, views_shape: tuple) -> tuple:
        """Shape of the images, unchanged."""
        return images_shape

    def compute_output_spec(self, images: Any, views: Any, training: bool = False) -> keras.KerasTensor:
        """The images' shape and type, unchanged."""
        return keras.KerasTensor(images.shape, dtype="uint8")


def with_views(network: keras.Model) -> keras.Model:
    """Wrap a network for training: inputs ``{"image": uint8 (H, W, C), "view": float32 (5,)}``, the network's output.

    The wrapper has no variables of its own: training it trains `network`, which is what is saved and served.
    """
    image = keras.Input(network.input_shape[1:], dtype="uint8", name="image")
    view = keras.Input((NO_VIEW.size,), dtype="float32", name="view")
    return keras.Model({"image": image, "view": view}, network(View(name="views")(image, view)), name="training")


def _bilinear(start: Any, extent: Any, side: int) -> Any:
    """Matrices (batch, side, side) that resample a side to its window [start, start + extent], in fractions of it."""
    centres = (ops.arange(side, dtype="float32") + 0.5) / side
    source = (start[:, None] + extent[:, None] * centres) * side - 0.5
    source = ops.clip(source, 0.0, side - 1.0)
    return ops.relu(1.0 - ops.abs(source[:, :, None] - ops.arange(side, dtype="float32")))
