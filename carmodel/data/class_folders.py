"""Read one folder per class, CLASS NAME/photo.jpg, at the top level or within train/ and test/."""

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
    is_other_file,
    is_photo_file,
    photo_table,
    problem_table,
)
from carmodel.errors import InputError

FORMATS = ", ".join(sorted(PHOTO_SUFFIXES))


def has_class_folders(folder: Path) -> bool:
    """Return whether a folder contains folders of photos, or train/ and test/ that do."""
    return _is_split(folder) or _contains_classes(folder)


def read_class_folders(folder: Path, seed: int) -> CarTable:
    """Read `CLASS NAME/photo.jpg`, at the top level or within train/ and test/. Classes are in alphabetical order.

    Without test/, a fifth of each class is held out as the test set, and byte-identical photos are held out together.
    Photos that are not used become problems of the table. Files that are not photos are only counted.

    Raises:
        InputError: fewer than two classes, a class folder without a photo, a class with fewer than two different
            photos, or a class that only test/ has.
    """
    ignored = sum(is_other_file(path) for path in _files(folder))
    if _is_split(folder):
        names = _class_names(folder / "train")
        if unknown := sorted({path.name for path in _folders(folder / "test")} - set(names)):
            raise InputError(f"{folder / 'test'} has classes that train/ lacks: {', '.join(unknown)}")
        rows, problems = _read(folder / "train", "train", names)
        test_rows, test_problems = _read(folder / "test", "test", names)
        all_problems = problem_table(problems + test_problems)
        return CarTable(photo_table(rows + test_rows), names, all_problems, ignored_files=ignored)
    names = _class_names(folder)
    rows, problems = _read(folder, "train", names)
    photos = hold_out_test(photo_table(rows), seed)
    test = photos["label"][photos["split"] == "test"]
    counts = np.bincount(test, minlength=len(names))
    if few := [name for name, count in zip(names, counts, strict=True) if count == 0]:
        raise InputError(f"{folder}: every class needs at least two different photos; too few in {', '.join(few)}")
    note = (
        f"There is no test/: {len(test)} of {len(photos)} photos, a fifth of each class, are held out as the test set."
    )
    return CarTable(photos, names, problem_table(problems), [note], ignored)


def _is_split(folder: Path) -> bool:
    """Return whether train/ and test/ are the two splits. If they contain photos directly, they are two classes."""
    return {path.name for path in _folders(folder)} == {"train", "test"} and _contains_classes(folder / "train")


def _contains_classes(folder: Path) -> bool:
    return any(is_photo_file(path) for class_folder in _folders(folder) for path in class_folder.iterdir())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(folder: Path) -> list[str]:
    names = [path.name for path in _folders(folder)]
    if len(names) < 2:
        raise InputError(f"{folder} has one class folder, {names[0]}; at least two classes are needed")
    return names


def _read(folder: Path, split: str, names: list[str]) -> tuple[list[PhotoRow], list[ProblemRow]]:
    rows: list[PhotoRow] = []
    misplaced = (path for path in sorted(folder.iterdir()) if is_photo_file(path))
    problems = [(split, path.name, -1, "extra", "a photo next to the class folders") for path in misplaced]
    for class_folder in _folders(folder):
        label, before = names.index(class_folder.name), len(rows)
        for path in _files(class_folder):
            source = path.relative_to(folder).as_posix()
            if path.parent == class_folder and is_photo_file(path):
                rows.append((split, str(path.absolute()), source, label, *NO_BOX))
            elif path.suffix.lower() in PHOTO_SUFFIXES and not path.exists():
                problems.append((split, source, label, "missing", "a link to a file that does not exist"))
            elif path.suffix.lower() in PHOTO_SUFFIXES or path.is_dir():
                problems.append((split, source, label, "extra", "not a photo directly in its class folder"))
            elif not is_other_file(path):
                problems.append((split, source, label, "extra", f"not a supported format ({FORMATS})"))
        if len(rows) == before:
            raise InputError(f"{class_folder} has no photo ({FORMATS}) directly in it; add photos or remove the folder")
    return rows, problems


def _files(folder: Path) -> Iterator[Path]:
    """Iterate over visible files at any depth. A link to a folder counts as a file."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and (path.is_symlink() or not path.is_dir()):
            yield path
