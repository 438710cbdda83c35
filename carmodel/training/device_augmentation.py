"""Augment uint8 batches on the device: crop, zoom-out, flip, colours, random erasing, mixup and CutMix.

The host draws the random numbers that decide how an image changes, from the seed, the epoch, the row and the number of
rows, see `draw`. Training is therefore reproducible on any device and after a resume. Batches travel to the device as
uint8, and the device does the work. The numbers of an image are one row with the columns `COLUMNS`.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from carmodel.parameters import Train
from carmodel.training.resampling import resample_window, resize
from carmodel.training.xla import compiled_on_cpu

COLUMNS = (
    *("left", "width", "top", "height"),  # window of the photo that fills the output, in fractions of the photo's side
    *("back_left", "back_width", "back_top", "back_height"),  # window of the next photo, the background when zoomed out
    *("gain", "to_mean", "to_grey", "levels", "solarize", "stretch"),  # colours, see `_recolor`
    *("erase_left", "erase_right", "erase_top", "erase_bottom"),  # box to erase, in fractions of the output
    *("cut_left", "cut_right", "cut_top", "cut_bottom"),  # CutMix's box from the next image, in fractions of the output
    "share",  # weight of the image in mixup; the next image has the rest
)
_INDEX = {name: i for i, name in enumerate(COLUMNS)}
UNCHANGED = np.zeros(len(COLUMNS), np.float32)
"""The row of numbers that does not change a photo."""
for _name, _value in {"width": 1, "height": 1, "back_width": 1, "back_height": 1, "gain": 1, "levels": 255}.items():
    UNCHANGED[_INDEX[_name]] = _value
UNCHANGED[[_INDEX["solarize"], _INDEX["share"]]] = 256, 1

BACKGROUND = 4
"""Backgrounds are photos blurred by averaging over squares with this side, in pixels."""

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""


def is_off(params: Train) -> bool:
    """Return whether the parameters switch off all augmentation on the device."""
    return params.random_crop == 1 and not (
        params.random_flip or params.zoom_out or params.colors or params.erase or params.mixup or params.cutmix
    )


def draw(rows: int, rng: np.random.Generator, params: Train) -> np.ndarray:
    """Draw the numbers of `rows` images.

    - A crop has an area uniform in [random_crop, 1] and an aspect ratio log-uniform in [3/4, 4/3] (Szegedy et al. 2015,
      https://arxiv.org/abs/1409.4842). The ratio is limited so that the window stays inside the photo.
    - With probability `zoom_out` the window has one to four times the area of the photo. The aspect ratio is drawn as for
      a crop, so one side may be up to 13% shorter than that of the photo. Part of another photo fills the background, and
      the edge is blended.
    - Colours follow TrivialAugment (Müller & Hutter 2021, https://arxiv.org/abs/2103.10158). Each image gets one
      operation of uniform strength: none, brightness, contrast, saturation, posterize, solarize or autocontrast.
    - Random erasing (Zhong et al. 2017, https://arxiv.org/abs/1708.04896) fills 2% to 25% of the area with the mean.
    - Mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) and CutMix (Yun et al. 2019,
      https://arxiv.org/abs/1905.04899) blend an image with the next one of the batch. If both are on, each image gets
      one of the two.

    Args:
        rows: number of images.
        rng: generator of the epoch.
        params: `random_crop`, `random_flip`, `zoom_out`, `colors`, `erase`, `mixup` and `cutmix` are used.

    Returns:
        float32 (rows, len(COLUMNS)).
    """
    numbers = np.tile(UNCHANGED, (rows, 1))
    column = dict(zip(COLUMNS, numbers.T, strict=True))  # views into `numbers`
    for_window, for_back, for_colors, for_erase, for_mix = rng.spawn(5)

    uniform = for_window.random((rows, 7))
    if params.random_crop < 1:
        side = np.sqrt(params.random_crop + (1 - params.random_crop) * uniform[:, 0])
        stretch = np.clip(np.power(4 / 3, uniform[:, 1] - 0.5), side, 1 / side)
        column["width"][:], column["height"][:] = side * stretch, side / stretch
    out = uniform[:, 5] < params.zoom_out
    side = 1 + uniform[out, 0]
    stretch = np.power(4 / 3, uniform[out, 1] - 0.5)
    column["width"][out], column["height"][out] = side * stretch, side / stretch
    column["left"][:] = (1 - column["width"]) * uniform[:, 2]
    column["top"][:] = (1 - column["height"]) * uniform[:, 3]
    if params.random_flip:
        flipped = uniform[:, 4] < 0.5
        column["left"][flipped] += column["width"][flipped]
        column["width"][flipped] *= -1
    _draw_box(for_back, column, "back", 0.1 + 0.5 * for_back.random(rows))
    column["back_width"][:] -= column["back_left"]
    column["back_height"][:] -= column["back_top"]

    if params.colors:
        _draw_colors(for_colors, column, params.colors)
    if params.erase:
        erased = for_erase.random(rows) < params.erase
        side = np.sqrt(0.02 + 0.23 * for_erase.random(rows))
        _draw_box(for_erase, column, "erase", np.where(erased, side, 0))
    _draw_mix(for_mix, column, params)
    return numbers


def _draw_box(rng: np.random.Generator, column: dict[str, np.ndarray], name: str, side: np.ndarray) -> None:
    """Draw square boxes at random places, whose sides are the fractions `side` (rows,) of the output."""
    ends = ("width", "height") if name == "back" else ("right", "bottom")
    for start, end in zip(("left", "top"), ends, strict=True):
        begin = (1 - side) * rng.random(len(side))
        column[f"{name}_{start}"][:], column[f"{name}_{end}"][:] = begin, begin + side


def _draw_colors(rng: np.random.Generator, column: dict[str, np.ndarray], strength: float) -> None:
    """Draw one colour operation per image. `strength` in [0, 1] scales TrivialAugment's ranges."""
    rows = len(column["gain"])
    operation = rng.integers(0, 7, rows)
    amount = strength * rng.random(rows)
    signed = np.where(rng.random(rows) < 0.5, -0.9, 0.9) * amount
    brightness, contrast, saturation = operation == 1, operation == 2, operation == 3
    for chosen in (brightness, contrast, saturation):
        column["gain"][chosen] = 1 + signed[chosen]
    column["to_mean"][contrast] = -signed[contrast]
    column["to_grey"][saturation] = -signed[saturation]
    column["levels"][operation == 4] = np.round(2 ** (8 - 6 * amount) - 1)[operation == 4]
    column["solarize"][operation == 5] = (256 * (1 - amount))[operation == 5]
    column["stretch"][operation == 6] = 1


def _draw_mix(rng: np.random.Generator, column: dict[str, np.ndarray], params: Train) -> None:
    rows = len(column["share"])
    cuts = rng.random(rows) < (params.cutmix > 0) / max((params.cutmix > 0) + (params.mixup > 0), 1)
    if params.mixup > 0:
        share = rng.beta(params.mixup, params.mixup, rows)
        column["share"][:] = np.where(cuts, 1, np.maximum(share, 1 - share))
    if params.cutmix > 0:
        area = rng.beta(params.cutmix, params.cutmix, rows)
        _draw_box(rng, column, "cut", np.where(cuts, np.sqrt(np.minimum(area, 1 - area)), 0))


def mix_labels(labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Mix one-hot labels in the same way as mixup and CutMix mix the images of the batch.

    The last image of the batch is mixed with the first one.

    Args:
        labels: float32 (B, C).
        numbers: float32 (B, len(COLUMNS)).

    Returns:
        float32 (B, C).
    """
    column = dict(zip(COLUMNS, numbers.T, strict=True))
    cut = (column["cut_right"] - column["cut_left"]) * (column["cut_bottom"] - column["cut_top"])
    share = (column["share"] * (1 - cut))[:, None].astype(labels.dtype)
    return share * labels + (1 - share) * np.roll(labels, -1, axis=0)


class DeviceAugmentation(keras.layers.Layer):
    """Augment a batch of photos according to their numbers, and resize it.

    In inference, photos are only resized. Zoom-out, colours, erasing and mixing cost no time if the parameters switch them
    off.

    Args:
        size: side of the square output, in pixels.
        params: the parameters that `draw` was given.

    Inputs:
        images, uint8 (B, H, W, 3), and numbers, float32 (B, len(COLUMNS)), from `draw`.

    Output:
        uint8 (B, size, size, 3).
    """

    def __init__(self, size: int, params: Train, **kwargs: Any) -> None:
        # A coordinate in 16 bits would be wrong by whole pixels, so the layer ignores a mixed-precision policy.
        super().__init__(**(kwargs | {"dtype": "float32"}))
        self.size, self.params = size, params
        self._compiled_augment = compiled_on_cpu(self._augment)

    def call(self, images: Any, numbers: Any, training: bool = False) -> Any:
        """Return the augmented images, or resized ones outside training."""
        return self._compiled_augment(images, numbers) if training else to_uint8(resize(images, self.size))

    def _augment(self, images: Any, numbers: Any) -> Any:
        column = {name: numbers[:, i] for i, name in enumerate(COLUMNS)}
        photos, params = ops.cast(images, "float32"), self.params
        seen, inside = resample_window(photos, [column[name] for name in COLUMNS[:4]], self.size)
        if params.zoom_out:
            blurred = ops.average_pool(photos, BACKGROUND, strides=BACKGROUND, padding="same")
            window = [column[name] for name in COLUMNS[4:8]]
            behind, _ = resample_window(ops.roll(blurred, -1, axis=0), window, self.size)
            seen = behind + inside * (seen - behind)
        if params.colors:
            seen = _recolor(seen, column)
        if params.erase:
            erased = self._box(column, "erase")
            seen = (1 - erased) * seen + erased * ops.mean(seen, axis=(1, 2, 3), keepdims=True)
        if params.mixup or params.cutmix:
            kept = column["share"][:, None, None, None] * (1 - self._box(column, "cut"))
            following = ops.roll(seen, -1, axis=0)
            seen = following + kept * (seen - following)
        return to_uint8(seen)

    def _box(self, column: dict[str, Any], name: str) -> Any:
        """Return masks, float32 (B, size, size, 1), that are 1 inside the boxes with the given name."""
        centres = (ops.arange(self.size, dtype="float32") + 0.5) / self.size
        across = (centres >= column[f"{name}_left"][:, None]) & (centres < column[f"{name}_right"][:, None])
        down = (centres >= column[f"{name}_top"][:, None]) & (centres < column[f"{name}_bottom"][:, None])
        return ops.cast(down[:, :, None, None] & across[:, None, :, None], "float32")

    def compute_output_spec(self, images: Any, numbers: Any, training: bool = False) -> keras.KerasTensor:
        """Return the shape and dtype of the output."""
        return keras.KerasTensor((images.shape[0], self.size, self.size, 3), dtype="uint8")


def with_augmentation(network: keras.Model, size: int, image_size: int, params: Train) -> keras.Model:
    """Put `DeviceAugmentation` before a network.

    The result shares all its variables with `network`, so training it trains `network`.

    Args:
        network: images uint8 (B, H, W, 3) in.
        size: side of the images that the network sees, in pixels.
        image_size: side of the store's images, in pixels.
        params: the parameters that `draw` is given.

    Returns:
        a model with the inputs ``{"image": uint8 (B, image_size, image_size, 3), "numbers": float32 (B, len(COLUMNS))}``.
    """
    image = keras.Input((image_size, image_size, 3), dtype="uint8", name="image")
    numbers = keras.Input((len(COLUMNS),), dtype="float32", name="numbers")
    seen = DeviceAugmentation(size, params, name="augmentation")(image, numbers)
    return keras.Model({"image": image, "numbers": numbers}, network(seen), name="training")


def _recolor(images: Any, column: dict[str, Any]) -> Any:
    """Apply the colour numbers to images (B, S, S, 3) with values from 0 to 255.

    Each step does nothing for images whose operation is another one: brightness, contrast and saturation (`gain`,
    `to_mean`, `to_grey`), posterize (`levels`), solarize, autocontrast (`stretch`).
    """

    def of(name: str) -> Any:
        return column[name][:, None, None, None]

    grey = ops.sum(images * ops.array(GREY, "float32"), axis=-1, keepdims=True)
    mean = ops.mean(grey, axis=(1, 2), keepdims=True)
    images = ops.clip(of("gain") * images + of("to_mean") * mean + of("to_grey") * grey, 0.0, 255.0)
    images = ops.floor(images * of("levels") / 255.0 + 0.5) * 255.0 / of("levels")
    images = ops.where(images >= of("solarize"), 255.0 - images, images)
    low, high = ops.min(images, axis=(1, 2), keepdims=True), ops.max(images, axis=(1, 2), keepdims=True)
    stretched = (images - low) * 255.0 / ops.maximum(high - low, 1.0)
    return images + of("stretch") * (stretched - images)


def to_uint8(images: Any) -> Any:
    """Round values to uint8."""
    return ops.cast(ops.clip(ops.round(images), 0, 255), "uint8")
