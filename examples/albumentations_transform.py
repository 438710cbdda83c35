"""Augment with weather, by albumentations: ``-P transform=examples.albumentations_transform:weather``.

albumentations (https://albumentations.ai) must be installed on every node. Its random numbers are seeded for each copy,
so the result does not depend on the engine or the number of workers.
"""

import threading

import albumentations
import numpy as np


class Pipeline(threading.local):
    """One pipeline per thread: the local engine uses many threads, and a pipeline holds its random numbers."""

    def __init__(self) -> None:
        self.apply = albumentations.Compose(
            [
                albumentations.RandomBrightnessContrast(p=0.8),
                albumentations.OneOf([albumentations.RandomFog(p=1), albumentations.RandomRain(p=1)], p=0.5),
                albumentations.HueSaturationValue(p=0.5),
            ]
        )


PIPELINE = Pipeline()


def weather(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change light and weather.

    Args:
        image: uint8 (H, W, 3).
        rng: random generator of this copy.

    Returns:
        uint8 (H, W, 3).
    """
    PIPELINE.apply.set_random_seed(int(rng.integers(2**31)))
    return PIPELINE.apply(image=image)["image"]
