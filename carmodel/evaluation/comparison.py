"""Compare two models that answered the same test photos: McNemar's test, and the photos that changed.

Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947. Only the
photos that one model gets right and the other wrong tell the models apart. If the models are equally good, each model is
right on such a photo with probability 1/2, so the exact test is a binomial test.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

SIGNIFICANCE = 0.05


class McNemar(NamedTuple):
    """How a second model differs from a first one on the same photos.

    Attributes:
        gained: photos that only the second model gets right.
        lost: photos that only the first model gets right.
        p_value: of the exact two-sided test.
    """

    gained: int
    lost: int
    p_value: float

    @property
    def better(self) -> bool:
        """Whether the second model is better, and chance is an unlikely reason."""
        return self.gained > self.lost and self.p_value < SIGNIFICANCE

    def __str__(self) -> str:
        return f"{self.gained} photos gained, {self.lost} lost, p = {self.p_value:.2g} in McNemar's test"


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Compare which photos two models get right, bool (N,) each."""
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    from scipy.stats import binomtest  # takes half a second, which most starts of `main` do not need

    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return McNemar(gained, lost, float(p_value))


def changed_photos(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return the photos with another answer: row, source, label, before, after, change ("gained", "lost" or "wrong").

    "wrong" means that both answers are wrong.

    Args:
        first: predictions of the first model, one row per photo: source, label, predicted.
        second: predictions of the second model for the same photos.
    """
    rows = np.flatnonzero((first["predicted"] != second["predicted"]).to_numpy())
    before, after = first.iloc[rows], second.iloc[rows]
    table = after[["source", "label"]].assign(before=before["predicted"], after=after["predicted"])
    kinds = [table["after"] == table["label"], table["before"] == table["label"]]
    table["change"] = np.select(kinds, ["gained", "lost"], "wrong")
    table.insert(0, "row", rows)
    return table.sort_values("change", key=lambda kind: kind.map({"lost": 0, "gained": 1, "wrong": 2}), kind="stable")
