"""Order the classes so that confused ones are neighbours, and list the confused pairs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform


def neighbour_order(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return an order of the classes, int (C,), in which classes that the network confuses are near each other.

    Two classes are similar if the network gives a high mean probability to one of them for photos of the other. Classes
    are clustered by this similarity (average linkage). The leaves are ordered so that neighbours are similar:
    Z. Bar-Joseph et al., "Fast optimal leaf ordering", 2001.

    Args:
        labels: int (N,), 0-based.
        probabilities: float (N, C).
    """
    classes = probabilities.shape[1]
    if classes < 3:
        return np.arange(classes)
    mean = np.zeros((classes, classes))
    np.add.at(mean, labels, probabilities)
    mean /= np.maximum(np.bincount(labels, minlength=classes), 1)[:, None]
    likeness = mean + mean.T
    np.fill_diagonal(likeness, 0.0)
    distance = likeness.max() - likeness
    np.fill_diagonal(distance, 0.0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def confused_pairs(matrix: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """Return the pairs of classes that are confused, most often first: a, b, a_as_b, b_as_a.

    Args:
        matrix: int (C, C), number of photos by true class (row) and predicted class (column).
        class_names: C names.
    """
    names = np.array(class_names)
    a, b = np.nonzero(np.triu(matrix + matrix.T, 1))
    table = pd.DataFrame({"a": names[a], "b": names[b], "a_as_b": matrix[a, b], "b_as_a": matrix[b, a]})
    often = (table["a_as_b"] + table["b_as_a"]).sort_values(ascending=False, kind="stable")
    return table.loc[often.index].reset_index(drop=True)
