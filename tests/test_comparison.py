"""Two models on the same photos: McNemar's exact test, and the photos that changed."""

import numpy as np
import pandas as pd
import pytest

from carmodel.evaluation.comparison import changed_photos, mcnemar


def answers(gained: int, lost: int, same: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Which photos two models get right, of which some are gained and some lost."""
    first = np.array([False] * gained + [True] * lost + [True] * same)
    second = np.array([True] * gained + [False] * lost + [True] * same)
    return first, second


def test_only_photos_that_one_model_gets_right_count() -> None:
    for same in (0, 50, 5000):
        assert mcnemar(*answers(8, 1, same)) == (8, 1, pytest.approx(2 * (1 + 9) / 2**9))


@pytest.mark.parametrize(
    ("gained", "lost", "better"), [(8, 1, True), (1, 8, False), (5, 4, False), (3, 0, False), (0, 0, False)]
)
def test_a_model_is_better_if_chance_is_an_unlikely_reason(gained: int, lost: int, better: bool) -> None:
    assert mcnemar(*answers(gained, lost)).better == better


def test_equal_models_have_a_p_value_of_one() -> None:
    assert mcnemar(*answers(0, 0)).p_value == 1
    assert mcnemar(*answers(6, 6)).p_value == 1


def test_changed_photos_are_listed_lost_ones_first() -> None:
    first = pd.DataFrame({"source": list("abcd"), "label": "Audi", "predicted": ["Audi", "BMW", "BMW", "Audi"]})
    second = first.assign(predicted=["Audi", "Audi", "Fiat", "BMW"])
    changed = changed_photos(first, second)
    assert changed[["row", "source", "before", "after", "change"]].to_numpy().tolist() == [
        [3, "d", "Audi", "BMW", "lost"],
        [1, "b", "BMW", "Audi", "gained"],
        [2, "c", "BMW", "Fiat", "wrong"],
    ]
