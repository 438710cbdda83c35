"""Checkpoints: one file an epoch with all that training needs to go on as if it had never stopped.

A checkpoint is an ``.npz`` of the network's variables (random seeds included), the optimizer's variables and, as JSON,
the history. It belongs to the plain network, whatever model wrapped it in training.
"""

import json
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import keras
import numpy as np

from carmodel.errors import InputError

History = dict[str, list[float]]


class CheckpointError(InputError):
    """A checkpoint that cannot be read or does not fit; the message names the file and the parameter."""


def path_of(directory: Path, epoch: int) -> Path:
    """File of the checkpoint after `epoch` epochs."""
    return directory / f"epoch-{epoch:04d}.npz"


def latest(directory: Path) -> Path | None:
    """The checkpoint of the most epochs, or None. One that was cut off, as in an upload, lacks its end and is passed over."""
    return max((path for path in directory.glob("epoch-*.npz") if is_zipfile(path)), default=None)


def best_epoch(history: History) -> int:
    """Epochs done when val_loss (loss, without validation rows) was least; the first of equals."""
    losses = np.array(history.get("val_loss") or history["loss"])
    return int(np.argmin(np.where(np.isnan(losses), np.inf, losses))) + 1


def save(path: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer, history: History) -> None:
    """Write a checkpoint; the final name appears only when the file is whole.

    Raises:
        OSError: the disk is full, for example; names the checkpoint. Earlier ones are untouched.
    """
    arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in _named(model, optimizer).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, history=np.array(json.dumps(history)), **arrays)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (checkpoint not written)", str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def restore(path: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None) -> History:
    """Set the variables of the network, and of the built optimizer if one is given, and return the history so far.

    Raises:
        CheckpointError: not a checkpoint, or one of another network or optimizer: names the first parameter at fault.
            Nothing has been changed then.
    """
    variables = _named(model, optimizer)
    try:
        with np.load(path) as file:
            wanted = [name for name in file.files if optimizer is not None or not name.startswith("optimizer")]
            saved = {name: file[name] for name in wanted}
        history = json.loads(str(saved.pop("history")))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from None
    for (there, value), (here, variable) in zip_longest(saved.items(), variables.items(), fillvalue=("nothing", None)):
        if value is None or variable is None or value.shape != tuple(variable.shape) or _kind(there) != _kind(here):
            raise CheckpointError(
                f"{path} does not fit: it holds {_say(there, value)} where this training has {_say(here, variable)}; "
                "resume with the network and optimizer parameters of the run that made it"
            )
    for value, variable in zip(saved.values(), variables.values(), strict=True):
        variable.assign(value)
    return history


class SaveEveryEpoch(keras.callbacks.Callback):
    """Save a checkpoint after every epoch, keep the last two and the best, and record the whole history.

    Args:
        directory: folder of the checkpoints.
        network: the plain network; the optimizer is that of the model in training.
        history: the epochs before this process, as `restore` returned them.
        on_saved: called with the path of each new checkpoint, before older ones are removed.
    """

    def __init__(
        self, directory: Path, network: keras.Model, history: History, on_saved: Callable[[Path], None] | None = None
    ) -> None:
        super().__init__()
        self.directory, self.network, self.on_saved = directory, network, on_saved
        self.history = history

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Save, then prune: until the new checkpoint is whole the older ones stay."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        path = path_of(self.directory, epoch + 1)
        save(path, self.network, self.model.optimizer, self.history)
        if self.on_saved is not None:
            self.on_saved(path)
        keep = {path_of(self.directory, done) for done in (epoch, epoch + 1, best_epoch(self.history))}
        for old in set(self.directory.glob("epoch-*.npz")) - keep:
            old.unlink()


class EarlyStopping(keras.callbacks.EarlyStopping):
    """Keras's early stopping on val_loss, which goes on counting where `history` ends."""

    def __init__(self, patience: int, history: History) -> None:
        super().__init__("val_loss", mode="min", patience=patience)
        self.past = history.get("val_loss", [])[:]

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Take up the best value and the epochs waited since."""
        super().on_train_begin(logs)
        if self.past:
            self.best_epoch = best_epoch({"val_loss": self.past}) - 1
            self.best, self.wait = self.past[self.best_epoch], self._waited()

    @property
    def over(self) -> bool:
        """Whether the past alone has exhausted the patience."""
        return self._waited() >= self.patience

    def _waited(self) -> int:
        return len(self.past) - best_epoch({"val_loss": self.past}) if self.past else 0


def _named(model: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> dict[str, keras.Variable]:
    """Variables by owner, place and path. The place makes the name unique."""
    named = {f"model {i:05d} {variable.path}": variable for i, variable in enumerate(model.variables)}
    for i, variable in enumerate(optimizer.variables if optimizer is not None else []):
        named[f"optimizer {i:05d} {variable.path}"] = variable
    return named


def _kind(name: str) -> str:
    """What must agree of a name; Keras numbers unnamed layers by what else the process has built."""
    return name.rpartition("/")[2]


def _say(name: str, value: np.ndarray | keras.Variable | None) -> str:
    return name if value is None else f"{name.split(' ', 2)[2]} {tuple(value.shape)}"
