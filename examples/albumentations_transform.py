"""Weather by albumentations (https://albumentations.ai): ``-P transform=examples.albumentations_transform:weather``.

Needs ``pip install albumentations`` on every node. What it draws follows from the copy's own random numbers, so the engine
and the number of workers change nothing.
"""

import threading

import albumentations
import numpy as np


class Pipeline(threading.local):
    """One for each thread, as a pipeline holds its random numbers, and the local engine works on many threads."""

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
        rng: of this copy.

    Returns:
        uint8 (H, W, 3).
    """
    PIPELINE.apply.set_random_seed(int(rng.integers(2**31)))
    return PIPELINE.apply(image=image)["image"]
