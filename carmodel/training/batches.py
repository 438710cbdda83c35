"""Read shuffled batches from the HDF5 store. Images stay uint8 until they reach the device.

Each epoch is a seeded permutation of the rows. It is divided among the ranks and cut into batches.
"""

from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np

from carmodel.errors import InputError
from carmodel.training.device_augmentation import UNCHANGED, mix_labels

Draw = Callable[[int, np.random.Generator], np.ndarray]


class Rows(Protocol):
    """The data that batches are made of: a `carmodel.data.store.Store`, or features computed from one."""

    labels: np.ndarray
    validation: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the images or features of some rows, in the given order."""
        ...


class Photos(Rows, Protocol):
    """Rows that are square photos, such as a `carmodel.data.store.Store`."""

    image_size: int
    crc32: np.ndarray


def permutation(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the rows in the order of an epoch, which depends on the seed and the epoch alone."""
    return np.random.default_rng([seed, epoch, 0]).permutation(rows)


def shard(order: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """Return the shard of one rank: ``len(order) // ranks`` rows, which no other rank has.

    All shards have the same size. All ranks therefore make the same number of steps with the same batch size, and the
    plain average of their gradients is right. Up to ``ranks - 1`` rows are left out, other ones in each epoch.
    """
    return order[rank::ranks][: len(order) // ranks]


class Batches(keras.utils.PyDataset):
    """Batches of one rank, for training or validation.

    Training batches are in a seeded order. They all have the same size, so the step is compiled once. Up to
    ``batch_size - 1`` rows are left out, other ones in each epoch. Validation batches contain every row in order, and
    the last one may be smaller.

    A batch depends on the epoch and its number alone, whichever thread requests it. Call `begin` at the start of each
    epoch, from a callback's ``on_epoch_begin``. ``PyDataset.on_epoch_begin`` would be too late, since Keras calls it
    when worker threads have already requested batches.

    Args:
        data: a store, or features.
        rows: int (N,), rows of `data`.
        batch_size: rows per batch.
        seed: seed of the order and of the augmentation. None is for validation.
        draw: function ``(rows, generator) -> float32 (rows, columns)`` that draws the numbers of
            `carmodel.training.device_augmentation`. With it, the inputs are ``{"image": (batch, …), "numbers": (batch, …)}``
            and labels are mixed. Without it, the inputs are the arrays of ``data.take``.
        rank: number of this process.
        ranks: number of processes that share each epoch.
        workers: arguments of `keras.utils.PyDataset`. One thread is enough, since the store is mapped into memory.

    Raises:
        InputError: there are fewer rows than ranks.
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
            raise InputError(f"{len(rows)} rows cannot be shared by {ranks} processes; each needs at least one")
        self.data, self.rows = data, np.asarray(rows)
        self.seed, self.draw, self.rank, self.ranks = seed, draw, rank, ranks
        share = len(rows) // ranks
        self.batch_size = min(batch_size, share)
        self.steps = -(-share // batch_size) if seed is None else share // self.batch_size
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Start an epoch."""
        order, drawn = self.rows, None
        if self.seed is not None:
            order = permutation(self.rows, self.seed, epoch)
            if self.draw is not None:
                # Drawn for every row of the store, so that the numbers of a row do not depend on the rank or the batch.
                drawn = self.draw(len(self.data), np.random.default_rng([self.seed, epoch, 1]))
        self.epoch = epoch
        # A single assignment, so that no thread sees the order of one epoch and the numbers of another.
        self._epoch_data = shard(order, self.rank, self.ranks), drawn

    def __len__(self) -> int:
        """Return the steps per epoch, which are the same on all ranks."""
        return self.steps

    def __getitem__(self, step: int) -> tuple[np.ndarray | dict[str, np.ndarray], np.ndarray]:
        """Return the inputs and the one-hot labels, float32 (batch, classes), of a step of the current epoch."""
        order, drawn = self._epoch_data
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        images = self.data.take(rows)
        labels = np.eye(len(self.data.class_names), dtype=np.float32)[self.data.labels[rows]]
        if self.draw is None:
            return images, labels
        numbers = np.tile(UNCHANGED, (len(rows), 1)) if drawn is None else drawn[rows]
        return {"image": images, "numbers": numbers}, mix_labels(labels, numbers)
