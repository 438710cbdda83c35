"""The processes that train together, as one object: `Single`, or `carmodel.training.distributed.Horovod`.

Both offer the same: this process's `rank` among `count`, and what training needs of the others.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import keras
import numpy as np

T = TypeVar("T")


class Ranks(Protocol):
    """What training asks of the processes that train together."""

    rank: int
    count: int

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of all ranks, rank 0's first."""
        ...

    def from_rank_0(self, value: T) -> T:
        """Return what rank 0 passes, on every rank."""
        ...

    def broadcast(self, variables: Iterable[keras.Variable]) -> None:
        """Give every rank the values that rank 0 has."""
        ...

    def callbacks(
        self, optimizer: keras.optimizers.Optimizer, compression: str, rows: int, validation_rows: int
    ) -> Sequence[keras.callbacks.Callback]:
        """Make the optimizer average gradients over the ranks, and return the callbacks that keep the ranks one model."""
        ...


class Single:
    """One process that trains alone: nothing to exchange."""

    rank = 0
    count = 1

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return `rows`."""
        return rows

    def from_rank_0(self, value: T) -> T:
        """Return `value`."""
        return value

    def broadcast(self, variables: Iterable[keras.Variable]) -> None:
        """Do nothing."""

    def callbacks(self, *_: Any) -> list[keras.callbacks.Callback]:
        """Return no callback."""
        return []
