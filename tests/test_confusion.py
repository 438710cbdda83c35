"""Confused classes are neighbours, and pairs are counted in both directions."""

import numpy as np

from carmodel.evaluation.confusion import confused_pairs, neighbour_order


def test_classes_that_are_confused_are_neighbours() -> None:
    twin = np.array([3, 4, 5, 0, 1, 2])
    labels = np.repeat(np.arange(6), 5)
    probabilities = np.full((30, 6), 0.02)
    probabilities[np.arange(30), labels] = 0.6
    probabilities[np.arange(30), twin[labels]] = 0.32
    order = neighbour_order(labels, probabilities).tolist()
    assert sorted(order) == list(range(6))
    assert all(abs(order.index(a) - order.index(b)) == 1 for a, b in enumerate(twin))


def test_classes_without_photos_and_two_classes_have_an_order_too() -> None:
    assert sorted(neighbour_order(np.array([0, 0]), np.eye(4)[[0, 1]])) == [0, 1, 2, 3]
    assert neighbour_order(np.array([0, 1]), np.eye(2)).tolist() == [0, 1]


def test_the_pair_that_is_confused_most_often_comes_first() -> None:
    matrix = np.array([[9, 1, 0], [0, 7, 2], [0, 1, 5]])
    pairs = confused_pairs(matrix, ["Audi", "BMW", "Fiat"])
    assert pairs.to_numpy().tolist() == [["BMW", "Fiat", 2, 1], ["Audi", "BMW", 1, 0]]
    assert confused_pairs(np.eye(3, dtype=int), ["a", "b", "c"]).empty
