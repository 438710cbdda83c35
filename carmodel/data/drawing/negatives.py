"""Pictures without a car, on which a classifier should not be certain: drawn scenes, gradients and noise."""

import cv2
import numpy as np

from carmodel.data.drawing.photo import OVERSAMPLING, light
from carmodel.data.drawing.scenery import draw_scene


def draw_negatives(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Draw scenes with an empty road, colour gradients and noise of different grain, in turn.

    Args:
        count: number of pictures.
        size: side of the pictures, in pixels.
        seed: picture i depends on (seed, i) alone.

    Returns:
        uint8 (count, size, size, 3) RGB.
    """
    kinds = (draw_empty_road, _gradient, draw_empty_road, _noise)
    pictures = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        picture = kinds[i % len(kinds)](np.random.default_rng([seed, i]))
        shrinks = len(picture) > size
        cv2.resize(picture, (size, size), pictures[i], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return pictures


def draw_empty_road(rng: np.random.Generator) -> np.ndarray:
    """Draw a scene without a car: uint8 (H, W, 3) RGB with W from 160 to 240."""
    width = int(rng.integers(160, 241))
    height = int(width * rng.uniform(0.64, 0.8))
    large = (OVERSAMPLING * width, OVERSAMPLING * height)
    scene = draw_scene(*large, int(rng.uniform(0.55, 0.8) * large[1]), rng)
    return light(cv2.resize(scene, (width, height), interpolation=cv2.INTER_AREA), rng)


def _gradient(rng: np.random.Generator) -> np.ndarray:
    corners = rng.integers(0, 256, (2, 2, 3), np.uint8)
    return cv2.resize(corners, (160, 160), interpolation=cv2.INTER_LINEAR)


def _noise(rng: np.random.Generator) -> np.ndarray:
    grains = int(rng.choice([3, 6, 12, 40, 160]))
    return cv2.resize(rng.integers(0, 256, (grains, grains, 3), np.uint8), (160, 160), interpolation=cv2.INTER_CUBIC)
