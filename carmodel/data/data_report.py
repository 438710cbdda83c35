"""The data report: what was read, what was left out and why, and what the stores hold. Plain values, for JSON."""

from typing import TypedDict

import numpy as np
import pandas as pd

from carmodel.data.store import Store
from carmodel.data.table import CarTable
from carmodel.parameters import Preprocess


class Report(TypedDict):
    """The data report.

    Keys:
        splits: rows of each store, {"train": {"rows", "training", "validation"}, "test": {"rows"}}.
        photos: photos and annotations that were looked at, unusable ones included.
        bad_fraction: part of them that was left out.
        problems: counts, {split: {problem: count}}.
        listed: every problem: {split, source, problem, detail}.
        identical_photos: byte-identical photos: {"groups", "photos", "groups_with_two_labels",
            "groups_in_train_and_test"}.
        rows_per_class: {class name: {"training", "validation", "test"}}.
        notes: what the user should know.
        settings: the parameters of the step.
    """

    splits: dict[str, dict[str, int]]
    photos: int
    bad_fraction: float
    problems: dict[str, dict[str, int]]
    listed: list[dict[str, str]]
    identical_photos: dict[str, int]
    rows_per_class: dict[str, dict[str, int]]
    notes: list[str]
    settings: dict[str, object]


def report_on_stores(train: Store, test: Store, notes: list[str]) -> Report:
    """The report on stores whose photos are not at hand."""
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
        "identical_photos": {},
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
    """The report on photos and the stores that were written from them.

    Args:
        stores: train and test, as written.
        table: as it was read.
        photos: those that passed the scan, with their digest.
        problems: all that was left out.
        settings: the parameters of the step.
    """
    twins = photos.groupby("digest").agg(n=("source", "size"), labels=("label", "nunique"), splits=("split", "nunique"))
    twins = twins[twins["n"] > 1]
    shared = int((twins["splits"] > 1).sum())
    notes = list(table.notes)
    if shared:
        notes.append(f"Byte-identical in train and test: {shared} photos. Accuracy on the test is flattered by them.")
    counts = problems.groupby(["split", "problem"]).size()
    report = report_on_stores(*stores, notes)
    total = len(table.photos) + len(table.problems)
    report["photos"] = total
    report["bad_fraction"] = len(problems) / total
    report["problems"] = {
        str(split): {str(problem): int(n) for problem, n in of_split.droplevel("split").items()}
        for split, of_split in counts.groupby("split")
    }
    report["listed"] = [
        {str(name): str(value) for name, value in problem.items()}
        for problem in problems[["split", "source", "problem", "detail"]].to_dict("records")
    ]
    report["identical_photos"] = {
        "groups": len(twins),
        "photos": int(twins["n"].sum()),
        "groups_with_two_labels": int((twins["labels"] > 1).sum()),
        "groups_in_train_and_test": shared,
    }
    report["settings"] = settings.model_dump()
    return report
