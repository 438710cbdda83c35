"""The processes that train together, as one object: `Single`, or `carmodel.training.distributed.Horovod`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import keras
import numpy as np

T = TypeVar("T")


class Ranks(Protocol):
    """The processes that train together, as seen from one of them.

    Attributes:
        rank: number of this process, from 0. Rank 0 saves, logs and prints.
        count: number of processes.
    """

    rank: int
    count: int

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of all ranks, those of rank 0 first. Ranks may have different numbers of rows."""
        ...

    def from_rank_0(self, value: T) -> T:
        """Return the value that rank 0 passes, on every rank. It must be picklable."""
        ...

    def once_per_machine(self, work: Callable[[], T]) -> T:
        """Call `work` on one rank of each machine, and return its picklable result on all ranks of that machine."""
        ...

    def broadcast(self, variables: Iterable[keras.Variable]) -> None:
        """Broadcast the values of the variables from rank 0 to all ranks."""
        ...

    def callbacks(
        self, optimizer: keras.optimizers.Optimizer, compression: str, rows: int, validation_rows: int
    ) -> Sequence[keras.callbacks.Callback]:
        """Make the optimizer average gradients over the ranks, and return the callbacks that keep the ranks equal.

        Args:
            optimizer: of the model to fit, changed in place.
            compression: "none", "float16" or "bfloat16", see `carmodel.training.distributed.Average`.
            rows: training rows per epoch of this rank.
            validation_rows: validation rows of this rank.
        """
        ...


class Single:
    """One process, which trains alone."""

    rank = 0
    count = 1

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return `rows`."""
        return rows

    def from_rank_0(self, value: T) -> T:
        """Return `value`."""
        return value

    def once_per_machine(self, work: Callable[[], T]) -> T:
        """Call `work`."""
        return work()

    def broadcast(self, variables: Iterable[keras.Variable]) -> None:
        """Do nothing."""

    def callbacks(self, *_: object) -> list[keras.callbacks.Callback]:
        """Return no callback."""
        return []


ALONE = Single()
"""The default where processes may train together."""
