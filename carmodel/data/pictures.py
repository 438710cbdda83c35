"""Draw pictures of the photos in a store."""

import textwrap
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from carmodel.data.images import resize
from carmodel.data.store import open_store

SHAPES = 2 / 3, 3
"""Smallest and largest width / height of an example picture."""


def contact_sheet(store: Path, png: Path, title: str, columns: int = 8, rows: int = 4) -> None:
    """Draw a grid of labelled photos, taking the classes in turn.

    Args:
        store: an HDF5 store.
        png: the picture to write.
        title: title of the grid.
        columns: photos per row.
        rows: largest number of rows.
    """
    photos = open_store(store)
    cells = columns * rows
    # If there are more classes than cells, the classes shown are at equal distances in the list.
    shown = np.unique(np.linspace(0, len(photos.class_names) - 1, cells).astype(np.int64))
    by_class = [np.flatnonzero(photos.labels == label) for label in shown]
    in_turn = [of_class[i] for i in range(cells) for of_class in by_class if i < len(of_class)]
    chosen = np.array(in_turn[:cells], np.int64)
    labels = [photos.class_names[label] for label in photos.labels[chosen]]
    _grid(photos.take(chosen), labels, columns, title, png)


def class_examples(store: Path, folder: Path, pictures: int, width: int = 200) -> None:
    """Write one JPEG per class, `folder`/CLASS_ID.jpg: its first photos below each other, with their own aspect ratios.

    A class without photos gets no file.

    Args:
        store: an HDF5 store.
        folder: existing directory to write to.
        pictures: largest number of photos per class.
        width: width of each photo, in pixels.
    """
    photos = open_store(store)
    for label in range(len(photos.class_names)):
        rows = np.flatnonzero(photos.labels == label)[:pictures]
        if len(rows) == 0:
            continue
        heights = np.rint(width / np.clip(photos.aspect[rows], *SHAPES)).astype(int).tolist()
        strip = np.vstack(
            [resize(image, width, height) for image, height in zip(photos.take(rows), heights, strict=True)]
        )
        cv2.imwrite(str(folder / f"{label}.jpg"), cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))


def before_after(train_h5: Path, augmented_h5: Path, png: Path, title: str = "Augmentation", pairs: int = 8) -> None:
    """Draw training rows, with an augmented copy below each.

    Args:
        train_h5: the training store.
        augmented_h5: augmented copies of its rows.
        png: the picture to write.
        title: title of the grid.
        pairs: number of columns.
    """
    train, augmented = open_store(train_h5), open_store(augmented_h5)
    copies = np.linspace(0, len(augmented) - 1, min(pairs, len(augmented))).astype(np.int64)
    origins = augmented.source_index[copies]
    images = np.concatenate([train.take(origins), augmented.take(copies)])
    labels = [train.class_names[label] for label in train.labels[origins]]
    _grid(images, [*labels, *["augmented"] * len(copies)], max(len(copies), 1), title, png)


def _grid(images: np.ndarray, labels: list[str], columns: int, title: str, png: Path) -> None:
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.5 * columns, 1.78 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, label in zip(figure.axes, images, labels, strict=False):
        axes.imshow(image)
        axes.set_title("\n".join(textwrap.wrap(label, 24)[:2]), fontsize=7)
    unfinished = png.with_name(f".{png.name}")
    figure.savefig(unfinished, format="png", dpi=100)
    unfinished.replace(png)
