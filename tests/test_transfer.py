"""The measurement of transfer learning trains on the right photos, with the same number of steps, and shows the results."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.transfer import PHOTOS, STARTS, Subset, settings, subset, table
from tests.stores import store_of

CLASSES = ["a", "b", "c"]


def two_classes(folder: Path, most: int) -> Subset:
    """Return classes a and c of a store with four photos per class. The first photo of each class is for validation."""
    images = np.arange(12, dtype=np.uint8).repeat(3 * 8 * 8).reshape(12, 8, 8, 3)
    store = store_of(folder / "train.h5", images, np.repeat([0, 1, 2], 4), CLASSES, np.arange(12) % 4 == 0)
    return subset(store, np.array([0, 2]), most)


def test_a_subset_has_the_first_training_photos_and_all_validation_photos(tmp_path: Path) -> None:
    found = two_classes(tmp_path, 2)
    assert found.rows.tolist() == [0, 1, 2, 8, 9, 10]
    assert found.validation.tolist() == [True, False, False] * 2


def test_the_classes_of_a_subset_are_numbered_again(tmp_path: Path) -> None:
    found = two_classes(tmp_path, 1)
    assert found.class_names == ["a", "c"]
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.take(np.array([3]))[0, 0, 0].tolist() == [9, 9, 9]


def test_all_numbers_of_photos_train_for_the_same_number_of_steps() -> None:
    assert [settings("cars", rows, 240, 0.001).epochs for rows in (480, 1920, 3840)] == ["128x16", "128x4", "128x2"]


def test_the_table_has_a_row_for_each_start_with_intervals() -> None:
    results = pd.DataFrame([{"start": s, "photos": p, "test": 0.5, "test_rows": 1000} for s in STARTS for p in PHOTOS])
    lines = table(results).splitlines()
    assert len(lines) == 2 + len(STARTS)
    assert lines[2].count("0.500 (0.469 to 0.531)") == len(PHOTOS)
