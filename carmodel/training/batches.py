"""One rank's epoch from a store: a seeded permutation of the rows, dealt to the ranks, cut into batches."""

from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np

from carmodel.errors import InputError
from carmodel.training.device_augmentation import NO_VIEW, mix

DrawViews = Callable[[int, np.random.Generator], np.ndarray]


class Rows(Protocol):
    """What batches read from: a `carmodel.data.store.Store`, or features computed from one."""

    labels: np.ndarray
    validation: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows' images or features, in the order asked for."""
        ...


def permutation(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the rows: a function of (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch, 0]).permutation(rows)


def deal(order: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """One rank's share of an epoch: ``len(order) // ranks`` rows, none of them another rank's.

    Every rank gets as many, so that all make the same steps with the same batch sizes and a plain average of gradients
    is right; the at most ``ranks - 1`` rows left over are others in every epoch.
    """
    return order[rank::ranks][: len(order) // ranks]


class Batches(keras.utils.PyDataset):
    """Batches of one rank: training (seeded order, views) or, without a seed, the rows in order.

    The rows of a rank are cut into ``ceil(rows / batch_size)`` batches whose sizes differ by at most one: every row is
    seen, and no tiny last batch upsets the normalisation.

    Batch i is a function of the epoch and i, whatever thread asks for it. The epoch is set by `begin`, from a
    callback's ``on_epoch_begin``: it comes before Keras asks for the epoch's batches, unlike
    ``PyDataset.on_epoch_begin``, which comes after the worker threads have started to fetch.

    Args:
        data: the store, or features.
        rows: int (N,), rows of `data` to visit.
        batch_size: rows a batch at most.
        seed: of the order and the views; None: rows in order, no views drawn.
        views: ``(rows, generator) -> float32 (rows, 5)`` as `carmodel.training.device_augmentation.draw`. The inputs are then
            ``{"image": (batch, …), "view": (batch, 5)}`` and the labels mixed; otherwise the inputs are ``data.take``'s
            arrays.
        rank: this process among the `ranks` that share every epoch.
        ranks: number of processes.
        workers: as of `keras.utils.PyDataset`; the memory-mapped store feeds a GPU from one thread.

    Raises:
        InputError: fewer rows than ranks.
    """

    def __init__(
        self,
        data: Rows,
        rows: np.ndarray,
        batch_size: int,
        *,
        seed: int | None = None,
        views: DrawViews | None = None,
        rank: int = 0,
        ranks: int = 1,
        **workers: Any,
    ) -> None:
        super().__init__(**workers)
        if len(rows) < ranks:
            raise InputError(f"{len(rows)} rows cannot be dealt to {ranks} processes: each needs one or more")
        self.data, self.rows, self.batch_size = data, np.asarray(rows), batch_size
        self.seed, self.views, self.rank, self.ranks = seed, views, rank, ranks
        share = len(rows) // ranks
        steps = -(-share // batch_size)
        self.bounds = np.arange(steps + 1) * share // steps
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Make this the epoch whose batches are handed out."""
        order, drawn = self.rows, None
        if self.seed is not None:
            order = permutation(self.rows, self.seed, epoch)
            if self.views is not None:
                # Drawn for every row of the store, so that a row's view does not depend on who asks for it, or when.
                drawn = self.views(len(self.data), np.random.default_rng([self.seed, epoch, 1]))
        self.epoch = epoch
        # One assignment: a thread sees the old epoch or the new one, never half of each.
        self._dealt = deal(order, self.rank, self.ranks), drawn

    def __len__(self) -> int:
        """Steps an epoch, the same on all ranks."""
        return len(self.bounds) - 1

    def __getitem__(self, step: int) -> tuple[np.ndarray | dict[str, np.ndarray], np.ndarray]:
        """Inputs and one-hot labels float32 (batch, classes) of a step of the present epoch."""
        order, drawn = self._dealt
        rows = order[self.bounds[step] : self.bounds[step + 1]]
        images = self.data.take(rows)
        labels = np.eye(len(self.data.class_names), dtype=np.float32)[self.data.labels[rows]]
        if self.views is None:
            return images, labels
        views = np.tile(NO_VIEW, (len(rows), 1)) if drawn is None else drawn[rows]
        return {"image": images, "view": views}, mix(labels, views)
