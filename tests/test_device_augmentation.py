"""On-device augmentation: the numbers drawn on the host, and what the device makes of them."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training.device_augmentation import NO_VIEW, View, draw, mix, with_views

SIDE = 12


@pytest.fixture
def photos() -> np.ndarray:
    """Three random images, uint8 (3, 12, 12, 3)."""
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)


def look(photos: np.ndarray, *views: list[float] | np.ndarray, training: bool = True) -> np.ndarray:
    return keras.ops.convert_to_numpy(View()(photos, np.array(views, np.float32), training=training))


def test_the_whole_frame_is_seen_byte_for_byte(photos: np.ndarray) -> None:
    assert np.array_equal(look(photos, NO_VIEW, NO_VIEW, NO_VIEW), photos)


def test_outside_training_views_are_ignored(photos: np.ndarray) -> None:
    views = draw(3, np.random.default_rng(0), random_crop=0.2, random_flip=True, mixup=1.0)
    assert np.array_equal(look(photos, *views, training=False), photos)


def test_a_negative_width_is_a_mirror_byte_for_byte(photos: np.ndarray) -> None:
    assert np.array_equal(look(photos, *[[1, -1, 0, 1, 1]] * 3), photos[:, :, ::-1])


def test_a_window_is_enlarged_bilinearly(photos: np.ndarray) -> None:
    left, width, top, height = 0.75, -0.5, 0.1, 0.7
    centres = (np.arange(SIDE) + 0.5) / SIDE
    y, x = np.meshgrid((top + height * centres) * SIDE - 0.5, (left + width * centres) * SIDE - 0.5, indexing="ij")
    expected = np.stack(
        [map_coordinates(c.astype(float), (y, x), order=1, mode="nearest") for c in photos[0].T.swapaxes(1, 2)]
    )
    seen = look(photos[:1], [left, width, top, height, 1])[0]
    assert np.abs(seen - expected.transpose(1, 2, 0)).max() <= 0.51


def test_mixup_blends_each_image_and_label_with_the_next_of_the_batch(photos: np.ndarray) -> None:
    views = np.array([[0, 1, 0, 1, 0.75], [0, 1, 0, 1, 1.0], [0, 1, 0, 1, 0.5]], np.float32)
    seen = look(photos, *views).astype(float)
    assert np.abs(seen[0] - (0.75 * photos[0] + 0.25 * photos[1])).max() <= 0.5
    assert np.array_equal(seen[1], photos[1])
    assert np.abs(seen[2] - (0.5 * photos[2] + 0.5 * photos[0])).max() <= 0.5
    labels = mix(np.eye(3, dtype=np.float32), views)
    assert labels.tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0.5, 0, 0.5]]
    assert labels.dtype == np.float32


@given(st.integers(0, 2**32), st.floats(0.01, 1.0), st.booleans())
def test_drawn_windows_lie_in_the_frame_and_are_as_large_as_asked(seed: int, random_crop: float, flip: bool) -> None:
    left, width, top, height, share = draw(50, np.random.default_rng(seed), random_crop, flip).T
    assert np.all((np.minimum(left, left + width) >= -1e-6) & (np.maximum(left, left + width) <= 1 + 1e-6))
    assert np.all((top >= -1e-6) & (top + height <= 1 + 1e-6))
    assert np.all(np.abs(width * height) >= random_crop - 1e-5)
    assert np.all((np.abs(width) / height > 0.749) & (np.abs(width) / height < 1.334))
    assert flip or np.all(width > 0)
    assert np.all(share == 1)


def test_half_of_the_views_are_mirrored() -> None:
    assert np.mean(draw(2000, np.random.default_rng(0), random_flip=True)[:, 1] < 0) == pytest.approx(0.5, abs=0.05)


def test_mixup_keeps_the_larger_part_of_the_row_itself() -> None:
    share = draw(2000, np.random.default_rng(0), mixup=0.2)[:, 4]
    assert np.all((share >= 0.5) & (share <= 1)) and np.mean(share < 0.95) > 0.2


def test_a_rows_view_does_not_depend_on_how_many_rows_are_drawn() -> None:
    few, many = (draw(n, np.random.default_rng([7, 3]), 0.5, True, 0.2) for n in (5, 90))
    assert np.array_equal(few, many[:5])


def test_training_through_views_of_the_whole_frame_is_training_the_network_itself(photos: np.ndarray) -> None:
    photos = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    plain, viewed = (build(Train(depth=14, width=4), 3, 32) for _ in range(2))
    viewed.set_weights(plain.get_weights())
    trained = with_views(viewed)
    for model in (plain, trained):
        model.compile(keras.optimizers.SGD(0.05), "categorical_crossentropy")
    for _ in range(2):
        plain.train_on_batch(photos, labels)
        trained.train_on_batch({"image": photos, "view": np.tile(NO_VIEW, (6, 1))}, labels)
    assert len(trained.weights) == len(viewed.weights)
    # Moving statistics included. The two graphs may add in different orders: float32 rounding, no more.
    for one, other in zip(plain.weights, viewed.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-3, atol=1e-5, err_msg=one.path)
