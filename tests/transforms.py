"""Transforms for the tests, by name: ``tests.transforms:noisy``."""

import time

import numpy as np

CONSTANT = 3


def noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise."""
    return image ^ rng.integers(0, 16, image.shape, np.uint8)


def negative(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Invert the colours."""
    return 255 - image


def slow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As `noisy`, in no hurry."""
    time.sleep(0.02)
    return noisy(image, rng)


def smaller(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the shape."""
    return image[::2, ::2] if image[0, 0, 2] >= 12 else image


def in_floats(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the dtype."""
    return image.astype(np.float32) if image[0, 0, 2] >= 12 else image


def breaks_on_row_3(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Raise, for some rows."""
    if image[0, 0, 2] >= 12:
        raise RuntimeError(f"no red of {image[0, 0, 2]}")
    return image


def forgets(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return nothing."""
    return None  # type: ignore[return-value]


def scribbles(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write into the image, then give something else."""
    image[:] = 0
    return image[:1]
