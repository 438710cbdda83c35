"""Compute the metrics of a classifier from true labels and predicted probabilities.

In all functions, `labels` is int (N,), 0-based, and `probabilities` is float (N, C) with rows that sum to 1. Results
include all C classes, even those without labels. Equal probabilities rank by class number, as in `numpy.argmax`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import precision_recall_fscore_support


def in_top_k(labels: np.ndarray, probabilities: np.ndarray, k: int) -> np.ndarray:
    """Return whether the true class of each row is among the `k` most likely ones (among all if k > C), bool (N,)."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(axis=1)


def top_k_accuracy(labels: np.ndarray, probabilities: np.ndarray, k: int) -> float:
    """Return the fraction of rows whose true class is among the `k` most likely ones (among all if k > C)."""
    return float(in_top_k(labels, probabilities, k).mean())


def losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of each row in nats, float64 (N,). It is at most 36, as in scikit-learn's `log_loss`."""
    exact = probabilities.astype(np.float64)
    true = exact[np.arange(len(labels)), labels] / exact.sum(axis=1)
    return -np.log(np.maximum(true, np.finfo(np.float64).eps))


def summary(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return top1, top5, mean_class_accuracy (over the classes with rows), log_loss (nats) and rows.

    Raises:
        ValueError: there are no rows.
    """
    if len(labels) == 0:
        raise ValueError("the test store has no rows, so there is nothing to measure")
    hits = probabilities.argmax(axis=1) == labels
    present = np.unique(labels)
    return {
        "top1": float(hits.mean()),
        "top5": top_k_accuracy(labels, probabilities, 5),
        "mean_class_accuracy": float(np.mean([hits[labels == label].mean() for label in present])),
        "log_loss": float(losses(labels, probabilities).mean()),
        "rows": float(len(labels)),
    }


def per_class(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """Return a table in class order: class, rows, correct, accuracy, precision, f1.

    The accuracy of a class is its recall. It is NaN for a class without rows, as is the precision of a class that is never
    predicted.
    """
    hits = probabilities.argmax(axis=1) == labels
    rows = np.bincount(labels, minlength=len(class_names))
    correct = np.bincount(labels[hits], minlength=len(class_names))
    table = pd.DataFrame({"class": list(class_names), "rows": rows, "correct": correct})
    table["accuracy"] = table["correct"] / table["rows"].replace(0, np.nan)
    precision, _, f1, _ = precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=np.arange(len(class_names)), zero_division=np.nan
    )
    return table.assign(precision=precision, f1=f1)


def confusion_matrix(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return int (C, C), the number of rows by true class (row) and predicted class (column)."""
    classes = np.arange(probabilities.shape[1])
    return sklearn_confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes)


def worst_mistakes(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of the most confident wrong predictions, int (at most `count`,), the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    confidence = probabilities[wrong].max(axis=1)
    return wrong[np.argsort(-confidence, kind="stable")][:count]
