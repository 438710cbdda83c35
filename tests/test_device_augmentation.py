"""Augmentation on the device: the numbers drawn on the host, and what the device makes of them."""

from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from carmodel.data import images
from carmodel.model.head import logits_of
from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training.device_augmentation import (
    COLUMNS,
    UNCHANGED,
    DeviceAugmentation,
    draw,
    mix_labels,
    with_augmentation,
)
from carmodel.training.resampling import resize

SIDE = 12
ALL = Train(random_crop=0.3, random_flip=True, zoom_out=0.4, colors=1, erase=0.5, mixup=0.2, cutmix=1.0)


@pytest.fixture
def photos() -> np.ndarray:
    """Three random images, uint8 (3, 12, 12, 3)."""
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)


def numbers(**changed: float) -> np.ndarray:
    """The row that changes nothing but what is given."""
    row = UNCHANGED.copy()
    for name, value in changed.items():
        row[COLUMNS.index(name)] = value
    return row


@cache  # compiled once for each shape
def layer(size: int) -> DeviceAugmentation:
    return DeviceAugmentation(size, ALL)


def look(photos: np.ndarray, *rows: np.ndarray, size: int = SIDE, training: bool = True) -> np.ndarray:
    seen = layer(size)(photos, np.array(rows, np.float32), training=training)
    return keras.ops.convert_to_numpy(seen)


def drawn(rows: int, seed: int = 0, **params: object) -> dict[str, np.ndarray]:
    return dict(zip(COLUMNS, draw(rows, np.random.default_rng(seed), Train(**params)).T, strict=True))


def test_unchanged_numbers_leave_every_byte(photos: np.ndarray) -> None:
    assert np.array_equal(look(photos, *[UNCHANGED] * 3), photos)


def test_outside_training_photos_are_only_resized(photos: np.ndarray) -> None:
    changes = draw(3, np.random.default_rng(0), ALL)
    assert np.array_equal(look(photos, *changes, training=False), photos)
    halves = look(photos, *changes, training=False, size=SIDE // 2)
    assert halves.shape == (3, 6, 6, 3) and abs(float(halves.mean()) - float(photos.mean())) < 5


@pytest.mark.parametrize("size", [3, 5, 8, 20])
def test_photos_are_resized_as_in_preprocess_and_serving(size: int, photos: np.ndarray) -> None:
    compiled = tf.function(lambda batch: resize(batch, size), jit_compile=True)  # as on GPUs
    expected = [images.resize(photo, size, size) for photo in photos.astype(np.float32)]
    np.testing.assert_allclose(compiled(tf.constant(photos)), expected, atol=0.01)


def test_a_negative_width_is_a_mirror_image(photos: np.ndarray) -> None:
    assert np.array_equal(look(photos, *[numbers(left=1, width=-1)] * 3), photos[:, :, ::-1])


def test_a_window_is_enlarged_bilinearly(photos: np.ndarray) -> None:
    left, width, top, height = 0.75, -0.5, 0.1, 0.7
    centres = (np.arange(SIDE) + 0.5) / SIDE
    y, x = np.meshgrid((top + height * centres) * SIDE - 0.5, (left + width * centres) * SIDE - 0.5, indexing="ij")
    expected = np.stack(
        [map_coordinates(c.astype(float), (y, x), order=1, mode="nearest") for c in photos[0].T.swapaxes(1, 2)]
    )
    seen = look(photos[:1], numbers(left=left, width=width, top=top, height=height))[0]
    assert np.abs(seen - expected.transpose(1, 2, 0)).max() <= 0.51


def test_shrinking_averages_all_pixels() -> None:
    stripes = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    stripes[:, :, ::2] = 200
    inner = look(stripes, UNCHANGED, size=SIDE // 2)[0, :, 1:-1]
    assert np.abs(inner.astype(int) - 100).max() <= 1


def test_a_photo_zoomed_out_lies_on_a_part_of_the_next_one() -> None:
    pair = np.stack([np.full((24, 24, 3), 250, np.uint8), np.full((24, 24, 3), 10, np.uint8)])
    half = numbers(left=-0.5, width=2, top=-0.5, height=2)
    seen = look(pair, half, half, size=24)[0, :, :, 0]
    assert (seen[7:17, 7:17] == 250).all() and (seen[0] == 10).all() and (seen[:, -1] == 10).all()
    assert np.all(np.diff(seen[12, :12].astype(int)) >= 0), "the edge is blended"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gain": 0.5}, lambda x: x * 0.5),
        ({"gain": 0.0, "to_grey": 1.0}, lambda x: (x @ [0.299, 0.587, 0.114])[..., None] + 0 * x),
        ({"gain": 0.0, "to_mean": 1.0}, lambda x: (x @ [0.299, 0.587, 0.114]).mean() + 0 * x),
        ({"levels": 1}, lambda x: np.where(x >= 127.5, 255.0, 0.0)),
        ({"solarize": 100}, lambda x: np.where(x >= 100, 255 - x, x)),
        ({"stretch": 1}, lambda x: (x - x.min((0, 1))) * 255 / (x.max((0, 1)) - x.min((0, 1)))),
    ],
    ids=["brightness", "saturation", "contrast", "posterize", "solarize", "autocontrast"],
)
def test_colour_numbers_do_what_their_operation_says(change, expected, photos: np.ndarray) -> None:
    dull = (40 + photos[:1] // 2).astype(np.uint8)
    seen = look(dull, numbers(**change))[0]
    assert np.abs(seen - expected(dull[0].astype(float))).max() <= 1


def test_an_erased_box_is_filled_with_the_mean(photos: np.ndarray) -> None:
    box = numbers(erase_left=0, erase_right=0.5, erase_top=0, erase_bottom=0.5)
    seen = look(photos[:1], box)[0]
    assert np.ptp(seen[:6, :6]) == 0 and abs(int(seen[0, 0, 0]) - photos[0].mean()) <= 1
    assert np.array_equal(seen[6:], photos[0, 6:])


def test_mixup_blends_each_image_and_label_with_the_next(photos: np.ndarray) -> None:
    rows = np.stack([numbers(share=share) for share in (0.75, 1.0, 0.5)])
    seen = look(photos, *rows).astype(float)
    assert np.abs(seen[0] - (0.75 * photos[0] + 0.25 * photos[1])).max() <= 0.5
    assert np.array_equal(seen[1], photos[1])
    assert np.abs(seen[2] - (0.5 * photos[2] + 0.5 * photos[0])).max() <= 0.5
    labels = mix_labels(np.eye(3, dtype=np.float32), rows)
    assert labels.tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0.5, 0, 0.5]]
    assert labels.dtype == np.float32


def test_cutmix_takes_a_box_and_its_area_of_the_label_from_the_next(photos: np.ndarray) -> None:
    rows = np.stack([numbers(cut_left=0, cut_right=0.5, cut_top=0.5, cut_bottom=1), UNCHANGED, UNCHANGED])
    seen = look(photos, *rows)[0]
    assert np.array_equal(seen[6:, :6], photos[1, 6:, :6])
    assert np.array_equal(seen[:6], photos[0, :6]) and np.array_equal(seen[6:, 6:], photos[0, 6:, 6:])
    assert mix_labels(np.eye(3, dtype=np.float32), rows)[0].tolist() == [0.75, 0.25, 0]


@pytest.mark.parametrize("name", ["random_crop", "zoom_out", "colors", "erase", "mixup", "cutmix"])
def test_what_is_switched_off_is_left_out_and_what_is_on_is_not(name: str, photos: np.ndarray) -> None:
    params = Train(**{name: 0.9})
    rows = draw(3, np.random.default_rng(1), params)
    seen = keras.ops.convert_to_numpy(DeviceAugmentation(SIDE, params)(photos, rows, training=True)).astype(int)
    assert np.abs(seen - look(photos, *rows)).max() <= 1
    assert (seen != photos).any()


@given(st.integers(0, 2**32), st.floats(0.01, 1.0), st.booleans())
def test_crops_lie_in_the_photo_and_are_as_large_as_asked(seed: int, random_crop: float, flip: bool) -> None:
    column = drawn(50, seed, random_crop=random_crop, random_flip=flip)
    left, width, top, height = (column[name] for name in COLUMNS[:4])
    assert np.all((np.minimum(left, left + width) >= -1e-6) & (np.maximum(left, left + width) <= 1 + 1e-6))
    assert np.all((top >= -1e-6) & (top + height <= 1 + 1e-6))
    assert np.all(np.abs(width * height) >= random_crop - 1e-5)
    assert np.all((np.abs(width) / height > 0.749) & (np.abs(width) / height < 1.334))
    assert flip or np.all(width > 0)
    assert np.all(column["share"] == 1)


def test_each_change_is_drawn_as_often_as_asked() -> None:
    column = drawn(4000, random_flip=True, zoom_out=0.3, erase=0.25, colors=1)
    assert np.mean(column["width"] < 0) == pytest.approx(0.5, abs=0.04)
    assert np.mean(np.abs(column["width"] * column["height"]) > 1) == pytest.approx(0.3, abs=0.04)
    assert np.mean(column["erase_right"] > column["erase_left"]) == pytest.approx(0.25, abs=0.04)
    assert np.mean(column["stretch"] == 1) == pytest.approx(1 / 7, abs=0.03)


def test_mixup_and_cutmix_share_the_images_between_them() -> None:
    mixed = drawn(4000, mixup=0.2)["share"]
    assert np.all((mixed >= 0.5) & (mixed <= 1)) and np.mean(mixed < 0.95) > 0.2
    both = drawn(4000, mixup=0.2, cutmix=1.0)
    cut = both["cut_right"] > both["cut_left"]
    assert np.mean(cut) == pytest.approx(0.5, abs=0.05)
    assert np.all(both["share"][cut] == 1)


def test_the_numbers_of_a_row_do_not_depend_on_the_other_rows_of_its_epoch() -> None:
    few, many = (draw(n, np.random.default_rng([7, 3]), Train(random_crop=0.5, random_flip=True)) for n in (5, 90))
    assert np.array_equal(few[:, :4], many[:5, :4])


def test_training_through_unchanged_photos_is_training_the_network_itself() -> None:
    photos = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    plain, viewed = (logits_of(build(Train(depth=14, width=4), ["a", "b", "c"])) for _ in range(2))
    viewed.set_weights(plain.get_weights())
    trained = with_augmentation(viewed, 32, 32, ALL)
    for model in (plain, trained):
        model.compile(keras.optimizers.SGD(0.05), keras.losses.CategoricalCrossentropy(from_logits=True))
    for _ in range(2):
        plain.train_on_batch(photos, labels)
        trained.train_on_batch({"image": photos, "numbers": np.tile(UNCHANGED, (6, 1))}, labels)
    assert len(trained.weights) == len(viewed.weights)
    # Moving statistics included. The two graphs may add in different orders: float32 rounding, no more.
    for one, other in zip(plain.weights, viewed.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-3, atol=1e-5, err_msg=one.path)
