"""A store of parts: it reads as a store of one file does, moves with its parts, and names one that is missing or damaged."""

import resource
import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carmodel.data.local_engine import OUTCOME_COLUMNS, slices
from carmodel.data.memory_map import copy_store
from carmodel.data.parts import link_parts, parts_folder, write_part
from carmodel.data.store import Store, StoreError, open_store
from carmodel.data.writer import StoreColumns, StoreSpec
from tests.stores import ATTRS, store_of

SIZE = 4


def images_of(rows: Iterable[int]) -> np.ndarray:
    """An image of random numbers for each row."""
    return np.stack([np.random.default_rng(row).integers(0, 256, (SIZE, SIZE, 3), np.uint8) for row in rows])


def make(batch: pd.DataFrame, images: np.ndarray, bad: frozenset[int] = frozenset()) -> pd.DataFrame:
    images[:] = images_of(batch.index)
    problems = ["odd" if row in bad else "" for row in batch.index]
    return pd.DataFrame(
        {"digest": b"", "perceptual_hash": b"", "aspect": 1.5, "problem": problems, "detail": problems},
        columns=OUTCOME_COLUMNS,
        index=batch.index,
    )


def buffer(rows: int = 10) -> np.ndarray:
    return np.empty((rows, SIZE, SIZE, 3), np.uint8)


def described(rows: int) -> StoreColumns:
    row = np.arange(rows)
    return StoreColumns(row % 2, [f"{i}.jpg" for i in row], row, row % 3 == 0)


def linked(path: Path, rows: int = 10, batch_rows: int = 4, bad: frozenset[int] = frozenset()) -> Store:
    """A store of parts, as an engine makes it."""
    parts_folder(path).mkdir(parents=True)
    table = pd.DataFrame(index=range(rows))
    write = partial(write_part, make=partial(make, bad=bad), images=buffer(batch_rows), folder=parts_folder(path))
    made = pd.concat([write(batch) for batch in slices(table, batch_rows)])
    fine = made[made["problem"] == ""]
    link_parts(StoreSpec(path, SIZE, ["a", "b"], **ATTRS), described(len(fine)), fine)
    return open_store(path)


def test_it_reads_as_a_store_of_one_file(tmp_path: Path) -> None:
    parts, rows = linked(tmp_path / "parts.h5"), np.arange(10)
    one = store_of(tmp_path / "one.h5", images_of(rows), rows % 2, ["a", "b"], rows % 3 == 0)
    assert np.array_equal(parts.take(rows[::-1]), one.take(rows[::-1]))
    assert parts.attrs == one.attrs
    for column in ("labels", "crc32", "source", "source_index", "validation"):
        assert np.array_equal(getattr(parts, column), getattr(one, column))
    parts.verify()


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 12), batch_rows=st.integers(1, 13), bad=st.frozensets(st.integers(0, 11), max_size=11))
def test_rows_without_an_image_are_left_out_however_the_table_is_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: int, batch_rows: int, bad: frozenset[int]
) -> None:
    store = linked(tmp_path_factory.mktemp("parts") / "train.h5", rows, batch_rows, bad)
    fine = [row for row in range(rows) if row not in bad]
    assert len(store) == len(fine)
    if fine:
        assert np.array_equal(store.take(np.arange(len(fine))), images_of(fine))


def test_the_same_work_makes_the_same_files(tmp_path: Path) -> None:
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
    linked(tmp_path / "first" / "train.h5")
    time.sleep(1.1)  # HDF5 can save the time, in seconds
    linked(tmp_path / "again" / "train.h5")
    first, again = (sorted(file for file in (tmp_path / name).rglob("*.h5")) for name in ("first", "again"))
    assert [file.name for file in first] == [file.name for file in again]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, again, strict=True))


def test_a_repeated_batch_has_the_same_part(tmp_path: Path) -> None:
    path = tmp_path / "train.h5"
    parts_folder(path).mkdir()
    batch = pd.DataFrame(index=range(3))
    twice = pd.concat([write_part(batch, make, buffer(), parts_folder(path)) for _ in range(2)])
    link_parts(StoreSpec(path, SIZE, ["a", "b"], **ATTRS), described(6), twice)
    assert len(list(parts_folder(path).iterdir())) == 1
    assert np.array_equal(open_store(path).take(np.arange(6)), np.tile(images_of(batch.index), (2, 1, 1, 1)))


def test_what_lost_work_left_behind_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "train.h5"
    parts_folder(path).mkdir()
    made = write_part(pd.DataFrame(index=range(3)), make, buffer(), parts_folder(path))
    (parts_folder(path) / ".half.partial").write_bytes(b"half")
    write_part(pd.DataFrame(index=range(7)), make, buffer(), parts_folder(path))
    link_parts(StoreSpec(path, SIZE, ["a", "b"], **ATTRS), described(3), made)
    assert [file.name for file in parts_folder(path).iterdir()] == [made["part"].iloc[0]]


def test_more_parts_than_the_soft_limit_of_open_files_can_be_read(tmp_path: Path) -> None:
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    store = linked(tmp_path / "train.h5", rows=200, batch_rows=1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100 + len(list(Path("/proc/self/fd").iterdir())), most))
    try:
        assert len(open_store(tmp_path / "train.h5")) == len(store) == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def test_it_can_be_moved_and_copied(tmp_path: Path) -> None:
    for name in ("made", "copied", "copied again"):
        (tmp_path / name).mkdir()
    images = linked(tmp_path / "made" / "train.h5").take(np.arange(10))
    (tmp_path / "made").rename(tmp_path / "moved")
    copy_store(tmp_path / "moved" / "train.h5", tmp_path / "copied")
    copy_store(tmp_path / "copied" / "train.h5", tmp_path / "copied again")
    shutil.rmtree(tmp_path / "copied")
    for folder in ("moved", "copied again"):
        assert np.array_equal(open_store(tmp_path / folder / "train.h5").take(np.arange(10)), images)


def test_it_is_not_copied_without_a_part_or_with_one_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    (tmp_path / "copy").mkdir()
    original = tmp_path / "original" / "train.h5"
    linked(original)
    part = next(parts_folder(original).iterdir())
    for elsewhere in (f"../{part.name}", str(part)):
        layout = h5py.VirtualLayout((4, SIZE, SIZE, 3), np.uint8)
        layout[:] = h5py.VirtualSource(elsewhere, "images", (4, SIZE, SIZE, 3))
        with h5py.File(tmp_path / "linked.h5", "w") as file:
            file.create_virtual_dataset("images", layout)
        with pytest.raises(StoreError, match=rf"its part {elsewhere} is not inside"):
            copy_store(tmp_path / "linked.h5", tmp_path / "copy")
    part.unlink()
    with pytest.raises(StoreError, match=rf"train\.h5 cannot be copied: .*{part.name}"):
        copy_store(original, tmp_path / "copy")
    assert not (tmp_path / "copy" / "train.h5").exists()


def test_a_part_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    store = linked(tmp_path / "train.h5")
    part = sorted(parts_folder(tmp_path / "train.h5").iterdir())[0]
    whole = part.read_bytes()
    part.write_bytes(whole[:-20])
    with pytest.raises(StoreError, match=part.name):
        open_store(tmp_path / "train.h5")
    part.unlink()
    with pytest.raises(StoreError, match=f"part .*{part.name} cannot be read"):
        open_store(tmp_path / "train.h5")
    image = store.take([0])[0].tobytes()
    for file in [part, *parts_folder(tmp_path / "train.h5").iterdir()]:
        data = whole if file == part else file.read_bytes()
        file.write_bytes(data.replace(image, image[::-1]))
    with pytest.raises(StoreError, match=r"row 0 \(0\.jpg\) is damaged: its checksum differs"):
        open_store(tmp_path / "train.h5").verify()


def test_an_image_that_is_not_what_was_made_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "train.h5"
    parts_folder(path).mkdir()
    made = write_part(pd.DataFrame(index=range(3)), make, buffer(), parts_folder(path)).assign(crc32=7)
    with pytest.raises(StoreError, match="row 0 .* is damaged"):
        link_parts(StoreSpec(path, SIZE, ["a", "b"], **ATTRS), described(3), made)
    assert not path.exists()
