"""The store contract: what is written is read, whole or not at all, from one file or several."""

import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carmodel.data.store import SCHEMA_VERSION, StoreError, content_digest, open_store
from carmodel.data.writer import StoreColumns, StoreSpec, Writer

NAMES = ["Éclair Coupé 2012", "Tonne Van 1999", "Zip SUV 2020"]
ATTRS = {"split": "train", "crop": "box", "margin": 0.1, "seed": 3, "created_by": "a test"}


def write(
    path: Path, rows: int = 7, size: int = 4, names: list[str] = NAMES, announced: int | None = None
) -> np.ndarray:
    """A store of random images, appended in two goes; returns the images."""
    images = np.random.default_rng(rows).integers(0, 256, (rows, size, size, 3), np.uint8)
    with Writer(StoreSpec(path, size, names, **ATTRS), rows if announced is None else announced) as writer:
        for part in np.array_split(np.arange(rows), 2):
            writer.append(images[part])
        row = np.arange(rows)
        writer.describe(StoreColumns(row % len(names), [f"{i:05d}.jpg" for i in row], row, row % 3 == 0))
    return images


def test_rows_come_back_as_they_were_appended(tmp_path: Path) -> None:
    images = write(tmp_path / "train.h5")
    store = open_store(tmp_path / "train.h5")
    assert np.array_equal(store.take(np.arange(7)), images)
    assert store.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert store.crc32.tolist() == [zlib.crc32(image) for image in images]
    assert store.source.tolist() == [f"{i:05d}.jpg" for i in range(7)]
    assert store.source_index.tolist() == list(range(7))
    assert store.validation.tolist() == [True, False, False, True, False, False, True]
    assert store.class_names == NAMES
    assert (len(store), store.image_shape, store.image_size) == (7, (4, 4, 3), 4)
    assert store.attrs == ATTRS | {"schema_version": SCHEMA_VERSION, "image_size": 4, "note": ""}
    dtypes = [store.labels.dtype, store.crc32.dtype, store.source_index.dtype, store.validation.dtype]
    assert dtypes == [np.int64, np.uint32, np.int64, np.bool_]
    with h5py.File(tmp_path / "train.h5") as file:
        assert set(file) == {"images", "labels", "crc32", "source", "source_index", "validation", "class_names"}
        assert (file["images"].chunks, file["images"].compression) == (None, None)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 12), max_size=20))
def test_take_gives_any_rows_in_any_order(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    folder = tmp_path_factory.mktemp("take")
    images = np.concatenate([write(folder / "a.h5", 5), write(folder / "b.h5", 8)])
    both = open_store(folder / "a.h5", folder / "b.h5")
    out = np.empty((len(rows), 4, 4, 3), np.uint8)
    assert both.take(np.array(rows, np.int64), out) is out
    assert np.array_equal(out, images[rows])


def test_rows_outside_the_store_are_an_index_error(tmp_path: Path) -> None:
    write(tmp_path / "train.h5")
    store = open_store(tmp_path / "train.h5")
    for rows in ([-1], [7], [0, 99]):
        with pytest.raises(IndexError, match="0 to 6"):
            store.take(np.array(rows))


def test_the_same_rows_make_the_same_file_whenever_it_is_written(tmp_path: Path) -> None:
    write(tmp_path / "one.h5")
    time.sleep(1.1)  # HDF5 can note the time, in seconds
    write(tmp_path / "two.h5")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_take_is_safe_from_many_threads(tmp_path: Path) -> None:
    images = write(tmp_path / "train.h5", 50)
    store = open_store(tmp_path / "train.h5")
    orders = [np.random.default_rng(i).permutation(50) for i in range(32)]
    with ThreadPoolExecutor(8) as pool:
        for order, taken in zip(orders, pool.map(store.take, orders), strict=True):
            assert np.array_equal(taken, images[order])


def test_fewer_rows_than_announced_leave_a_file_of_those_rows(tmp_path: Path) -> None:
    images = write(tmp_path / "train.h5", rows=7, announced=400, size=16)
    store = open_store(tmp_path / "train.h5")
    assert np.array_equal(store.take(np.arange(7)), images)
    store.verify()
    assert (tmp_path / "train.h5").stat().st_size < 100 * 16 * 16 * 3
    assert [path.name for path in tmp_path.iterdir()] == ["train.h5"]


def test_a_store_without_rows_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "train.h5", rows=0)
    store = open_store(tmp_path / "train.h5")
    assert len(store) == 0
    assert store.take(np.array([], np.int64)).shape == (0, 4, 4, 3)


def test_a_store_may_keep_the_shape_of_its_photos_which_is_square_by_default(tmp_path: Path) -> None:
    write(tmp_path / "without.h5", rows=2)
    with Writer(StoreSpec(tmp_path / "with.h5", 4, NAMES, **ATTRS), 2) as writer:
        writer.append(np.zeros((2, 4, 4, 3), np.uint8))
        writer.describe(StoreColumns(np.zeros(2), ["x", "y"], np.arange(2), np.zeros(2, bool), np.array([1.5, 0.75])))
    assert open_store(tmp_path / "with.h5", tmp_path / "without.h5").aspect.tolist() == [1.5, 0.75, 1.0, 1.0]


def test_an_exception_leaves_nothing_and_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "train.h5"
    before = write(path)
    with pytest.raises(RuntimeError), Writer(StoreSpec(path, 4, NAMES, **ATTRS), 9) as writer:
        writer.append(before[:1])
        assert len(open_store(path)) == 7, "the new file has another name until it is complete"
        raise RuntimeError("the power went")
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.h5"]
    assert np.array_equal(open_store(path).take(np.arange(7)), before)


def test_attributes_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="margin"):
        StoreSpec(tmp_path / "train.h5", 4, NAMES, split="train", crop="box", seed=0, created_by="a test")
    assert not list(tmp_path.iterdir())


def test_verify_names_the_damaged_row(tmp_path: Path) -> None:
    path = tmp_path / "train.h5"
    write(path)
    open_store(path).verify()
    with h5py.File(path, "r+") as file:
        file["images"][4, 1, 1, 1] ^= 1
    with pytest.raises(StoreError, match=r"train\.h5: row 4 \(00004\.jpg\)"):
        open_store(path).verify()


def test_stores_that_differ_are_not_joined(tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    write(tmp_path / "size.h5", size=5)
    write(tmp_path / "names.h5", names=["x", "y", "z"])
    with pytest.raises(StoreError, match=r"size\.h5 .* different size"):
        open_store(tmp_path / "a.h5", tmp_path / "size.h5")
    with pytest.raises(StoreError, match=r"names\.h5 .* different class names"):
        open_store(tmp_path / "a.h5", tmp_path / "names.h5")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (lambda whole: b"not HDF5", "is not a complete HDF5 file"),
        (lambda whole: whole[:20_000], ""),
    ],
    ids=["missing", "another format", "truncated"],
)
def test_a_file_that_is_no_complete_store_is_named(
    tmp_path: Path, content: Callable[[bytes], bytes] | None, said: str
) -> None:
    path = tmp_path / "bad.h5"
    write(path, rows=40, size=16)
    if content:
        path.write_bytes(content(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(StoreError, match=rf"bad\.h5.*{said}"):
        open_store(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.attrs.modify("schema_version", 2), "schema version 2, but this code reads version 1"),
        (lambda file: (file.pop("labels"), file.create_dataset("labels", data=[0, 1])), "one entry for each of 7"),
        (lambda file: file["labels"].write_direct(np.full(7, 3)), "labels must be from 0 to 2"),
        (lambda file: file.pop("labels"), "is not a store: it has no labels"),
        (
            lambda file: (
                file.pop("images"),
                file.create_dataset("images", data=np.zeros((7, 4, 4, 3), "u1"), chunks=True),
            ),
            "contiguous",
        ),
        (lambda file: file.attrs.pop("crop"), "is not a store: it has no attribute crop"),
        (lambda file: (file.pop("labels"), file.create_group("labels")), "is not a complete HDF5 file"),
        (lambda file: (file.pop("images"), file.create_group("images")), "is not a complete HDF5 file"),
    ],
)
def test_a_store_that_breaks_the_schema_is_refused(tmp_path: Path, damage: object, said: str) -> None:
    write(tmp_path / "train.h5")
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        damage(file)
    with pytest.raises(StoreError, match=said):
        open_store(tmp_path / "train.h5")


def test_the_content_digest_is_of_the_labelled_photos_not_of_their_preparation(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", size=4)
    write(tmp_path / "b.h5", size=6)
    write(tmp_path / "fewer.h5", rows=6)
    write(tmp_path / "names.h5", names=["x", "y", "z"])
    for name, column, value in (("label", "labels", 2), ("source", "source", "other.jpg")):
        write(tmp_path / f"{name}.h5")
        with h5py.File(tmp_path / f"{name}.h5", "r+") as file:
            file[column][0] = value
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        file.attrs.update({"seed": 9, "crop": "none"})
    digests = {path.stem: content_digest(open_store(path)) for path in tmp_path.iterdir()}
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == len(digests) - 1
    assert len(bytes.fromhex(digests["a"])) == 16
