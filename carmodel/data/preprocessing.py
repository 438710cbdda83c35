"""Preprocess photos into stores: decode every photo, choose the validation rows, write train.h5 and test.h5."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from carmodel.data.data_report import Report, report_on_photos, report_on_stores
from carmodel.data.images import Box, ImageError, check_box, prepare, read_header
from carmodel.data.local_engine import OUTCOME_COLUMNS, Engine, local_engine
from carmodel.data.near_duplicates import group_duplicates, perceptual_hash
from carmodel.data.split import digest, hold_out
from carmodel.data.store import StoreError, open_store
from carmodel.data.table import NO_BOX, PROBLEM_COLUMNS, CarTable
from carmodel.data.writer import StoreColumns, StoreSpec
from carmodel.errors import InputError
from carmodel.parameters import Preprocess

CREATED_BY = "carmodel preprocess"


def decode_batch(photos: pd.DataFrame, images: np.ndarray, crop: str, margin: float) -> pd.DataFrame:
    """Read and prepare each photo once, as `carmodel.data.local_engine.MakeImages` describes."""
    outcomes = []
    boxes = zip(*(photos[corner].tolist() for corner in ("x1", "y1", "x2", "y2")), strict=True)
    for i, (path, box) in enumerate(zip(photos["path"], boxes, strict=True)):
        content, look, problem, detail = b"", b"", "", ""
        try:
            data = Path(path).read_bytes()
            content = digest(data)
            _prepare(data, None if box == NO_BOX else box, crop, margin, images[i])
            look = perceptual_hash(images[i])
        except ImageError as error:
            problem, detail = error.problem, str(error)
        except OSError as error:
            problem, detail = "unreadable", str(error.strerror)
        outcomes.append((content, look, problem, detail))
    return pd.DataFrame(outcomes, columns=OUTCOME_COLUMNS, index=photos.index)


def write_stores(
    table: CarTable, out: Path, settings: Preprocess, note: str = "", engine: Engine = local_engine
) -> Report:
    """Write train.h5 and test.h5 into a directory: both or none.

    Photos that cannot be used are left out and listed in the report. Rows are in the order of their source names. Part
    of the training rows of each class is marked as validation, and near-duplicates share a side. If no photo has a box,
    the stores have crop "none" whatever the settings are.

    Args:
        table: the photos.
        out: existing directory.
        settings: image_size, crop, margin, classes, validation_fraction, max_bad_fraction and seed are used.
        note: saved in the stores, for example that the photos are synthetic.
        engine: decodes the photos.

    Raises:
        InputError: too many photos cannot be used, or a class has no training photo, or there is no test photo.
    """
    table = table.first_classes(settings.classes)
    crop = settings.crop
    if crop == "box" and (table.photos[["x1", "y1", "x2", "y2"]] == NO_BOX).all(axis=None):
        crop = "none"
        table = replace(table, notes=[*table.notes, "No photo has a box, so whole photos are used, as with crop=none."])
    photos = table.photos.sort_values(["split", "source"], ignore_index=True)
    if lacking := _lacking(photos, table.class_names):
        raise InputError(lacking + _summary_of(table.problems))
    decode = partial(decode_batch, crop=settings.crop, margin=settings.margin)
    attrs = {"crop": crop, "margin": settings.margin, "seed": settings.seed, "note": note, "created_by": CREATED_BY}
    problems, kept = [table.problems], []

    def describe(rows: pd.DataFrame, fraction: float, outcomes: pd.DataFrame) -> StoreColumns:
        usable = rows.join(outcomes)[outcomes["problem"] == ""]
        kept.append(usable)
        labels, digests = usable["label"].to_numpy(), usable["digest"].tolist()
        if fraction:
            groups = group_duplicates(digests, usable["perceptual_hash"].tolist())
            validation = hold_out(labels, digests, fraction, settings.seed, groups=groups)
        else:
            validation = np.zeros(len(labels), np.bool_)
        return StoreColumns(labels, usable["source"].tolist(), np.arange(len(usable)), validation)

    with TemporaryDirectory(prefix=".", dir=out) as unfinished:
        for split, fraction in {"train": settings.validation_fraction, "test": 0.0}.items():
            path, rows = Path(unfinished) / f"{split}.h5", photos[photos["split"] == split]
            spec = StoreSpec(path, settings.image_size, table.class_names, split=split, **attrs)
            engine(spec, decode, rows, problems.append, partial(describe, rows, fraction))
        all_problems = pd.concat([found[PROBLEM_COLUMNS] for found in problems], ignore_index=True)
        _check_problems(all_problems, pd.concat(kept), table, settings.max_bad_fraction)
        # train before test, and the parts of a store before the file that names them.
        for item in sorted(Path(unfinished).iterdir(), reverse=True):
            item.replace(out / item.name)
    stores = open_store(out / "train.h5"), open_store(out / "test.h5")
    return report_on_photos(stores, table, pd.concat(kept), all_problems, settings)


def check_stores(folder: Path) -> Report:
    """Check the schema, checksums and classes of an existing train.h5 and test.h5.

    Raises:
        StoreError: a store is damaged or empty, or the two differ in classes or image size.
    """
    train, test = open_store(folder / "train.h5"), open_store(folder / "test.h5")
    if train.class_names != test.class_names or train.image_shape != test.image_shape:
        raise StoreError(f"{folder}: train.h5 and test.h5 differ in classes or image size; preprocess them together")
    for store in (train, test):
        if len(store) == 0:
            raise StoreError(f"{store.paths[0]} has no rows")
        store.verify()
    return report_on_stores(train, test, ["The stores exist already. They were checked, not written."])


def _prepare(data: bytes, box: Box | None, crop: str, margin: float, out: np.ndarray) -> None:
    size = len(out)
    if crop == "box":
        prepare(data, size, box, margin, out=out)
        return
    if box is not None:  # a box outside its photo shows that one of the two is wrong, even if the box is not used
        header = read_header(data)
        check_box(box, header.width, header.height)
    prepare(data, size, out=out)


def _check_problems(problems: pd.DataFrame, kept: pd.DataFrame, table: CarTable, allowed: float) -> None:
    bad, total = len(problems), len(table.photos) + len(table.problems)
    if lacking := _lacking(kept, table.class_names):
        raise InputError(lacking + _summary_of(problems))
    if bad / total > allowed:
        raise InputError(
            f"{bad} of {total} photos cannot be used, more than max_bad_fraction={allowed:g} allows. Repair them, or leave "
            f"them out with max_bad_fraction={math.ceil(1000 * bad / total) / 1000:g}.{_summary_of(problems)}"
        )


def _summary_of(problems: pd.DataFrame) -> str:
    """Return how many photos have which problem, and the first five; empty without problems."""
    if problems.empty:
        return ""
    counts = ", ".join(f"{count} {problem}" for problem, count in problems["problem"].value_counts().items())
    first = zip(*(problems[name].head(5) for name in ("split", "source", "problem", "detail")), strict=True)
    listed = "; ".join(f"{split}/{source}: {problem}, {detail}" for split, source, problem, detail in first)
    return f" Photos that cannot be used: {counts}. The first: {listed}"


def _lacking(photos: pd.DataFrame, class_names: list[str]) -> str:
    """Return what is missing for training and testing; empty if nothing is."""
    counts = np.bincount(photos.loc[photos["split"] == "train", "label"].astype(int), minlength=len(class_names))
    if empty := [name for name, count in zip(class_names, counts, strict=True) if count == 0]:
        names = ", ".join(empty[:5])
        return f"No usable training photo of {names} ({len(empty)} of {len(class_names)} classes)."
    return "" if (photos["split"] == "test").any() else "There is no usable, labelled test photo."
