"""A user's own augmentation: what it gets, what it may give, and how it fails."""

from pathlib import Path

import numpy as np
import pytest

from carmodel.data.augmentation import augment_store, rng_for
from carmodel.data.store import open_store
from carmodel.data.transform import TransformError, file_of, load_transform, transformed
from carmodel.errors import InputError
from tests import transforms
from tests.test_augmentation import STRENGTHS

OFF = {"crop": 0.0, "pad": 0.0, "flip": 0.0}


def test_it_replaces_the_built_in_augmentation_when_that_is_off(train: Path) -> None:
    out = train.with_name("augmented.h5")
    augment_store(train, out, copies=2, seed=1, transform=transforms.noisy, **OFF)
    store, original = open_store(out), open_store(train)
    for i in (0, 7):
        row = int(store.source_index[i])
        rng = rng_for(1, row, i % 2)
        rng.random((4, 2)), rng.random()
        assert np.array_equal(store.take([i])[0], transforms.noisy(original.take([row])[0], rng))


def test_it_follows_the_built_in_augmentation(train: Path) -> None:
    plain, negative = train.with_name("plain.h5"), train.with_name("negative.h5")
    augment_store(train, plain, copies=1, seed=1, **STRENGTHS)
    augment_store(train, negative, copies=1, seed=1, transform=transforms.negative, **STRENGTHS)
    rows = np.arange(len(open_store(plain)))
    assert np.array_equal(open_store(negative).take(rows), 255 - open_store(plain).take(rows))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smaller", r"row 3 \(3\.jpg\), copy 0: transform smaller returned uint8 \(8, 8, 3\) for uint8 \(16, 16, 3\)"),
        ("in_floats", r"row 3 \(3\.jpg\), copy 0: transform in_floats returned float32"),
        ("breaks_on_row_3", r"row 3 \(3\.jpg\), copy 0: transform breaks_on_row_3 raised RuntimeError: no red of 12"),
        ("forgets", r"transform forgets returned a NoneType, not an image"),
    ],
)
def test_a_transform_that_fails_is_named_with_the_row_and_the_photo(train: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        augment_store(train, train.with_name("a.h5"), copies=1, seed=1, transform=getattr(transforms, name), **OFF)
    assert not train.with_name("a.h5").exists()


def test_it_gets_a_copy_of_the_image() -> None:
    image = np.full((4, 4, 3), 9, np.uint8)
    with pytest.raises(TransformError):
        transformed(image, np.random.default_rng(), transforms.scribbles)
    assert (image == 9).all()


def test_it_is_found_by_name() -> None:
    assert load_transform("tests.transforms:negative") is transforms.negative
    assert file_of("tests.transforms:negative") == Path(transforms.__file__)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests.transforms:missing", "has no attribute 'missing'"),
        ("no_such_package.module:function", "No module named 'no_such_package'"),
        ("tests.transforms", "is not package.module:function"),
        ("tests.transforms:CONSTANT", "is not a function"),
    ],
)
def test_a_name_that_leads_nowhere_is_explained(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_transform(name)


def test_a_well_known_library_serves_as_one(train: Path) -> None:
    from examples.albumentations_transform import weather

    first, again = train.with_name("first.h5"), train.with_name("again.h5")
    for out in (first, again):
        augment_store(train, out, copies=2, seed=4, transform=weather, **OFF)
    assert first.read_bytes() == again.read_bytes()
    store = open_store(first)
    changed = [
        not np.array_equal(store.take([i]), open_store(train).take([store.source_index[i]])) for i in range(len(store))
    ]
    assert np.mean(changed) > 0.5
