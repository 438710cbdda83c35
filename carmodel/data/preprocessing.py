"""Photos to stores: decode every photo, choose the validation rows, write train.h5 and test.h5.

`decode_batch` is a function of a slice of the table alone; the engine decides where it runs.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from carmodel.data.data_report import Report, report_on_photos, report_on_stores
from carmodel.data.images import Box, ImageError, check_box, prepare, read_header
from carmodel.data.local_engine import OUTCOME_COLUMNS, Engine, local_engine
from carmodel.data.split import digest, hold_out
from carmodel.data.store import StoreError, open_store
from carmodel.data.table import NO_BOX, PROBLEM_COLUMNS, CarTable
from carmodel.data.writer import StoreColumns, StoreSpec
from carmodel.errors import InputError
from carmodel.parameters import Preprocess

CREATED_BY = "carmodel preprocess"


def decode_batch(photos: pd.DataFrame, images: np.ndarray, crop: str, margin: float) -> pd.DataFrame:
    """Read and prepare each photo, once: see `carmodel.data.local_engine.Make`."""
    told = []
    boxes = zip(*(photos[corner].tolist() for corner in ("x1", "y1", "x2", "y2")), strict=True)
    for i, (path, box) in enumerate(zip(photos["path"], boxes, strict=True)):
        content, problem, detail = b"", "", ""
        try:
            data = Path(path).read_bytes()
            content = digest(data)
            _prepare(data, None if box == NO_BOX else box, crop, margin, images[i])
        except ImageError as error:
            problem, detail = error.problem, str(error)
        except OSError as error:
            problem, detail = "unreadable", str(error.strerror)
        told.append((content, problem, detail))
    return pd.DataFrame(told, columns=OUTCOME_COLUMNS, index=photos.index)


def write_stores(
    table: CarTable, out: Path, settings: Preprocess, note: str = "", engine: Engine = local_engine
) -> Report:
    """Write train.h5 and test.h5 into a folder: both or none.

    Photos that cannot be used are left out and listed in the report. StoreColumns are in the order of their source names. Part
    of the training rows of each class is marked as validation; byte-identical photos share a side. Where no photo has a
    box the stores have crop "none", whatever the settings say.

    Args:
        table: the photos.
        out: existing folder.
        settings: image_size, crop, margin, classes, validation_fraction, max_bad_fraction and seed are used.
        note: kept in the stores, such as that the photos are synthetic.
        engine: where the photos are decoded.

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
    photos = table.photos.sort_values(["split", "source"], ignore_index=True)
    _check_classes(photos, table.class_names)
    decode = partial(decode_batch, crop=settings.crop, margin=settings.margin)
    attrs = {"crop": crop, "margin": settings.margin, "seed": settings.seed, "note": note, "created_by": CREATED_BY}
    kept: list[pd.DataFrame] = []

    def describe(rows: pd.DataFrame, held_out: float, told: pd.DataFrame) -> StoreColumns:
        fine = rows.join(told)[told["problem"] == ""]
        kept.append(fine)
        labels = fine["label"].to_numpy()
        validation = hold_out(labels, fine["digest"].tolist(), held_out, settings.seed)
        return StoreColumns(labels, fine["source"].tolist(), np.arange(len(fine)), validation)

    with TemporaryDirectory(prefix=".", dir=out) as unfinished:
        for split, held_out in {"train": settings.validation_fraction, "test": 0.0}.items():
            path, rows = Path(unfinished) / f"{split}.h5", photos[photos["split"] == split]
            header = StoreSpec(path, settings.image_size, table.class_names, split=split, **attrs)
            engine(header, decode, rows, found.add, partial(describe, rows, held_out))
        _check_classes(pd.concat(kept), table.class_names)
        # train before test, and the parts of a store before the file that names them.
        for item in sorted(Path(unfinished).iterdir(), reverse=True):
            item.replace(out / item.name)
    stores = open_store(out / "train.h5"), open_store(out / "test.h5")
    return report_on_photos(stores, table, pd.concat(kept), found.all, settings)


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
            f"{bad} of {self._total} photos cannot be used so far ({counts}), more than max_bad_fraction={self._allowed:g} "
            f"allows. The first: {listed}. Repair them, or leave them out with a max_bad_fraction of at least "
            f"{np.ceil(1000 * bad / self._total) / 1000:g}"
        )


def _prepare(data: bytes, box: Box | None, crop: str, margin: float, out: np.ndarray) -> None:
    size = len(out)
    if crop == "box":
        prepare(data, size, box, margin, out=out)
        return
    if box is not None:  # not used, but a box that leaves its photo says that one of the two is wrong
        header = read_header(data)
        check_box(box, header.width, header.height)
    prepare(data, size, out=out)


def _check_classes(photos: pd.DataFrame, class_names: list[str]) -> None:
    if photos.empty:
        raise InputError("there is no labelled photo")
    training = photos[photos["split"] == "train"]
    counts = np.bincount(training["label"], minlength=len(class_names))
    if empty := [name for name, count in zip(class_names, counts, strict=True) if count == 0]:
        names = ", ".join(empty[:5])
        raise InputError(f"no usable training photo of {names} ({len(empty)} of {len(class_names)} classes)")
    if not (photos["split"] == "test").any():
        raise InputError("there is no usable labelled test photo")
