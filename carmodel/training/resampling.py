"""Resample photos on the device, as `carmodel.data.images.resize` does on the host."""

from typing import Any

from keras import ops

FEATHER = 0.06
"""Width of the blended edge around a zoomed-out photo, as a fraction of the photo's side."""


def resize(images: Any, size: int) -> Any:
    """Resize a batch (B, H, W, 3) to float32 (B, size, size, 3), as `carmodel.data.images.resize` does.

    `keras.ops.image.resize` with antialiasing would blur the photos, and XLA cannot compile it under TensorFlow.
    """
    images = ops.cast(images, "float32")
    if images.shape[1] == images.shape[2] == size:
        return images
    start, extent = ops.zeros(1), ops.ones(1)
    down, across = (_resampling(start, extent, side, size)[0][0] for side in images.shape[1:3])
    return ops.einsum("xj,nyjc->nyxc", across, ops.einsum("yi,nijc->nyjc", down, images))


def resample_window(photos: Any, window: list[Any], size: int) -> tuple[Any, Any]:
    """Resample a window of each photo (B, H, W, 3) to (B, size, size, 3).

    Also return a mask (B, size, size, 1) of the photo within the window: 1 inside it, falling to 0 outside.
    """
    left, width, top, height = window
    down, inside_down = _resampling(top, height, photos.shape[1], size)
    across, inside_across = _resampling(left, width, photos.shape[2], size)
    seen = ops.einsum("nyi,nijc->nyjc", down, photos)
    seen = ops.einsum("nxj,nyjc->nyxc", across, seen)
    return seen, (inside_down[:, :, None] * inside_across[:, None, :])[..., None]


def _resampling(start: Any, extent: Any, old: int, new: int) -> tuple[Any, Any]:
    """Return matrices (B, new, old) that resample the window [start, start + extent] of a side, in fractions of the side.

    Where the window shrinks, a new pixel is the average of the area that it covers. Where it grows, it is interpolated
    linearly. `carmodel.data.images.resize` does the same. Also return a mask (B, new) of the side within the window: 1
    inside, falling to 0 over `FEATHER`.
    """
    centres = (ops.arange(new, dtype="float32") + 0.5) / new
    place = start[:, None] + extent[:, None] * centres
    inside = ops.clip(1 + ops.minimum(place, 1 - place) / FEATHER, 0.0, 1.0)
    source = ops.clip(place * old - 0.5, 0.0, old - 1.0)
    covered = ops.maximum(ops.abs(extent) * old / new, 1.0)[:, None, None]
    # The overlap of the covered pixels with each pixel. It falls linearly with the distance if one pixel is covered.
    distance = ops.abs(source[:, :, None] - ops.arange(old, dtype="float32"))
    weights = ops.clip((covered + 1) / 2 - distance, 0.0, 1.0)
    return weights / ops.sum(weights, axis=-1, keepdims=True), inside
