"""The table of labelled photos that every layout is read into."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

PHOTO_COLUMNS = ["split", "path", "source", "label", "x1", "y1", "x2", "y2"]
PROBLEM_COLUMNS = ["split", "source", "label", "problem", "detail"]
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
NO_BOX = (-1, -1, -1, -1)

PhotoRow = tuple[str, str, str, int, int, int, int, int]
ProblemRow = tuple[str, str, int, str, str]


@dataclass(frozen=True)
class CarTable:
    """Labelled photos, and what was found wrong while they were matched to their labels.

    Attributes:
        photos: one row a photo: split ("train" or "test"), path (absolute), source (file name in the data set, unique
            within the split), label (int64, 0-based), x1, y1, x2, y2 (int64 pixels, 0-based, x2 and y2 exclusive; -1
            without a box).
        class_names: label i is class_names[i].
        problems: one row a photo or annotation that cannot be used: split, source, label (-1 where unknown), problem
            (missing, extra, unlabelled, annotated_twice, no_box, and later unreadable, zero_area, out_of_frame), detail.
        notes: what the user should know of how the table came about.
    """

    photos: pd.DataFrame
    class_names: list[str]
    problems: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    def first_classes(self, n: int) -> "CarTable":
        """The table of classes 0 … n-1, with the problems known to be theirs; n = 0 keeps everything."""
        if n == 0 or n >= len(self.class_names):
            return self
        photos = self.photos[self.photos["label"] < n].reset_index(drop=True)
        problems = self.problems[self.problems["label"].between(0, n - 1)].reset_index(drop=True)
        notes = [*self.notes, f"The first {n} of {len(self.class_names)} classes alone."]
        return CarTable(photos, self.class_names[:n], problems, notes)


def photo_table(rows: list[PhotoRow]) -> pd.DataFrame:
    """MakeImages `CarTable.photos` from rows in the order of its columns, sorted by split and source."""
    table = pd.DataFrame(rows, columns=PHOTO_COLUMNS)
    table = table.astype(dict.fromkeys(("label", "x1", "y1", "x2", "y2"), "int64"))
    return table.sort_values(["split", "source"], ignore_index=True)


def problem_table(rows: list[ProblemRow]) -> pd.DataFrame:
    """MakeImages `CarTable.problems` from rows in the order of its columns."""
    return pd.DataFrame(rows, columns=PROBLEM_COLUMNS).astype({"label": "int64"})


def photos_in(folder: Path) -> dict[str, Path]:
    """Files that look like photos, by name."""
    return {path.name: path for path in sorted(folder.iterdir()) if is_photo_file(path)}


def is_photo_file(path: Path) -> bool:
    """Whether a file's name says that it is a photo; hidden files are none."""
    return path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".") and path.is_file()
