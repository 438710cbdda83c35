"""The confidence interval of an accuracy by its formula, without the libraries of the other metrics."""


def wilson_interval(accuracy: float, rows: int) -> tuple[float, float]:
    """Return the 95% interval of an accuracy that was measured on `rows` photos (Wilson 1927).

    It is the set of true accuracies p with ``|accuracy - p| <= 1.96 sqrt(p (1 - p) / rows)``.
    """
    z = 1.959964
    centre = (accuracy + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * (accuracy * (1 - accuracy) / rows + z**2 / (4 * rows**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
