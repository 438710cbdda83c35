"""Photos to stores: check every photo, choose the validation rows, decode, write train.h5 and test.h5.

`scan_batch` and `decode_batch` are functions of a slice of the table alone; the engine decides where they run.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from carmodel.data.engines import map_batches, rows_a_batch
from carmodel.data.images import Box, ImageError, box_fault, prepare, read_header
from carmodel.data.report import Report, report_on_photos, report_on_stores
from carmodel.data.split import digest, hold_out
from carmodel.data.store import StoreError, Writer, open_store
from carmodel.data.table import NO_BOX, PROBLEM_COLUMNS, CarTable
from carmodel.errors import InputError
from carmodel.settings import Preprocess

SPLITS = ("train", "test")
CREATED_BY = "carmodel preprocess"


def scan_batch(photos: pd.DataFrame) -> pd.DataFrame:
    """Read each file once: digest, header, box.

    Returns:
        one row a photo, with its index: digest (16 bytes; empty where the file cannot be read), problem and detail
        ("" where the photo is fine).
    """
    rows = [_scan(Path(path), box) for path, box in _files(photos)]
    return pd.DataFrame(rows, columns=["digest", "problem", "detail"], index=photos.index)


def decode_batch(photos: pd.DataFrame, size: int, crop: str, margin: float) -> tuple[np.ndarray, list[str]]:
    """Prepare each photo.

    Returns:
        uint8 (n, size, size, 3), undefined where there is an error, and n errors, "" where the photo is fine.
    """
    images = np.empty((len(photos), size, size, 3), np.uint8)
    errors = [""] * len(photos)
    for i, (path, box) in enumerate(_files(photos)):
        try:
            images[i] = prepare(Path(path).read_bytes(), size, box if crop == "box" else None, margin)
        except (ImageError, OSError) as error:
            errors[i] = str(error)
    return images, errors


def write_stores(table: CarTable, out: Path, settings: Preprocess, note: str = "") -> Report:
    """Write train.h5 and test.h5 into a folder: both or none.

    Photos that cannot be used are left out and listed in the report. Rows are in the order of their source names. Part
    of the training rows of each class is marked as validation; byte-identical photos share a side. Where no photo has a
    box the stores have crop "none", whatever the settings say.

    Args:
        table: the photos.
        out: existing folder.
        settings: image_size, crop, margin, classes, validation_fraction, max_bad_fraction and seed are used.
        note: kept in the stores, such as that the photos are synthetic.

    Raises:
        InputError: too many unusable photos (counts, names and the parameter that allows them), or a class without
            training photo, or no test.
    """
    table = table.first_classes(settings.classes)
    crop = settings.crop
    if crop == "box" and (table.photos[["x1", "y1", "x2", "y2"]] == NO_BOX).all(axis=None):
        crop = "none"
        table = replace(table, notes=[*table.notes, "No photo has a box: whole photos are used, as with crop=none."])
    found = _Problems(table, settings.max_bad_fraction)
    photos = _checked(table, found)
    train = (photos["split"] == "train").to_numpy()
    labels, digests = photos["label"].to_numpy()[train], photos["digest"].to_numpy()[train]
    held = np.zeros(len(photos), np.bool_)
    held[train] = hold_out(labels, digests, settings.validation_fraction, settings.seed)
    photos = photos.assign(validation=held)
    _check_classes(photos, table.class_names)
    attrs = {"crop": crop, "margin": settings.margin, "seed": settings.seed, "note": note}
    written: list[pd.DataFrame] = []
    with TemporaryDirectory(prefix=".", dir=out) as unfinished:
        paths = [Path(unfinished) / f"{split}.h5" for split in SPLITS]
        with ExitStack() as both:
            for split, path in zip(SPLITS, paths, strict=True):
                rows = photos[photos["split"] == split]
                writer = Writer(
                    path, len(rows), settings.image_size, table.class_names, split=split, created_by=CREATED_BY, **attrs
                )
                both.enter_context(writer)
                written += [_append(writer, *batch) for batch in _decoded(rows, settings, path.name, found)]
            photos = pd.concat(written)
            _check_classes(photos, table.class_names)
        for path in paths:
            path.replace(out / path.name)
    stores = open_store(out / "train.h5"), open_store(out / "test.h5")
    return report_on_photos(stores, table, photos, found.all, settings)


def check_stores(folder: Path) -> Report:
    """Check train.h5 and test.h5 that are there already: schema, checksums, classes.

    Raises:
        StoreError: names the file, and the row or what differs.
    """
    train, test = open_store(folder / "train.h5"), open_store(folder / "test.h5")
    if train.class_names != test.class_names or train.image_shape != test.image_shape:
        raise StoreError(f"{folder}: train.h5 and test.h5 differ in classes or image size; preprocess them together")
    for store in (train, test):
        if len(store) == 0:
            raise StoreError(f"{store.paths[0]} has no rows")
        store.verify()
    return report_on_stores(train, test, ["Ready stores: checked, not written."])


class _Problems:
    """What cannot be used so far; `add` stops the run once that is more than the user allows."""

    def __init__(self, table: CarTable, allowed: float) -> None:
        self.all = table.problems
        self._total = len(table.photos) + len(table.problems)
        self._allowed = allowed
        self._check()

    def add(self, problems: pd.DataFrame) -> None:
        if len(problems):
            self.all = pd.concat([self.all, problems[PROBLEM_COLUMNS]], ignore_index=True)
            self._check()

    def _check(self) -> None:
        bad = len(self.all)
        if bad <= self._allowed * self._total:
            return
        counts = ", ".join(f"{count} {problem}" for problem, count in self.all["problem"].value_counts().items())
        first = zip(*(self.all[name].head(5) for name in ("split", "source", "problem", "detail")), strict=True)
        listed = "; ".join(f"{split}/{source}: {problem}, {detail}" for split, source, problem, detail in first)
        raise InputError(
            f"{bad} of {self._total} photos cannot be used ({counts}), more than max_bad_fraction={self._allowed:g} "
            f"allows. The first: {listed}. Repair them, or leave them out with a max_bad_fraction of at least "
            f"{np.ceil(1000 * bad / self._total) / 1000:g}"
        )


def _checked(table: CarTable, found: _Problems) -> pd.DataFrame:
    """The photos that pass the scan, sorted by split and source, with their digest; the others go to `found`."""
    photos = table.photos.sort_values(["split", "source"], ignore_index=True)
    if photos.empty:
        raise InputError("there is no labelled photo")
    photos = photos.join(pd.concat(map_batches(scan_batch, photos, "checking photos")))
    found.add(photos[photos["problem"] != ""])
    return photos[photos["problem"] == ""]


def _decoded(
    photos: pd.DataFrame, settings: Preprocess, name: str, found: _Problems
) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Slices of the photos with their images; those that cannot be decoded go to `found` instead."""
    decode = partial(decode_batch, size=settings.image_size, crop=settings.crop, margin=settings.margin)
    start = 0
    for images, errors in map_batches(decode, photos, f"writing {name}", rows_a_batch(settings.image_size)):
        batch = photos.iloc[start : start + len(images)].assign(problem="unreadable", detail=errors)
        start += len(images)
        fine = np.array([not error for error in errors])
        found.add(batch[~fine])
        yield batch[fine], images if fine.all() else images[fine]


def _append(writer: Writer, photos: pd.DataFrame, images: np.ndarray) -> pd.DataFrame:
    """Append photos and their images to a store; gives the photos back."""
    index = writer.written + np.arange(len(photos))
    labels, validation = photos["label"].to_numpy(), photos["validation"].to_numpy()
    writer.append(images, labels, photos["source"].tolist(), index, validation)
    return photos


def _files(photos: pd.DataFrame) -> Iterator[tuple[str, Box | None]]:
    boxes = zip(*(photos[corner].tolist() for corner in ("x1", "y1", "x2", "y2")), strict=True)
    for path, box in zip(photos["path"], boxes, strict=True):
        yield path, None if box == NO_BOX else box


def _scan(path: Path, box: Box | None) -> tuple[bytes, str, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        return b"", "unreadable", str(error.strerror)
    try:
        header = read_header(data)
    except ImageError as error:
        return digest(data), "unreadable", str(error)
    fault = box_fault(box, header.width, header.height) if box else None
    return digest(data), *(fault or ("", ""))


def _check_classes(photos: pd.DataFrame, class_names: list[str]) -> None:
    training = photos[(photos["split"] == "train") & ~photos["validation"]]
    counts = np.bincount(training["label"], minlength=len(class_names))
    if empty := [name for name, count in zip(class_names, counts, strict=True) if count == 0]:
        names = ", ".join(empty[:5])
        raise InputError(f"no usable training photo of {names} ({len(empty)} of {len(class_names)} classes)")
    if not (photos["split"] == "test").any():
        raise InputError("there is no usable labelled test photo")
