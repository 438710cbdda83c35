"""How far probabilities can be trusted: calibration, and accuracy against coverage.

In all functions, `confidence` is float (N,), the probability of each answer, and `right` is bool (N,).
"""

import numpy as np
import pandas as pd

BINS = 15
POINTS = 100


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Return mean confidence and accuracy in bins of equal width: low, high, rows, confidence, accuracy. No bin is empty."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    number = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, bins - 1)
    answers = pd.DataFrame({"bin": number, "confidence": confidence, "accuracy": right})
    table = answers.groupby("bin").agg(
        rows=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    table.insert(0, "low", edges[table.index])
    table.insert(1, "high", edges[table.index + 1])
    return table.reset_index(drop=True)


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Return the ECE: ``sum over bins of rows / N * |accuracy - confidence|`` (Guo et al. 2017, arXiv:1706.04599)."""
    table = reliability(confidence, right, bins)
    return float((table["rows"] * (table["accuracy"] - table["confidence"]).abs()).sum() / len(confidence))


def coverage(confidence: np.ndarray, right: np.ndarray, points: int = POINTS) -> pd.DataFrame:
    """Return the accuracy of the most confident answers alone: coverage (their fraction), threshold, accuracy.

    Args:
        confidence: see above.
        right: see above.
        points: largest number of rows of the table, from few answers to all.
    """
    order = np.argsort(-confidence, kind="stable")
    counts = np.unique(np.linspace(1, len(order), min(points, len(order))).round().astype(np.int64))
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    return pd.DataFrame(
        {
            "coverage": counts / len(order),
            "threshold": confidence[order][counts - 1],
            "accuracy": accuracy[counts - 1],
        }
    )
