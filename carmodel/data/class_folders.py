"""A folder a class, CLASS NAME/photo.jpg, or the same within train/ and test/."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from carmodel.data.split import hold_out_test
from carmodel.data.table import (
    NO_BOX,
    PHOTO_SUFFIXES,
    CarTable,
    PhotoRow,
    ProblemRow,
    is_photo_file,
    photo_table,
    problem_table,
)
from carmodel.errors import InputError


def has_class_folders(folder: Path) -> bool:
    """Whether a folder holds folders of photos, or train/ and test/ that do."""
    return _is_split(folder) or _holds_classes(folder)


def read_class_folders(folder: Path, seed: int) -> CarTable:
    """Read `CLASS NAME/photo.jpg`, or the same within train/ and test/; classes are in alphabetical order.

    Without test/, a fifth of each class is held out as the test. Byte-identical photos share a side. Every other file
    in a class folder, but hidden ones, is a problem of the table.

    Raises:
        InputError: fewer than two classes, a class folder without a photo, a class with fewer than two different
            photos, or one that is in test/ alone.
    """
    if _is_split(folder):
        names = _class_names(folder / "train")
        if unknown := sorted({path.name for path in _folders(folder / "test")} - set(names)):
            raise InputError(f"{folder / 'test'} has classes that train/ lacks: {', '.join(unknown)}")
        rows, problems = _read(folder / "train", "train", names)
        test_rows, test_problems = _read(folder / "test", "test", names)
        return CarTable(photo_table(rows + test_rows), names, problem_table(problems + test_problems))
    names = _class_names(folder)
    rows, problems = _read(folder, "train", names)
    photos = hold_out_test(photo_table(rows), seed)
    test = photos["label"][photos["split"] == "test"]
    counts = np.bincount(test, minlength=len(names))
    if few := [name for name, count in zip(names, counts, strict=True) if count == 0]:
        raise InputError(f"{folder}: every class needs two different photos or more; too few in {', '.join(few)}")
    held = f"No test of its own: {len(test)} of {len(photos)} photos, a fifth of each class, are held out as the test."
    return CarTable(photos, names, problem_table(problems), [held])


def _is_split(folder: Path) -> bool:
    """Whether train/ and test/ are the two sides; with photos directly in them they are classes of that name."""
    return {path.name for path in _folders(folder)} == {"train", "test"} and _holds_classes(folder / "train")


def _holds_classes(folder: Path) -> bool:
    return any(is_photo_file(path) for of_class in _folders(folder) for path in of_class.iterdir())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(folder: Path) -> list[str]:
    names = [path.name for path in _folders(folder)]
    if len(names) < 2:
        raise InputError(f"{folder} has one class folder, {names[0]}; two classes or more are needed")
    return names


def _read(folder: Path, split: str, names: list[str]) -> tuple[list[PhotoRow], list[ProblemRow]]:
    rows: list[PhotoRow] = []
    beside = (path for path in sorted(folder.iterdir()) if is_photo_file(path))
    problems = [(split, path.name, -1, "extra", "a photo beside the class folders") for path in beside]
    for of_class in _folders(folder):
        label, before = names.index(of_class.name), len(rows)
        for path in _files(of_class):
            source = path.relative_to(folder).as_posix()
            if path.parent == of_class and is_photo_file(path):
                rows.append((split, str(path.absolute()), source, label, *NO_BOX))
            elif path.suffix.lower() in PHOTO_SUFFIXES and not path.exists():
                problems.append((split, source, label, "missing", "a link to a file that is not there"))
            else:
                problems.append((split, source, label, "extra", "not a photo directly in its class folder"))
        if len(rows) == before:
            kinds = ", ".join(sorted(PHOTO_SUFFIXES))
            raise InputError(f"{of_class} holds no photo ({kinds}) directly in it; add photos or remove the folder")
    return rows, problems


def _files(folder: Path) -> Iterator[Path]:
    """Everything within a folder but real folders and what is hidden; a link to a folder counts as a file."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and (path.is_symlink() or not path.is_dir()):
            yield path
