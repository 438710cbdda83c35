"""Pictures on which a classifier should not be certain: drawn scenes without a car, gradients, noise, and unknown cars."""

from collections.abc import Sequence

import cv2
import numpy as np

from carmodel.data import sample
from carmodel.data.drawing.bodies import BODIES
from carmodel.data.drawing.photo import OVERSAMPLING, draw_photo, light
from carmodel.data.drawing.scenery import draw_scene
from carmodel.data.images import resize


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
        resize(kinds[i % len(kinds)](np.random.default_rng([seed, i])), size, size, out=pictures[i])
    return pictures


def draw_unknown_cars(count: int, size: int, class_names: Sequence[str], seed: int = 0) -> np.ndarray:
    """Draw cars of the built-in sample whose class is not among `class_names`.

    Args:
        count: number of pictures.
        size: side of the pictures, in pixels.
        class_names: the classes that a classifier knows.
        seed: picture i depends on (seed, i) and on the classes alone.

    Returns:
        uint8 (count, size, size, 3) RGB, or (0, size, size, 3) if all classes of the sample are known.
    """
    names = sample.class_names(len(BODIES))
    unknown = [body for body, name in zip(BODIES, names, strict=True) if name not in class_names]
    pictures = np.empty((count if unknown else 0, size, size, 3), np.uint8)
    for i, picture in enumerate(pictures):
        photo, _ = draw_photo(unknown[i % len(unknown)], np.random.default_rng([seed, i]))
        resize(photo, size, size, out=picture)
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
