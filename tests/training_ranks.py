"""What the ranks of tests do in whole trainings of the project, on made-up photos."""

import json
import os
import signal
from pathlib import Path

import keras
import numpy as np

from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training import checkpoint
from carmodel.training.distributed import Horovod
from carmodel.training.fit import fit
from tests.distributed_ranks import Store, contract, photos

checkpoint.SECONDS = 0.0  # every epoch is saved

# Everything that has a state to go on with: momentum, schedule, moving statistics, augmentation, moving averages.
ALL = Train(
    depth=14, width=4, batch_size=4, epochs=4, ema=0.9, random_flip=True, mixup=0.2, learning_rate=0.01
)  # fmt: skip


class Recorder(Store):
    """Remembers which rows were taken."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.taken.append(rows)
        return super().take(rows)


def train(folder: Path, params: Train, ranks: Horovod, callbacks: tuple[keras.callbacks.Callback, ...]) -> None:
    """Train and leave the weights, the history, the number of steps and the rows that were taken from the store."""
    store = Recorder(**vars(photos(47, validation=7)), taken=[])
    keras.utils.set_random_seed(params.seed)
    network = build(params, ["a", "b", "c"])
    # As on machines of their own: only rank 0 finds its checkpoints again.
    checkpoints = folder / "checkpoints" if ranks.rank == 0 else folder / f"empty-{ranks.rank}"
    steps: list[int] = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: steps.append(step))
    history = fit(network, store, params, checkpoints, callbacks=(count, *callbacks), ranks=ranks)
    weights = np.concatenate([np.ravel(variable.numpy()) for variable in network.variables])
    taken = sorted({int(row) for rows in store.taken for row in rows})
    np.save(folder / f"weights-{ranks.rank}.npy", weights)
    (folder / f"seen-{ranks.rank}.json").write_text(
        json.dumps({"history": history, "steps": len(steps), "taken": taken})
    )


def killed(folder: str) -> None:
    """An uninterrupted training, and one in which rank 1 is killed two steps into the third epoch."""
    ranks = Horovod()
    train(Path(folder) / "uninterrupted", ALL, ranks, ())
    train(Path(folder), ALL, ranks, (Die(),) if ranks.rank == 1 else ())


def resumed(folder: str) -> None:
    """The rest of the training that was killed."""
    train(Path(folder), ALL, Horovod(), ())


class Die(keras.callbacks.Callback):
    epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if (self.epoch, batch) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)


def everything(folder: str) -> None:
    """All that three ranks do in tests/test_distributed.py."""
    contract(folder)
    several(folder)


def several(folder: str) -> None:
    """A plain training, and one of a frozen network's head, started by linear discriminant analysis."""
    ranks = Horovod()
    for name, params in (
        ("plain", Train(depth=14, width=4, batch_size=4, epochs=1, compression="float16", batch_norm="inference")),
        ("frozen", Train(depth=14, width=4, batch_size=4, epochs=3, unfreeze="head", head_init="lda")),
    ):
        out = Path(folder) / name
        out.mkdir(exist_ok=True)
        train(out, params, ranks, ())
