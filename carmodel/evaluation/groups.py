"""Accuracy by groups of photos: make and body type, as far as class names have them, and the size of the box.

Class names of Stanford Cars are "MAKE MODEL BODY YEAR", such as "Aston Martin V8 Vantage Coupe 2012".
"""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from carmodel.evaluation.wilson import wilson_interval

MAKES_OF_TWO_WORDS = ("AM General", "Alfa Romeo", "Aston Martin", "Great Wall", "Land Rover")
BODIES = (
    "Cab",
    "Convertible",
    "Coupe",
    "Hatchback",
    "Minivan",
    "Pickup",
    "Roadster",
    "SUV",
    "Sedan",
    "Truck",
    "Van",
    "Wagon",
)
SPELLINGS = {"supercab": "Cab", "estate": "Wagon", "saloon": "Sedan"} | {body.lower(): body for body in BODIES}
NO_BODY = "not named"
QUARTERS = 4


def make_of(name: str) -> str:
    """Return the make in a class name: its first word, or two words for the makes that have two."""
    return next((make for make in MAKES_OF_TWO_WORDS if name.startswith(f"{make} ")), name.partition(" ")[0])


def body_of(name: str) -> str:
    """Return the body type in a class name, the last word that is one, or `NO_BODY`."""
    words = re.split(r"[\s_-]+", name.lower())
    return next((SPELLINGS[word] for word in reversed(words) if word in SPELLINGS), NO_BODY)


def makes(class_names: Sequence[str]) -> list[str] | None:
    """Return the make of each class, or None if the names share no make, or all of them share one."""
    found = [make_of(name) for name in class_names]
    return found if 1 < len(set(found)) < len(found) else None


def bodies(class_names: Sequence[str]) -> list[str] | None:
    """Return the body type of each class, or None if fewer than half of the names have one, or all share one."""
    found = [body_of(name) for name in class_names]
    named = len(found) - found.count(NO_BODY)
    return found if 2 * named >= len(found) and len(set(found)) > 1 else None


def accuracy_by(group: Sequence[str] | np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """Return group, rows, accuracy, and its 95% interval as low and high. Most rows first.

    Args:
        group: the group of each photo, (N,).
        right: bool (N,).
    """
    photos = pd.DataFrame({"group": np.asarray(group), "right": right})
    table = photos.groupby("group")["right"].agg(rows="size", accuracy="mean").reset_index()
    intervals = [wilson_interval(a, n) for a, n in zip(table["accuracy"], table["rows"], strict=True)]
    table["low"], table["high"] = zip(*intervals, strict=True)
    return table.sort_values(["rows", "group"], ascending=[False, True], ignore_index=True)


def accuracy_by_box(boxes: pd.DataFrame, right: np.ndarray, right_whole: np.ndarray | None) -> pd.DataFrame:
    """Return the table of `accuracy_by` for the quarters of the photos by the size of their box, the smallest first.

    Args:
        boxes: see `box_quarters`. Photos without a box, where x2 is not above x1, do not count.
        right: bool (N,).
        right_whole: the same for the photos without cropping; if given, their accuracy is the column whole_accuracy.
    """
    boxed = (boxes["x2"] > boxes["x1"]).to_numpy()
    quarter = box_quarters(boxes[boxed])
    table = accuracy_by(quarter, right[boxed])
    if right_whole is not None:
        table["whole_accuracy"] = [float(right_whole[boxed][quarter == name].mean()) for name in table["group"]]
    smallest = table["group"].str.split(" ").str[0].astype(int)
    return table.loc[smallest.sort_values().index].reset_index(drop=True)


def box_quarters(boxes: pd.DataFrame) -> np.ndarray:
    """Return the quarter of each photo by the size of its box, str (N,), such as "180 to 260 px".

    The size is the side of a square with the same area, in pixels of the photo.

    Args:
        boxes: x1, y1, x2 and y2 of each photo, where x2 and y2 are exclusive.
    """
    side = np.sqrt(((boxes["x2"] - boxes["x1"]) * (boxes["y2"] - boxes["y1"])).to_numpy(np.float64))
    edges = np.unique(np.quantile(side, np.linspace(0, 1, QUARTERS + 1)).round())
    if len(edges) < 2:
        return np.full(len(side), f"{edges[0]:.0f} px")
    names = [f"{low:.0f} to {high:.0f} px" for low, high in pairwise(edges)]
    return np.array(names)[np.clip(np.searchsorted(edges, side, side="right") - 1, 0, len(names) - 1)]
