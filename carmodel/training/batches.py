"""One rank's epoch from a store: a seeded permutation of the rows, sharded over the ranks, cut into batches."""

from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np

from carmodel.errors import InputError
from carmodel.training.device_augmentation import UNCHANGED, mix_labels

Draw = Callable[[int, np.random.Generator], np.ndarray]


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


class Photos(Rows, Protocol):
    """Rows whose data are square photos, such as a `carmodel.data.store.Store`."""

    image_size: int


def permutation(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the rows: a function of (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch, 0]).permutation(rows)


def deal(order: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """Return one rank's shard of an epoch: ``len(order) // ranks`` rows, none of them another rank's.

    Every rank gets as many, so that all make the same steps with the same batch sizes and a plain average of gradients
    is right. The at most ``ranks - 1`` rows that are left over differ from epoch to epoch.
    """
    return order[rank::ranks][: len(order) // ranks]


class Batches(keras.utils.PyDataset):
    """Batches of one rank: for training in a seeded order, or for validation the rows in order.

    All training batches have the same size, so that one compilation serves all: the at most ``batch_size - 1`` rows that are
    left over differ from epoch to epoch. Validation visits every row, and its last batch may be smaller.

    Batch i is a function of the epoch and i, whatever thread asks for it. The epoch is set by `begin`, from a
    callback's ``on_epoch_begin``: it comes before Keras asks for the epoch's batches, unlike
    ``PyDataset.on_epoch_begin``, which comes after the worker threads have started to fetch.

    Args:
        data: the store, or features.
        rows: int (N,), rows of `data` to visit.
        batch_size: rows per batch.
        seed: of the order and the augmentation; None: rows in order, photos unchanged.
        draw: ``(rows, generator) -> float32 (rows, columns)``, the numbers of
            `carmodel.training.device_augmentation.draw`. The inputs are then ``{"image": (batch, …), "numbers": (batch, …)}``
            and the labels are mixed. Without it the inputs are the arrays of ``data.take``.
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
        draw: Draw | None = None,
        rank: int = 0,
        ranks: int = 1,
        **workers: Any,
    ) -> None:
        super().__init__(**workers)
        if len(rows) < ranks:
            raise InputError(f"{len(rows)} rows cannot be shared by {ranks} processes: each needs one or more")
        self.data, self.rows = data, np.asarray(rows)
        self.seed, self.draw, self.rank, self.ranks = seed, draw, rank, ranks
        share = len(rows) // ranks
        self.batch_size = min(batch_size, share)
        self.steps = -(-share // batch_size) if seed is None else share // self.batch_size
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Make this the epoch whose batches are handed out."""
        order, drawn = self.rows, None
        if self.seed is not None:
            order = permutation(self.rows, self.seed, epoch)
            if self.draw is not None:
                # Drawn for every row of the store, so that a row's numbers do not depend on who asks for it, or when.
                drawn = self.draw(len(self.data), np.random.default_rng([self.seed, epoch, 1]))
        self.epoch = epoch
        # One assignment: a thread sees the old epoch or the new one, never half of each.
        self._dealt = deal(order, self.rank, self.ranks), drawn

    def __len__(self) -> int:
        """Steps per epoch, the same on all ranks."""
        return self.steps

    def __getitem__(self, step: int) -> tuple[np.ndarray | dict[str, np.ndarray], np.ndarray]:
        """Inputs and one-hot labels float32 (batch, classes) of a step of the present epoch."""
        order, drawn = self._dealt
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        images = self.data.take(rows)
        labels = np.eye(len(self.data.class_names), dtype=np.float32)[self.data.labels[rows]]
        if self.draw is None:
            return images, labels
        numbers = np.tile(UNCHANGED, (len(rows), 1)) if drawn is None else drawn[rows]
        return {"image": images, "numbers": numbers}, mix_labels(labels, numbers)
