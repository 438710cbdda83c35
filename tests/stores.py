"""Small stores for the tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from carmodel.data.store import Attribute, Store, open_store
from carmodel.data.writer import StoreColumns, StoreSpec, Writer

ATTRS: dict[str, Attribute] = {"split": "train", "crop": "box", "margin": 0.1, "seed": 3, "created_by": "a test"}


def store_of(
    path: Path,
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    names: Sequence[str],
    validation: np.ndarray | None = None,
    **attrs: Attribute,
) -> Store:
    """Write and open a store of images, uint8 (N, S, S, 3), whose files are called 0.jpg, 1.jpg, …"""
    row = np.arange(len(images))
    with Writer(StoreSpec(path, images.shape[1], names, **ATTRS | attrs), len(images)) as writer:
        for part in np.array_split(row, 2):
            writer.append(images[part])
        files = [f"{i}.jpg" for i in row]
        writer.describe(StoreColumns(np.asarray(labels), files, row, row < 0 if validation is None else validation))
    return open_store(path)
