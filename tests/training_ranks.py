"""What the ranks of tests/test_distributed_training.py do: whole trainings of the project, on made-up photos."""

import json
import os
import signal
from pathlib import Path

import keras
import numpy as np

from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training.distributed import join
from carmodel.training.fit import fit
from tests.distributed_ranks import CLASSES, Store, photos

# Everything that has a state to go on with: momentum, schedule, moving statistics, views, the wait of early stopping.
ALL = Train(
    depth=14, width=4, batch_size=4, epochs=4, early_stop=9, random_flip=True, mixup=0.2, learning_rate=0.01
)  # fmt: skip


class Recorder(Store):
    """Remembers which rows were taken."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.taken.append(rows)
        return super().take(rows)


def train(folder: Path, params: Train, rank: int, ranks: int, callbacks: tuple[keras.callbacks.Callback, ...]) -> None:
    """Train and leave the weights, the history, the number of steps and the rows that were taken from the store."""
    store = Recorder(**vars(photos(47, validation=7)), taken=[])
    keras.utils.set_random_seed(params.seed)
    network = build(params, CLASSES, 32)
    # As on machines of their own: only rank 0 finds its checkpoints again.
    checkpoints = folder / "checkpoints" if rank == 0 else folder / f"empty-{rank}"
    steps: list[int] = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: steps.append(step))
    history = fit(network, store, params, checkpoints, callbacks=(count, *callbacks), rank=rank, ranks=ranks).history
    weights = np.concatenate([np.ravel(variable.numpy()) for variable in network.variables])
    taken = sorted({int(row) for rows in store.taken for row in rows})
    np.save(folder / f"weights-{rank}.npy", weights)
    (folder / f"seen-{rank}.json").write_text(json.dumps({"history": history, "steps": len(steps), "taken": taken}))


def killed(folder: str) -> None:
    """An uninterrupted training, and one in which rank 1 is killed two steps into the third epoch."""
    rank, ranks = join()
    train(Path(folder) / "uninterrupted", ALL, rank, ranks, ())
    train(Path(folder), ALL, rank, ranks, (Die(),) if rank == 1 else ())


def resumed(folder: str) -> None:
    """The rest of the training that was killed."""
    train(Path(folder), ALL, *join(), ())


class Die(keras.callbacks.Callback):
    epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if (self.epoch, batch) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)


def several(folder: str) -> None:
    """A plain training, and one of a frozen network's head, stopped early and ending with its best epoch."""
    rank, ranks = join()
    for name, params in (
        ("plain", Train(depth=14, width=4, batch_size=4, epochs=1, compression="float16")),
        ("frozen", Train(depth=14, width=4, batch_size=4, epochs=6, early_stop=1, freeze=True, learning_rate=0.9)),
    ):
        out = Path(folder) / name
        out.mkdir(exist_ok=True)
        train(out, params, rank, ranks, ())
