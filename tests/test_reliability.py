"""How far a test's figures can be trusted: intervals, calibration, and accuracy against coverage."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from carmodel.evaluation.intervals import bootstrap_intervals
from carmodel.evaluation.metrics import summary
from carmodel.evaluation.reliability import coverage, expected_calibration_error, reliability
from carmodel.evaluation.wilson import wilson_interval


def predictions(rows: int, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of two classes, where the first part of the answers is right."""
    labels = np.arange(rows) % 2
    right = np.arange(rows) < accuracy * rows
    probabilities = np.full((rows, 2), 0.2)
    probabilities[np.arange(rows), np.where(right, labels, 1 - labels)] = 0.8
    return labels, probabilities


def test_the_bootstrap_interval_of_an_accuracy_is_near_wilson_s() -> None:
    low, high = bootstrap_intervals(*predictions(400, 0.8))["top1"]
    assert (low, high) == pytest.approx(wilson_interval(0.8, 400), abs=0.01)


def test_figures_that_cannot_vary_have_an_interval_without_width() -> None:
    intervals = bootstrap_intervals(*predictions(50, 1.0))
    assert intervals["top1"] == intervals["top5"] == intervals["mean_class_accuracy"] == (1.0, 1.0)
    assert intervals["log_loss"] == pytest.approx((-np.log(0.8), -np.log(0.8)))


def test_the_log_loss_lies_within_its_interval_even_if_answers_are_certain_and_wrong() -> None:
    labels, probabilities = predictions(400, 0.9)
    probabilities = np.where(probabilities > 0.5, 1.0, 1e-35).astype(np.float32)
    low, high = bootstrap_intervals(labels, probabilities)["log_loss"]
    assert low < summary(labels, probabilities)["log_loss"] < high
    assert summary(labels, probabilities)["log_loss"] == pytest.approx(log_loss(labels, probabilities.astype(float)))


def test_the_same_seed_gives_the_same_intervals() -> None:
    case = predictions(60, 0.7)
    assert bootstrap_intervals(*case) == bootstrap_intervals(*case)
    assert bootstrap_intervals(*case) != bootstrap_intervals(*case, seed=1)


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    confidence, right = np.array([0.9] * 10 + [0.5] * 10), np.array([True] * 7 + [False] * 3 + [True, False] * 5)
    table = reliability(confidence, right, bins=10)
    assert table["rows"].tolist() == [10, 10]
    assert table[["confidence", "accuracy"]].to_numpy().ravel().tolist() == pytest.approx([0.5, 0.5, 0.9, 0.7])
    assert expected_calibration_error(confidence, right, bins=10) == pytest.approx(0.1)


def test_every_confidence_from_0_to_1_is_in_the_bin_that_contains_it() -> None:
    confidence = np.linspace(0, 1, 101)
    table = reliability(confidence, confidence > 0.5)
    assert table["rows"].sum() == 101
    assert (table["low"] <= table["confidence"]).all() and (table["confidence"] <= table["high"]).all()


def test_coverage_counts_the_most_confident_answers_first() -> None:
    table = coverage(np.array([0.6, 0.9, 0.7, 0.8]), np.array([False, True, False, True]))
    assert table["coverage"].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert table["threshold"].tolist() == [0.9, 0.8, 0.7, 0.6]
    assert table["accuracy"].tolist() == pytest.approx([1, 1, 2 / 3, 1 / 2])
