"""Numbers of a test: what they count, and that classes without rows do not get lost."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carmodel.evaluation import metrics

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.4, 0.5, 0.1]], np.float32)
LABELS = np.array([0, 1, 1, 0])


def test_summary_of_a_case_counted_by_hand() -> None:
    numbers = metrics.summary(LABELS, PROBABILITIES)
    assert numbers["top1"] == 0.5
    assert numbers["top5"] == 1.0
    assert numbers["mean_class_accuracy"] == 0.5
    assert numbers["rows"] == 4
    assert numbers["log_loss"] == pytest.approx(-np.log([0.7, 0.6, 0.4, 0.4]).mean(), rel=1e-5)


def test_top_k_counts_the_true_class_among_the_k_best() -> None:
    labels = np.array([0, 1, 2])
    probabilities = np.array([[0.2, 0.5, 0.3]] * 3)
    assert [metrics.top_k_accuracy(labels, probabilities, k) for k in (1, 2, 3, 9)] == [1 / 3, 2 / 3, 1, 1]


def test_equal_probabilities_are_no_free_hits() -> None:
    labels, probabilities = np.arange(10), np.full((10, 10), 0.1)
    assert metrics.top_k_accuracy(labels, probabilities, 1) == 0.1
    assert metrics.top_k_accuracy(labels, probabilities, 5) == 0.5


def test_classes_that_the_test_set_lacks_stay_in_table_and_matrix() -> None:
    table = metrics.per_class(LABELS, PROBABILITIES, ["a", "b", "c"])
    half = [0.5, 0.5, np.nan]
    expected = pd.DataFrame({"class": ["a", "b", "c"], "rows": [2, 2, 0], "correct": [1, 1, 0]})
    pd.testing.assert_frame_equal(table, expected.assign(accuracy=half, precision=half, f1=half))
    assert metrics.confusion_matrix(LABELS, PROBABILITIES).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_the_worst_mistake_is_the_most_confident_one() -> None:
    assert metrics.worst_mistakes(np.array([1, 1, 0, 0]), PROBABILITIES, 3).tolist() == [0, 3]
    assert metrics.worst_mistakes(np.array([1, 1, 0, 0]), PROBABILITIES, 1).tolist() == [0]
    assert metrics.worst_mistakes(PROBABILITIES.argmax(1), PROBABILITIES, 3).tolist() == []


def test_an_empty_test_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        metrics.summary(np.array([], int), np.zeros((0, 3)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), classes=st.integers(2, 12))
def test_all_numbers_agree_with_one_another(seed: int, rows: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    probabilities = rng.dirichlet(np.ones(classes), size=rows).astype(np.float32)
    numbers = metrics.summary(labels, probabilities)
    matrix = metrics.confusion_matrix(labels, probabilities)
    table = metrics.per_class(labels, probabilities, [str(i) for i in range(classes)])
    assert matrix.shape == (classes, classes)
    assert matrix.sum() == rows == table["rows"].sum()
    assert np.diag(matrix).tolist() == table["correct"].tolist()
    assert numbers["top1"] == pytest.approx(np.trace(matrix) / rows)
    assert numbers["top1"] <= numbers["top5"] <= 1
    assert numbers["mean_class_accuracy"] == pytest.approx(table["accuracy"].mean())
    assert len(metrics.worst_mistakes(labels, probabilities, rows)) == rows - np.trace(matrix)
