"""The photos of the benchmark: those of BENCH_DATA, or drawn ones, in the size that a part needs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from benchmarks.given import Given
from carmodel.data import sample
from carmodel.data.images import resize
from carmodel.data.preprocessing import write_stores
from carmodel.data.sources import ReadyStores, open_folder
from carmodel.data.store import Store, open_store
from carmodel.data.table import CarTable
from carmodel.data.threads import cores, one_opencv_thread
from carmodel.errors import InputError
from carmodel.parameters import Preprocess

IMAGE_SIZE = 224
CORNERS = ["x1", "y1", "x2", "y2"]


def describe_data(given: Given) -> str:
    """Return a description of the photos for the header of a report. It names the directory without its path."""
    if not given.data_uri:
        return "drawn photos (BENCH_DATA names a directory of real ones)"
    table = _open(given)
    return f"{len(table.photos):,} photos of {len(table.class_names)} classes from the directory {Path(given.data_uri).name}"


def photos(given: Given, number: int) -> CarTable:
    """Return a table of `number` photos, one of them for the test. If there are fewer, they repeat under other names.

    Every other photo has another class, since a few hundred photos do not have all classes. Labels do not affect the time.
    """
    if given.data_uri:
        table = _open(given)
    else:
        drawn = given.folder / "drawn"
        table = open_folder(
            drawn if drawn.exists() else sample.draw(drawn, photos=given.size(250, 20)), given.folder, 0
        )
    chosen = table.photos
    # Spread over the whole data set, since its first photos may be of the same kind.
    if number < len(chosen):
        chosen = chosen.iloc[np.linspace(0, len(chosen) - 1, number).astype(int)]
    return repeated(replace(table, photos=chosen, class_names=["even", "odd"], problems=table.problems.head(0)), number)


def repeated(table: CarTable, number: int) -> CarTable:
    """Return a table of `number` photos: those of `table`, in turn, under new names. The last one is for the test."""
    times = -(-number // len(table.photos))
    rows = pd.concat([table.photos] * times, ignore_index=True).head(number)
    names = [f"{row:06d}-{Path(path).name}" for row, path in enumerate(rows["path"])]
    splits, labels = ["train"] * (number - 1) + ["test"], np.arange(number) % 2
    return replace(table, photos=rows.assign(source=names, split=splits, label=labels))


def _open(given: Given) -> CarTable:
    table = open_folder(Path(given.data_uri), given.folder, 0)
    if isinstance(table, ReadyStores):
        raise InputError(f"{given.data_uri} contains stores; the benchmark needs photos")
    return table


def scaled(table: CarTable, side: int, folder: Path) -> CarTable:
    """Write copies of the photos whose longer side has `side` pixels, and return their table."""
    folder.mkdir()
    paths = [str(folder / f"{row}.jpg") for row in range(len(table.photos))]

    def scale(row: int) -> np.ndarray:
        pixels = cv2.imread(table.photos["path"].iloc[row])
        height, width = pixels.shape[:2]
        factor = side / max(height, width)
        new = round(width * factor), round(height * factor)
        cv2.imwrite(paths[row], resize(pixels, *new), [cv2.IMWRITE_JPEG_QUALITY, 90])
        corners = table.photos[CORNERS].iloc[row].to_numpy() * factor
        # Rounded towards the inside of the frame, with at least one pixel.
        x1, y1 = np.minimum(corners[:2], np.array(new) - 1).astype(int)
        x2, y2 = np.maximum(np.minimum(corners[2:], new), (x1 + 1, y1 + 1)).astype(int)
        return np.array([x1, y1, x2, y2]) if corners[0] >= 0 else np.full(4, -1)

    boxes = np.stack(on_all_cores(scale, range(len(paths))))
    return replace(table, photos=table.photos.assign(path=paths, **dict(zip(CORNERS, boxes.T, strict=True))))


def on_all_cores(work: Callable, items: object) -> list:
    """Return the results of a function, which is called on a thread per core, in the order of the items."""
    with one_opencv_thread(), ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(work, items))


def store_of(given: Given, number: int, folder: Path, side: int = IMAGE_SIZE) -> Store:
    """Write the photos to a new directory and return the store of the training photos, whose sides have `side` pixels."""
    folder.mkdir()
    write_stores(photos(given, number + 1), folder, Preprocess(image_size=side, validation_fraction=0.0))
    return open_store(folder / "train.h5")
