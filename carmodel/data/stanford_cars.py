"""Read Stanford Cars: the devkit's annotations and the photo folders become one table.

The data set has 16,185 photos of 196 classes, 8,144 to train and 8,041 to test. A class is named by make, model and year.
Each photo has the bounding box of its car.

J. Krause, M. Stark, J. Deng, L. Fei-Fei: 3D Object Representations for Fine-Grained Categorization, 3dRR workshop,
2013. The devkit counts pixels and classes from 1, and its boxes include their last pixel. The table counts from 0, and
its boxes exclude x2 and y2.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat

from carmodel.data.images import Box
from carmodel.data.split import hold_out_test
from carmodel.data.table import CarTable, PhotoRow, ProblemRow, is_photo_file, photo_table, problem_table
from carmodel.errors import InputError

TEST_LABELS = "cars_test_annos_withlabels*.mat"


def find_devkit(folder: Path) -> Path | None:
    """Return devkit/, or car_devkit/devkit/ as in some mirrors, or None if there is neither."""
    for devkit in (folder / "devkit", folder / "car_devkit" / "devkit"):
        if (devkit / "cars_meta.mat").is_file():
            return devkit
    return None


def read(folder: Path, seed: int = 0) -> CarTable:
    """Read a folder in the layout of the official archives (cars_train/, cars_test/, devkit/).

    Photos may be one folder deeper (cars_train/cars_train/), and cars_test_annos_withlabels.mat may be next to devkit/.
    Photos are matched to annotations by file name, never by order. Without test labels, a fifth of the training photos
    of each class becomes the test set.

    Args:
        folder: the data set.
        seed: chooses that fifth.

    Raises:
        InputError: a folder or .mat file is missing or malformed.
    """
    devkit = find_devkit(folder)
    if devkit is None:
        raise InputError(f"{folder} has no devkit/cars_meta.mat; unpack car_devkit.tgz into it")
    class_names = [str(name) for name in _load(devkit / "cars_meta.mat", "class_names")]
    train_folder, test_folder = _photo_folder(folder, "train"), _photo_folder(folder, "test")
    rows, problems = _match(devkit / "cars_train_annos.mat", train_folder, "train", len(class_names))
    ignored = _count_other_files(train_folder) + _count_other_files(test_folder)
    notes: list[str] = []
    labelled = sorted([*devkit.glob(TEST_LABELS), *folder.glob(TEST_LABELS)])
    if labelled:
        more_rows, more_problems = _match(labelled[0], test_folder, "test", len(class_names))
        rows, problems = rows + more_rows, problems + more_problems
        photos = photo_table(rows)
    else:
        photos = hold_out_test(photo_table(rows), seed)
        held = (photos["split"] == "test").sum()
        notes.append(
            "The test photos are not used, since cars_test_annos_withlabels.mat is missing. "
            f"{held} of {len(photos)} training photos, a fifth of each class, are held out as the test set. "
            "Accuracy on them is not accuracy on the official test set."
        )
    return CarTable(photos, class_names, problem_table(problems), notes, ignored)


def _photo_folder(folder: Path, split: str) -> Path:
    name = f"cars_{split}"
    for photos in (folder / name / name, folder / name):
        if photos.is_dir():
            return photos
    raise InputError(f"{folder} has no {name}/; unpack {name}.tgz into it")


def _count_other_files(folder: Path) -> int:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sum(not is_photo_file(path) for path in files)


def _match(annotations: Path, folder: Path, split: str, classes: int) -> tuple[list[PhotoRow], list[ProblemRow]]:
    files = {path.name: path for path in sorted(folder.iterdir()) if is_photo_file(path)}
    rows: list[PhotoRow] = []
    problems: list[ProblemRow] = []
    seen: set[str] = set()
    for name, label, box in _annotations(annotations):
        known = label if 0 <= label < classes else -1
        if name in seen:
            problems.append((split, name, known, "annotated_twice", f"annotated twice in {annotations.name}"))
        elif name not in files:
            problems.append((split, name, known, "missing", f"in {annotations.name}, not in {folder.name}/"))
        elif known < 0:
            problems.append((split, name, -1, "unlabelled", f"class {label + 1} is not among 1 … {classes}"))
        elif box is None:
            problems.append((split, name, known, "no_box", f"a corner is not a number in {annotations.name}"))
        else:
            rows.append((split, str(files[name].absolute()), name, label, *box))
        seen.add(name)
    for name in sorted(files.keys() - seen):
        problems.append((split, name, -1, "extra", f"in {folder.name}/, not in {annotations.name}"))
    return rows, problems


def _annotations(path: Path) -> list[tuple[str, int, Box | None]]:
    table = _load(path, "annotations")
    try:
        corners = np.stack([_numbers(table[f"bbox_{corner}"]) for corner in ("x1", "y1", "x2", "y2")], axis=1)
        labels = np.nan_to_num(_numbers(table["class"]), posinf=0, neginf=0).astype(np.int64) - 1
        names = [str(name) for name in table["fname"]]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(
            f"{path} is not a Stanford Cars annotation file (bbox_x1 … bbox_y2, class, fname): {error}"
        ) from None
    boxes = [_box(*row) if all(np.isfinite(row)) else None for row in corners.tolist()]
    return list(zip(names, labels.tolist(), boxes, strict=True))


def _numbers(column: np.ndarray) -> np.ndarray:
    """Return float64 (N,), with NaN for values that are empty or not numbers."""
    return pd.to_numeric(pd.Series(column), errors="coerce").to_numpy(np.float64)


def _box(x1: float, y1: float, x2: float, y2: float) -> Box:
    return int(x1) - 1, int(y1) - 1, int(x2), int(y2)


def _load(path: Path, variable: str) -> np.ndarray:
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[variable])
    except FileNotFoundError:
        raise InputError(f"{path} is missing; unpack car_devkit.tgz again") from None
    except KeyError:
        raise InputError(f"{path} has no variable {variable!r}; it is not the devkit's file") from None
    except Exception as error:  # SciPy's parser raises whatever a damaged file leads to
        raise InputError(f"{path} is not a readable MATLAB file: {error}") from None
