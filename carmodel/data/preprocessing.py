"""Preprocess photos into HDF5 stores: decode every photo, choose the validation rows, write train.h5 and test.h5."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from carmodel.data.data_report import Report, report_on_photos, report_on_stores
from carmodel.data.images import ImageError, check_box, prepare_with_aspect, read_header
from carmodel.data.local_engine import OUTCOME_COLUMNS, Engine, MakeImages, local_engine
from carmodel.data.near_duplicates import group_duplicates, perceptual_hash
from carmodel.data.split import digest, hold_out
from carmodel.data.store import StoreError, open_store
from carmodel.data.table import NO_BOX, PHOTO_COLUMNS, PROBLEM_COLUMNS, CarTable
from carmodel.data.writer import StoreColumns, StoreSpec
from carmodel.errors import InputError
from carmodel.parameters import Preprocess

CREATED_BY = "carmodel preprocess"

WHOLE = {"train": "validation_whole.h5", "test": "test_whole.h5"}
"""Stores of the validation and test photos without cropping, for photos that are sent without a box, by split."""

BOXES = "test_boxes.csv"
"""The boxes of the rows of test.h5, if photos are cropped: source, x1, y1, x2, y2, in pixels of the photo; -1 without a box."""


def read_boxes(folder: Path) -> pd.DataFrame | None:
    """Return the table `BOXES` beside the stores, or None if there is none."""
    return pd.read_csv(folder / BOXES) if (folder / BOXES).is_file() else None


def decode_batch(photos: pd.DataFrame, images: np.ndarray, margin: float) -> pd.DataFrame:
    """Read and prepare each photo once, as `carmodel.data.local_engine.MakeImages` describes.

    Args:
        photos: path, box and `whole`, whether the photo is kept whole instead of cropped to its box.
        images: uint8 (n, H, W, 3) to fill.
        margin: context around the boxes.
    """
    outcomes = []
    corners = zip(*(photos[corner].tolist() for corner in ("x1", "y1", "x2", "y2")), strict=True)
    for i, (path, given, whole) in enumerate(zip(photos["path"], corners, photos["whole"].tolist(), strict=True)):
        content, perceptual, aspect, problem, detail = b"", b"", 1.0, "", ""
        try:
            data = Path(path).read_bytes()
            content = digest(data)
            box = None if given == NO_BOX else given
            if box and whole:  # a box outside its photo shows that one of the two is wrong, even if the box is not used
                header = read_header(data)
                check_box(box, header.width, header.height)
            _, aspect = prepare_with_aspect(data, len(images[i]), None if whole else box, margin, out=images[i])
            perceptual = perceptual_hash(images[i])
        except ImageError as error:
            problem, detail = error.problem, str(error)
        except OSError as error:
            problem, detail = "unreadable", str(error.strerror)
        outcomes.append((content, perceptual, aspect, problem, detail))
    return pd.DataFrame(outcomes, columns=OUTCOME_COLUMNS, index=photos.index)


def write_stores(
    table: CarTable, out: Path, settings: Preprocess, note: str = "", engine: Engine = local_engine
) -> Report:
    """Write train.h5 and test.h5 into a directory: both or none.

    If photos are cropped, the validation and test photos are also written whole, to the files in `WHOLE`, and the boxes of
    the test photos to `BOXES`. With crop "both", each training photo is in train.h5 twice: cropped photos first, then whole
    ones.

    Photos that cannot be used are left out and listed in the report. Rows are in the order of their source names. Part
    of the training rows of each class is marked as validation, and near-duplicates share a side. If no photo has a box,
    the stores have crop "none" whatever the settings are, otherwise "box" or "none".

    Args:
        table: the photos.
        out: existing directory.
        settings: image_size, crop, margin, classes, validation_fraction, max_bad_fraction and seed are used.
        note: saved in the stores, for example that the photos are synthetic.
        engine: decodes the photos.

    Raises:
        InputError: too many photos cannot be used, or a class has no training photo, or there is no test photo.
    """
    table, crop = _choose_crop(table.first_classes(settings.classes), settings.crop)
    photos = table.photos.assign(whole=crop == "none")
    if settings.crop == "both" and crop == "box":
        photos = pd.concat([photos, photos[photos["split"] == "train"].assign(whole=True)])
    photos = photos.sort_values(["split", "whole", "source"], ignore_index=True)
    if lacking := _lacking(photos, table.class_names):
        raise InputError(lacking + _summary_of(table.problems))
    decode = partial(decode_batch, margin=settings.margin)
    store_spec = partial(
        StoreSpec,
        image_size=settings.image_size,
        class_names=table.class_names,
        margin=settings.margin,
        seed=settings.seed,
        note=note,
        created_by=CREATED_BY,
    )
    problems, kept = [table.problems], []

    def describe(rows: pd.DataFrame, fraction: float, outcomes: pd.DataFrame) -> StoreColumns:
        usable = rows.join(outcomes)[outcomes["problem"] == ""]
        labels = usable["label"].to_numpy()
        validation = np.zeros(len(labels), np.bool_)
        if fraction:
            photos = usable.drop_duplicates("source")  # with crop "both" a photo has two rows, which stay together
            digests = photos["digest"].tolist()
            groups = group_duplicates(digests, photos["perceptual_hash"].tolist())
            held = hold_out(photos["label"].to_numpy(), digests, fraction, settings.seed, groups=groups)
            validation = usable["source"].isin(photos["source"][held]).to_numpy()
        measured = (validation | (usable["split"] == "test")) & ~usable["whole"]
        kept.append(usable.assign(measured=measured))
        return StoreColumns(
            labels, usable["source"].tolist(), np.arange(len(usable)), validation, usable["aspect"].to_numpy()
        )

    with TemporaryDirectory(prefix=".", dir=out) as unfinished:
        for split, fraction in {"train": settings.validation_fraction, "test": 0.0}.items():
            path, rows = Path(unfinished) / f"{split}.h5", photos[photos["split"] == split]
            spec = store_spec(path, split=split, crop=crop)
            engine(spec, decode, rows, problems.append, partial(describe, rows, fraction))
            if crop == "box":
                spec = store_spec(path.with_name(WHOLE[split]), split=split, crop="none")
                _write_whole(spec, decode, kept[-1], engine)
        if crop == "box":
            kept[-1][["source", "x1", "y1", "x2", "y2"]].to_csv(Path(unfinished, BOXES), index=False)
        # With crop "both" each training photo has two rows, and counts once.
        all_problems, usable_photos = (
            pd.concat(frames, ignore_index=True).drop_duplicates(["split", "source", "problem"], ignore_index=True)
            for frames in ([frame[PROBLEM_COLUMNS] for frame in problems], kept)
        )
        _check_problems(all_problems, usable_photos, table, settings.max_bad_fraction)
        _move_stores(Path(unfinished), out)
    stores = open_store(out / "train.h5"), open_store(out / "test.h5")
    return report_on_photos(stores, table, usable_photos, all_problems, settings)


def _choose_crop(table: CarTable, crop: str) -> tuple[CarTable, str]:
    """Return the attribute `crop` of the stores, "box" or "none", and the table, with a note if no photo has a box."""
    if crop == "none" or not (table.photos[["x1", "y1", "x2", "y2"]] == NO_BOX).all(axis=None):
        return table, "none" if crop == "none" else "box"
    note = "No photo has a box, so whole photos are used, as with crop=none."
    return replace(table, notes=[*table.notes, note]), "none"


def _move_stores(source: Path, target: Path) -> None:
    """Move stores to a directory: train, test, then whole photos, and the parts of a store before the file that links them."""
    for item in sorted(
        source.iterdir(), key=lambda item: ("whole" in item.name, item.name.startswith("test"), item.suffix == ".h5")
    ):
        item.replace(target / item.name)


def _write_whole(spec: StoreSpec, decode: MakeImages, photos: pd.DataFrame, engine: Engine) -> None:
    """Write the measured rows of a store again, as whole photos; source_index is the row in that store."""
    rows = np.flatnonzero(photos["measured"])
    if len(rows) == 0:
        return
    table = photos.iloc[rows][PHOTO_COLUMNS].assign(whole=True)
    labels, sources = table["label"].to_numpy(), table["source"].tolist()
    columns = StoreColumns(labels, sources, rows, np.full(len(rows), spec.path.name == WHOLE["train"]))
    engine(spec, decode, table, _raise_changed, lambda outcomes: replace(columns, aspect=outcomes["aspect"].to_numpy()))


def _raise_changed(problems: pd.DataFrame) -> None:
    first = problems.iloc[0]
    raise InputError(f"{first['path']} changed while it was read: {first['detail']}")


def check_stores(folder: Path) -> Report:
    """Check the schema, checksums and classes of an existing train.h5 and test.h5.

    Raises:
        StoreError: a store is damaged or empty, or the two differ in classes or image size.
    """
    train, test = open_store(folder / "train.h5"), open_store(folder / "test.h5")
    if train.class_names != test.class_names or train.image_shape != test.image_shape:
        raise StoreError(f"{folder}: train.h5 and test.h5 differ in classes or image size; preprocess them together")
    whole = [open_store(file) for name in WHOLE.values() if (file := folder / name).is_file()]
    for store in (train, test, *whole):
        if len(store) == 0:
            raise StoreError(f"{store.paths[0]} has no rows")
        store.verify()
    return report_on_stores(train, test, ["The stores exist already. They were checked, not written."])


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
    listed = "; ".join(f"{source} ({split}): {problem}, {detail}" for split, source, problem, detail in first)
    return f" Photos that cannot be used: {counts}. The first: {listed}"


def _lacking(photos: pd.DataFrame, class_names: list[str]) -> str:
    """Return what is missing for training and testing; empty if nothing is."""
    counts = np.bincount(photos.loc[photos["split"] == "train", "label"].astype(int), minlength=len(class_names))
    if empty := [name for name, count in zip(class_names, counts, strict=True) if count == 0]:
        names = ", ".join(empty[:5])
        return f"No usable training photo of {names} ({len(empty)} of {len(class_names)} classes)."
    return "" if (photos["split"] == "test").any() else "There is no usable, labelled test photo."
