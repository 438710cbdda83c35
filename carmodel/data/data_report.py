"""Report which photos were read or left out, why, and what the stores contain, as values that JSON can represent."""

from typing import TypedDict

import numpy as np
import pandas as pd

from carmodel.data.near_duplicates import group_duplicates
from carmodel.data.store import Store
from carmodel.data.table import CarTable
from carmodel.parameters import Preprocess

FEW = 100
"""Number of photos below which the 95% interval of an accuracy is wider than ±10 points."""


class Report(TypedDict):
    """The data report.

    Keys:
        splits: rows of each store, {"train": {"rows", "training", "validation"}, "test": {"rows"}}.
        photos: number of photos and annotations, including those that cannot be used.
        bad_fraction: fraction of these photos that was left out.
        problems: counts, {split: {problem: count}}.
        listed: every problem: {split, source, problem, detail}.
        ignored_files: number of files that are not photos.
        identical_photos: groups of byte-identical photos: {"groups", "photos", "groups_with_two_labels",
            "groups_in_train_and_test"}.
        near_identical_photos: groups of photos that show the same picture in different files, with the same keys (see
            `carmodel.data.near_duplicates`).
        rows_per_class: {class name: {"training", "validation", "test"}}.
        notes: sentences for the user.
        settings: the parameters of the step.
    """

    splits: dict[str, dict[str, int]]
    photos: int
    bad_fraction: float
    problems: dict[str, dict[str, int]]
    listed: list[dict[str, str]]
    ignored_files: int
    identical_photos: dict[str, int]
    near_identical_photos: dict[str, int]
    rows_per_class: dict[str, dict[str, int]]
    notes: list[str]
    settings: dict[str, object]


def report_on_stores(train: Store, test: Store, notes: list[str]) -> Report:
    """Report on existing stores. Their original photos are not read."""
    validation = int(train.validation.sum())
    per_class = [
        np.bincount(labels, minlength=len(train.class_names)).tolist()
        for labels in (train.labels[~train.validation], train.labels[train.validation], test.labels)
    ]
    return {
        "splits": {
            "train": {"rows": len(train), "training": len(train) - validation, "validation": validation},
            "test": {"rows": len(test)},
        },
        "photos": len(train) + len(test),
        "bad_fraction": 0.0,
        "problems": {},
        "listed": [],
        "ignored_files": 0,
        "identical_photos": {},
        "near_identical_photos": {},
        "rows_per_class": {
            name: {"training": a, "validation": b, "test": c}
            for name, a, b, c in zip(train.class_names, *per_class, strict=True)
        },
        "notes": notes,
        "settings": {},
    }


def report_on_photos(
    stores: tuple[Store, Store],
    table: CarTable,
    photos: pd.DataFrame,
    problems: pd.DataFrame,
    settings: Preprocess,
) -> Report:
    """Report on photos and the stores that were written from them.

    Args:
        stores: train and test, as written.
        table: the table that was read.
        photos: the photos in the stores, with their digests and perceptual hashes.
        problems: all photos that were left out.
        settings: the parameters of the step.
    """
    report = report_on_stores(*stores, list(table.notes))
    total = len(table.photos) + len(table.problems)
    report["photos"] = total
    report["bad_fraction"] = len(problems) / total
    report["problems"] = {
        str(split): {str(problem): int(n) for problem, n in of_split.droplevel("split").items()}
        for split, of_split in problems.groupby(["split", "problem"]).size().groupby("split")
    }
    report["listed"] = [
        {str(name): str(value) for name, value in problem.items()}
        for problem in problems[["split", "source", "problem", "detail"]].to_dict("records")
    ]
    report["ignored_files"] = table.ignored_files
    groups = group_duplicates(photos["digest"].tolist(), photos["perceptual_hash"].tolist())
    report["identical_photos"] = _count_groups(photos, photos["digest"], "row")
    report["near_identical_photos"] = _count_groups(photos, groups, "digest")
    report["notes"] += [*_note_on_labels(photos, groups), *_notes_on(report)]
    report["settings"] = settings.model_dump()
    return report


def small_parts(report: Report) -> list[str]:
    """Return a warning for each part, validation or test, that has too few photos to measure an accuracy."""
    parts = {"validation": report["splits"]["train"]["validation"], "test": report["splits"]["test"]["rows"]}
    return [
        f"Only {rows} {part} photos: an accuracy measured on them may be off by {98 / rows**0.5:.0f} points."
        for part, rows in parts.items()
        if 0 < rows < FEW
    ]


def _count_groups(photos: pd.DataFrame, groups: np.ndarray | pd.Series, differing: str) -> dict[str, int]:
    """Count the groups with more than one value in the column `differing`, and their photos."""
    columns = photos.reset_index(drop=True).assign(group=np.asarray(groups), row=range(len(photos)))
    counts = columns.groupby("group")[list({"row", differing, "label", "split"})].nunique()
    several = counts[counts[differing] > 1]
    return {
        "groups": len(several),
        "photos": int(several["row"].sum()),
        "groups_with_two_labels": int((several["label"] > 1).sum()),
        "groups_in_train_and_test": int((several["split"] > 1).sum()),
    }


def _note_on_labels(photos: pd.DataFrame, groups: np.ndarray) -> list[str]:
    """Return a note that names the pictures that have several labels, or nothing."""
    by_group = photos.groupby(groups)
    wrong = by_group["source"].agg(list)[by_group["label"].nunique() > 1].tolist()
    if not wrong:
        return []
    first = "; ".join(" and ".join(map(str, sources)) for sources in wrong[:5])
    more = "; …" if len(wrong) > 5 else ""
    return [f"Pictures with several labels, of which at most one can be right: {len(wrong)}. {first}{more}."]


def _notes_on(report: Report) -> list[str]:
    notes = []
    if report["listed"]:
        first = "; ".join(f"{bad['split']}/{bad['source']} ({bad['problem']})" for bad in report["listed"][:5])
        more = ", …; data_report.json lists all" if len(report["listed"]) > 5 else ""
        notes.append(f"{len(report['listed'])} of {report['photos']} photos are left out: {first}{more}.")
    if report["ignored_files"]:
        notes.append(f"{report['ignored_files']} files that are not photos are ignored.")
    for kind, found in (
        ("Byte-identical", report["identical_photos"]),
        ("Nearly identical", report["near_identical_photos"]),
    ):
        if shared := found["groups_in_train_and_test"]:
            notes.append(
                f"{kind} in train and test: {shared} groups of photos. "
                "If their labels agree, the test accuracy looks better than it is."
            )
    return notes
