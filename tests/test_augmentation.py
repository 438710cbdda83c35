"""Augmentation: crop, pad and flip, made of training rows alone, each copy by its seed, row and number."""

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carmodel.data.augmentation import augment, augment_store, check_augmented, cut_sides, pad_sides, rng_for
from carmodel.data.pictures import before_after, class_examples, contact_sheet
from carmodel.data.store import Store, open_store
from carmodel.data.writer import StoreColumns, StoreSpec, Writer
from carmodel.errors import InputError
from tests.stores import ATTRS, store_of

STRENGTHS = {"crop": 0.2, "pad": 0.2, "flip": 0.5}


def augmented(train: Path, name: str = "augmented.h5", copies: int = 2, seed: int = 5, **changes: float) -> Store:
    out = train.with_name(name)
    augment_store(train, out, copies=copies, seed=seed, **STRENGTHS | changes)
    return open_store(out)


image_shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))
parts = st.floats(0, 0.99)


@given(shape=image_shapes, sides=st.tuples(parts, parts, parts, parts))
def test_cutting_leaves_a_part_of_the_image(shape: tuple[int, int, int], sides: tuple[float, ...]) -> None:
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    height, width, _ = cut_sides(image, *sides).shape
    assert 1 <= height <= shape[0]
    assert 1 <= width <= shape[1]


def test_cutting_and_padding_are_measured_in_parts_of_each_side() -> None:
    image = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    assert np.array_equal(cut_sides(image, 0.1, 0.2, 0.3, 0.4), image[2:6, 2:14])
    padded = pad_sides(image, 0.1, 0.2, 0.3, 0.4)
    assert padded.shape == (16, 28, 3)
    assert np.array_equal(padded[2:12, 2:22], image)
    assert np.abs(padded[0, 0] - image.mean(axis=(0, 1))).max() <= 0.5


@settings(deadline=None)
@given(shape=image_shapes, crop=parts, pad=parts, flip=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_an_augmented_image_has_the_size_it_had(
    shape: tuple[int, int, int], crop: float, pad: float, flip: float, seed: int
) -> None:
    image = np.full(shape, 7, np.uint8)
    changed = augment(image, rng_for(seed, 0, 0), crop, pad, flip)
    assert (changed.shape, changed.dtype) == (shape, np.uint8)
    assert (changed == 7).all()


def test_everything_off_is_the_identity() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    assert np.array_equal(augment(image, rng_for(0, 0, 0), crop=0, pad=0, flip=0), image)
    assert np.array_equal(augment(image, rng_for(0, 0, 0), crop=0, pad=0, flip=1), image[:, ::-1])


def test_switching_one_part_off_leaves_the_others_as_they_were() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    plain = augment(image, rng_for(1, 2, 3), crop=0.3, pad=0, flip=0)
    flipped = augment(image, rng_for(1, 2, 3), crop=0.3, pad=0, flip=1)
    assert np.array_equal(flipped, augment(image, rng_for(1, 2, 3), crop=0.3, pad=0, flip=1))
    assert np.abs(flipped[:, ::-1].astype(int) - plain).max() <= 1


def test_random_numbers_differ_by_seed_row_and_copy() -> None:
    drawn = {rng_for(seed, row, copy).random() for seed in range(4) for row in range(4) for copy in range(4)}
    assert len(drawn) == 64
    assert rng_for(1, 2, 3).random() == rng_for(1, 2, 3).random()


def test_copies_are_made_of_training_rows_alone(train: Path) -> None:
    original, store = open_store(train), augmented(train)
    training = np.flatnonzero(~original.validation)
    assert store.source_index.tolist() == np.repeat(training, 2).tolist()
    assert not store.validation.any()
    assert np.array_equal(store.labels, original.labels[store.source_index])
    assert np.array_equal(store.source, original.source[store.source_index])
    assert store.attrs["created_by"] == "carmodel augment"
    assert {name: store.attrs[name] for name in ("split", "crop", "margin", "seed", "note")} == {
        "split": "train", "crop": "box", "margin": 0.1, "seed": 5, "note": "synthetic",
    }  # fmt: skip
    store.verify()


def test_the_augmented_store_is_read_after_the_original_as_one(train: Path) -> None:
    store = augmented(train)
    both = open_store(train, train.with_name("augmented.h5"))
    assert len(both) == 12 + len(store)
    assert np.array_equal(both.take(np.array([12, 3])), np.stack([store.take([0])[0], open_store(train).take([3])[0]]))


@pytest.mark.parametrize(
    ("column", "row", "value", "said"),
    [
        ("validation", 5, True, r"row 6 \(5\.jpg\) is a copy of the validation row 5 of .*train\.h5"),
        ("labels", 5, 0, r"row 6 \(5\.jpg\) is not a copy of row 5"),
        ("source", 5, "other.jpg", r"row 6 \(5\.jpg\) is not a copy of row 5"),
    ],
)
def test_copies_of_validation_rows_or_of_another_store_are_refused(
    train: Path, column: str, row: int, value: object, said: str
) -> None:
    copies = augmented(train)
    check_augmented(open_store(train), copies)
    check_augmented(open_store(train), augmented(train, "none.h5", copies=0))
    with h5py.File(train, "r+") as file:
        file[column][row] = value
    with pytest.raises(InputError, match=rf"augmented\.h5: {said}"):
        check_augmented(open_store(train), copies)
    store_of(train, np.zeros((1, 16, 16, 3), np.uint8), [0], ["a", "b"])
    with pytest.raises(InputError, match=r"row 0 \(1\.jpg\) is not a copy of row 1"):
        check_augmented(open_store(train), copies)


def test_each_image_depends_on_seed_row_and_copy_alone(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, store = open_store(train), augmented(train)
    for i in (0, 5, 17):
        row = int(store.source_index[i])
        alone = augment(original.take([row])[0], rng_for(5, row, i % 2), **STRENGTHS)
        assert np.array_equal(store.take([i])[0], alone)
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert np.array_equal(augmented(train, "again.h5").crc32, store.crc32)
    assert train.with_name("again.h5").read_bytes() == train.with_name("augmented.h5").read_bytes()
    more = augmented(train, "more.h5", copies=3)
    assert np.array_equal(more.crc32.reshape(-1, 3)[:, :2].ravel(), store.crc32)
    assert not np.array_equal(augmented(train, "other.h5", seed=6).crc32, store.crc32)


def test_pictures_are_drawn_of_any_store(train: Path) -> None:
    augmented(train)
    contact_sheet(train, train.with_name("sheet.png"), "A synthetic title")
    before_after(train, train.with_name("augmented.h5"), train.with_name("pairs.png"))
    for name in ("sheet.png", "pairs.png"):
        assert train.with_name(name).read_bytes().startswith(b"\x89PNG")
    assert not list(train.parent.glob(".*"))


def test_a_strip_shows_photos_in_their_natural_shape_within_limits(tmp_path: Path) -> None:
    images, aspects = np.zeros((3, 16, 16, 3), np.uint8), np.array([0.1, 2.0, 9.0])
    with Writer(StoreSpec(tmp_path / "train.h5", 16, ["a"], **ATTRS), 3) as writer:
        writer.append(images)
        writer.describe(StoreColumns(np.zeros(3), ["1", "2", "3"], np.arange(3), np.zeros(3, bool), aspects))
    class_examples(tmp_path / "train.h5", tmp_path, pictures=3, width=30)
    assert cv2.imread(str(tmp_path / "0.jpg")).shape == (45 + 15 + 10, 30, 3)


def test_each_class_that_has_photos_gets_a_strip_of_its_first_ones(train: Path) -> None:
    (folder := train.parent / "examples").mkdir()
    class_examples(train, folder, pictures=3, width=20)
    store = open_store(train)
    assert sorted(path.name for path in folder.iterdir()) == ["0.jpg", "1.jpg"]
    for label in (0, 1):
        strip = cv2.imread(str(folder / f"{label}.jpg"), cv2.IMREAD_COLOR_RGB)
        assert strip.shape == (60, 20, 3)
        third = store.take(np.flatnonzero(store.labels == label)[2:3])[0]
        near = cv2.resize(third, (20, 20), interpolation=cv2.INTER_AREA)
        assert np.abs(strip[40:].astype(int) - near).mean() < 12
