"""Calibrated probabilities and the threshold of certain answers."""

import numpy as np
import pytest

from carmodel.data.drawing.negatives import draw_negatives, draw_unknown_cars
from carmodel.data.sample import class_names
from carmodel.serving.calibration import apply_temperature, calibrate, fit_temperature, precise_threshold


def answers(rows: int, sharpness: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (rows, 5) that are calibrated for a sharpness of 1, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, 5))
    probabilities = apply_temperature(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1.0)
    labels = np.array([rng.choice(5, p=row) for row in probabilities])
    return apply_temperature(probabilities, 1 / sharpness), labels


def test_temperature_divides_the_logits_and_keeps_the_ranking() -> None:
    logits = np.array([[2.0, 0.0, -1.0]])
    softmax = np.exp(logits) / np.exp(logits).sum()
    halved = np.exp(logits / 2) / np.exp(logits / 2).sum()
    np.testing.assert_allclose(apply_temperature(softmax, 1.0), softmax)
    np.testing.assert_allclose(apply_temperature(softmax, 2.0), halved)
    np.testing.assert_allclose(apply_temperature(softmax[0], 2.0), halved[0])


def test_probabilities_of_zero_stay_finite() -> None:
    changed = apply_temperature(np.array([1.0, 0.0], np.float32), 3.0)
    assert np.isfinite(changed).all()
    assert changed.sum() == pytest.approx(1)


def test_the_temperature_of_overconfident_answers_is_found() -> None:
    probabilities, labels = answers(4000, sharpness=3.0)
    assert fit_temperature(probabilities, labels) == pytest.approx(3.0, rel=0.1)


def test_a_few_right_answers_do_not_make_all_answers_certain() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
    assert fit_temperature(probabilities, np.array([0, 1, 0])) == 1


@pytest.mark.parametrize(
    ("confidence", "right", "threshold"),
    [
        ([0.9, 0.8, 0.7], [True, True, True], 0.0),
        ([0.9, 0.8, 0.7], [True, True, False], 0.7),
        ([0.9, 0.8, 0.7], [False, True, True], 1.0),
        ([0.9, 0.8, 0.8], [True, True, False], 0.8),
    ],
    ids=["all right", "the last is wrong", "the most confident is wrong", "a tie is not split"],
)
def test_the_threshold_is_the_lowest_with_95_percent_precision(
    confidence: list[float], right: list[bool], threshold: float
) -> None:
    assert precise_threshold(np.array(confidence), np.array(right)) == threshold


def test_certain_answers_are_right_and_few_pictures_without_a_car_get_one() -> None:
    whole, (negatives, _) = answers(2000), answers(200, sharpness=0.5, seed=2)
    found = calibrate([whole], whole, negatives)
    assert found.metrics["certain_precision"] >= 0.95
    assert found.metrics["certain_negatives"] <= 0.05
    assert 0 < found.metrics["certain_coverage"] < 1
    assert found.threshold == found.metrics["certain_threshold"]


def test_pictures_without_a_car_raise_the_threshold() -> None:
    whole = answers(2000)
    timid, bold = (answers(200, sharpness=sharpness, seed=2)[0] for sharpness in (0.1, 3.0))
    assert calibrate([whole], whole, timid).threshold < calibrate([whole], whole, bold).threshold


def test_a_picture_without_a_car_depends_on_seed_and_number_alone() -> None:
    pictures = draw_negatives(6, 32, seed=3)
    assert (pictures.shape, pictures.dtype) == ((6, 32, 32, 3), np.uint8)
    assert np.array_equal(draw_negatives(4, 32, seed=3), pictures[:4])
    assert len(np.unique(pictures.reshape(6, -1), axis=0)) == 6


def test_unknown_cars_are_those_of_the_sample_that_the_network_does_not_know() -> None:
    pictures = draw_unknown_cars(4, 32, class_names(6), seed=3)
    assert (pictures.shape, pictures.dtype) == ((4, 32, 32, 3), np.uint8)
    assert len(np.unique(pictures.reshape(4, -1), axis=0)) == 4
    assert not np.array_equal(draw_unknown_cars(4, 32, ["Fiat Panda 2004"], seed=3), pictures)
    assert len(draw_unknown_cars(4, 32, class_names(8))) == 0
