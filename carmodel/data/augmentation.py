"""Augment training rows: crop, pad, horizontal flip.

A copy depends only on the seed, the source row and the number of the copy, so the order of the work and the number of
workers do not change it.
"""

from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from carmodel.data.images import resize
from carmodel.data.local_engine import OUTCOME_COLUMNS, Engine, local_engine
from carmodel.data.store import Store, open_store
from carmodel.data.transform import Transform, TransformError, transformed
from carmodel.data.writer import StoreColumns, StoreSpec
from carmodel.errors import InputError

CREATED_BY = "carmodel augment"


def rng_for(seed: int, source_row: int, copy: int) -> np.random.Generator:
    """Return the random generator of one copy: Philox, keyed by seed, row and copy (Salmon et al., SC11, 2011)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, source_row, copy])))


def cut_sides(image: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Cut off fractions of the width and height: (H, W, 3) to a view (h, w, 3) of at least one pixel."""
    height, width = image.shape[:2]
    x1, y1 = min(round(left * width), width - 1), min(round(top * height), height - 1)
    x2, y2 = max(round((1 - right) * width), x1 + 1), max(round((1 - bottom) * height), y1 + 1)
    return image[y1:y2, x1:x2]


def pad_sides(image: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Add fractions of the width and height as a border: (H, W, 3) to (h, w, 3).

    The border has the image's mean colour, since a black frame looks like no real photo.
    """
    height, width = image.shape[:2]
    across, down = (round(left * width), round(right * width)), (round(top * height), round(bottom * height))
    return cv2.copyMakeBorder(image, *down, *across, cv2.BORDER_CONSTANT, value=cv2.mean(image))


def mirror(image: np.ndarray) -> np.ndarray:
    """Swap left and right: (H, W, 3) to the same shape."""
    return cv2.flip(image, 1)


def augment(image: np.ndarray, rng: np.random.Generator, crop: float, pad: float, flip: float) -> np.ndarray:
    """Crop, pad and flip at random, and resize to the original size.

    Args:
        image: uint8 (H, W, 3).
        rng: generator of this copy. The number of draws does not depend on the strengths, so switching one operation
            off does not change the others.
        crop: largest fraction of a side to cut off, divided at random between its two ends (0: off).
        pad: largest fraction of a side to add, divided in the same way (0: off).
        flip: probability of a horizontal flip (0: off).

    Returns:
        uint8 (H, W, 3).
    """
    cut, cut_share, added, added_share = rng.random((4, 2))
    height, width = image.shape[:2]
    changed = cut_sides(image, *(crop * cut * cut_share), *(crop * cut * (1 - cut_share)))
    changed = pad_sides(changed, *(pad * added * added_share), *(pad * added * (1 - added_share)))
    if rng.random() < flip:
        changed = mirror(changed)
    if changed.shape == image.shape:
        return np.ascontiguousarray(changed)
    return resize(changed, width, height)


def augment_store(
    train_h5: Path,
    out_h5: Path,
    *,
    copies: int,
    crop: float,
    pad: float,
    flip: float,
    seed: int,
    transform: Transform | None = None,
    engine: Engine = local_engine,
) -> None:
    """Write augmented copies of a store's training rows. Validation rows are not augmented.

    The new store is ordered by row, then by copy. Each copy has the label and source of its row, source_index is the row
    in `train_h5`, and validation is false.

    Args:
        train_h5: the training store.
        out_h5: the store to write.
        copies: number of copies of each training row.
        crop: see `augment`.
        pad: see `augment`.
        flip: see `augment`.
        seed: seed of all copies.
        transform: the user's own function, applied after crop, pad and flip.
        engine: makes the copies.

    Raises:
        InputError: `transform` raised an exception, or changed the shape or dtype. Names the row and the photo.
    """
    train = open_store(train_h5)
    origin = np.repeat(np.flatnonzero(~train.validation), copies)
    copy = np.arange(len(origin)) % max(copies, 1)
    table = pd.DataFrame({"row": origin, "copy": copy, "source": train.source[origin]})
    change = partial(augment, crop=crop, pad=pad, flip=flip)
    inherited = {name: train.attrs[name] for name in ("split", "crop", "margin", "note")}
    engine(
        StoreSpec(out_h5, train.image_size, train.class_names, seed=seed, created_by=CREATED_BY, **inherited),
        partial(augment_batch, train_h5=train_h5.resolve(), seed=seed, change=change, transform=transform),
        table,
        _raise_first,
        lambda _: StoreColumns(
            train.labels[origin], train.source[origin], origin, np.zeros(len(origin), np.bool_), train.aspect[origin]
        ),
    )


def augment_batch(
    copies: pd.DataFrame,
    images: np.ndarray,
    *,
    train_h5: Path,
    seed: int,
    change: Transform,
    transform: Transform | None,
) -> pd.DataFrame:
    """Make a batch of copies. `carmodel.data.local_engine.MakeImages` describes the interface.

    Args:
        copies: the columns row, the row in the store, and copy, the number of the copy.
        images: uint8 (n, H, W, 3) to fill.
        train_h5: the store.
        seed: seed of all copies.
        change: the built-in augmentation.
        transform: the user's function that follows it, or None.
    """
    _opened(train_h5, train_h5.stat().st_mtime_ns).take(copies["row"].to_numpy(), images)
    problems = [""] * len(copies)
    for i, (row, copy) in enumerate(zip(copies["row"].tolist(), copies["copy"].tolist(), strict=True)):
        rng = rng_for(seed, row, copy)
        images[i] = change(images[i], rng)
        if transform:
            try:
                images[i] = transformed(images[i], rng, transform)
            except TransformError as error:
                problems[i] = str(error)
    kinds = ["transform" if problem else "" for problem in problems]
    outcomes = {"digest": b"", "perceptual_hash": b"", "aspect": 1.0, "problem": kinds, "detail": problems}
    return pd.DataFrame(outcomes, columns=OUTCOME_COLUMNS, index=copies.index)


@lru_cache(maxsize=1)
def _opened(path: Path, modified_ns: int) -> Store:
    """Open a store once per process, and again if its file changes."""
    return open_store(path)


def _raise_first(failed: pd.DataFrame) -> None:
    first = failed.iloc[0]
    raise InputError(f"row {first['row']} ({first['source']}), copy {first['copy']}: {first['detail']}")


def check_augmented(train: Store, augmented: Store) -> None:
    """Check that a store contains copies of the training rows of another one.

    Raises:
        InputError: a row is a copy of a validation row, which would make validation look better than it is, or of a row
            that `train` does not have with that source and label.
    """
    origin = augmented.source_index
    inside = (origin >= 0) & (origin < len(train))
    row_in_train = np.where(inside, origin, 0)
    same_photo = (train.labels[row_in_train] == augmented.labels) & (train.source[row_in_train] == augmented.source)
    of_validation = train.validation[row_in_train]
    for wrong, error in (
        (~(inside & same_photo), "is not a copy of row"),
        (of_validation, "is a copy of the validation row"),
    ):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{augmented.paths[0]}: row {row} ({augmented.source[row]}) {error} {origin[row]} of {train.paths[0]}; "
                "make the augmented copies from this store"
            )
