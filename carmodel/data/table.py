"""The table of labelled photos that every supported layout is read into."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from carmodel.errors import InputError

PHOTO_COLUMNS = ["split", "path", "source", "label", "x1", "y1", "x2", "y2"]
PROBLEM_COLUMNS = ["split", "source", "label", "problem", "detail"]
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
OTHER_PHOTO_SUFFIXES = frozenset({".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".tif", ".tiff"})
NO_BOX = (-1, -1, -1, -1)

PhotoRow = tuple[str, str, str, int, int, int, int, int]
ProblemRow = tuple[str, str, int, str, str]


@dataclass(frozen=True)
class CarTable:
    """Labelled photos, and the problems found while photos were matched to labels.

    Attributes:
        photos: one row per photo: split ("train" or "test"), path (absolute), source (file name in the data set, unique
            within the split), label (int64, 0-based), x1, y1, x2, y2 (int64 pixels, 0-based, x2 and y2 exclusive; -1
            without a box).
        class_names: label i is class_names[i].
        problems: one row per photo or annotation that cannot be used: split, source, label (-1 if unknown), problem
            (missing, extra, unlabelled, annotated_twice, no_box; preprocessing adds unreadable, zero_area,
            out_of_frame), detail.
        notes: sentences for the user about how the table was made.
        ignored_files: number of files among the photos that are not photos, such as Thumbs.db.
    """

    photos: pd.DataFrame
    class_names: list[str]
    problems: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    ignored_files: int = 0

    def first_classes(self, n: int) -> "CarTable":
        """Return the table of classes 0 to n-1, with the problems known to be theirs. n = 0 keeps everything."""
        if n == 0 or n >= len(self.class_names):
            return self
        photos = self.photos[self.photos["label"] < n].reset_index(drop=True)
        problems = self.problems[self.problems["label"].between(0, n - 1)].reset_index(drop=True)
        notes = [*self.notes, f"Only the first {n} of {len(self.class_names)} classes are used."]
        return replace(self, photos=photos, class_names=self.class_names[:n], problems=problems, notes=notes)


def photo_table(rows: list[PhotoRow]) -> pd.DataFrame:
    """Build `CarTable.photos` from rows in the order of its columns, sorted by split and source.

    Raises:
        InputError: the name of a file or of its folder is not UTF-8, so a store cannot contain it.
    """
    for _, _, source, *_ in rows:
        try:
            source.encode()
        except UnicodeEncodeError:
            raise InputError(f"{source!a}: the name of the photo or of its folder is not UTF-8; rename it") from None
    table = pd.DataFrame(rows, columns=PHOTO_COLUMNS)
    table = table.astype(dict.fromkeys(("label", "x1", "y1", "x2", "y2"), "int64"))
    return table.sort_values(["split", "source"], ignore_index=True)


def problem_table(rows: list[ProblemRow]) -> pd.DataFrame:
    """Build `CarTable.problems` from rows in the order of its columns."""
    return pd.DataFrame(rows, columns=PROBLEM_COLUMNS).astype({"label": "int64"})


def is_photo_file(path: Path) -> bool:
    """Return whether a file has the name of a photo that can be read. Hidden files are not photos."""
    return path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def is_other_file(path: Path) -> bool:
    """Return whether a visible file does not have the name of a photo of any format, such as Thumbs.db."""
    suffixes = PHOTO_SUFFIXES | OTHER_PHOTO_SUFFIXES
    return path.is_file() and path.suffix.lower() not in suffixes and not path.name.startswith(".")
