"""Checkpoints: files with all that a training needs to continue as if it had never stopped.

A checkpoint is an ``.npz`` of the network's variables (random seeds included), the optimizer's variables (moving
averages of the weights included) and, as JSON, the history and the parameters. It belongs to the network itself, whatever
model wrapped it in training.
"""

import json
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import keras
import numpy as np

from carmodel.errors import InputError

History = dict[str, list[float]]
Settings = dict[str, object]

SECONDS = 30.0
"""Least time between two checkpoints of a stage."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read or does not fit; the message names the file and the parameter."""


def path_of(directory: Path, epoch: int) -> Path:
    """File of the checkpoint after `epoch` epochs."""
    return directory / f"epoch-{epoch:04d}.npz"


def latest(directory: Path) -> Path | None:
    """The checkpoint of the most epochs, or None. One that was cut off, as in an upload, lacks its end and is passed over."""
    return max((path for path in directory.glob("epoch-*.npz") if is_zipfile(path)), default=None)


def save(
    path: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer, history: History, settings: Settings
) -> None:
    """Write a checkpoint; the final name appears only when the file is whole.

    Raises:
        OSError: the disk is full, for example; names the checkpoint. Earlier ones are untouched.
    """
    arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in _named(model, optimizer).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, history=np.array(json.dumps([history, settings])), **arrays)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (checkpoint not written)", str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def restore(path: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer, settings: Settings) -> History:
    """Set the variables of the network and of the built optimizer, and return the history so far.

    Raises:
        CheckpointError: not a checkpoint, or one of a training with other settings, network or optimizer: names the first
            parameter or variable that differs. Nothing has been changed then.
    """
    variables = _named(model, optimizer)
    try:
        with np.load(path) as file:
            saved = {name: file[name] for name in file.files}
        history, made_with = json.loads(str(saved.pop("history")))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from None
    for name in made_with.keys() & settings.keys():
        if made_with[name] != settings[name]:
            raise CheckpointError(
                f"{path} was made with {name}={made_with[name]}, and this training has {name}={settings[name]}; resume with "
                "the same value, or start a new training"
            )
    for (there, value), (here, variable) in zip_longest(saved.items(), variables.items(), fillvalue=("nothing", None)):
        if value is None or variable is None or value.shape != tuple(variable.shape) or _kind(there) != _kind(here):
            raise CheckpointError(
                f"{path} does not fit: it holds {_say(there, value)} where this training has {_say(here, variable)}; "
                "resume with the network and optimizer parameters of the run that made it"
            )
    for value, variable in zip(saved.values(), variables.values(), strict=True):
        variable.assign(value)
    return history


class SaveCheckpoints(keras.callbacks.Callback):
    """Save a checkpoint after an epoch, keep the last two, and record the whole history.

    Where epochs are short, one is saved at most every `SECONDS`, and after the last epoch of a stage.

    Args:
        directory: of the checkpoints.
        network: the network that is trained; the optimizer is that of the model in training.
        history: the epochs before this process, as `restore` returned them.
        settings: parameters that a resumed training must share.
        on_saved: called with the path of each new checkpoint, before older ones are removed.
    """

    def __init__(
        self,
        directory: Path,
        network: keras.Model,
        history: History,
        settings: Settings,
        *,
        on_saved: Callable[[Path], None] | None = None,
    ) -> None:
        super().__init__()
        self.directory, self.network, self.on_saved = directory, network, on_saved
        self.history, self.settings, self.saved_at = history, settings, -SECONDS

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Save, then remove older ones: until the new checkpoint is whole they stay."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        if epoch + 1 < self.params["epochs"] and time.monotonic() - self.saved_at < SECONDS:
            return
        path = path_of(self.directory, epoch + 1)
        save(path, self.network, self.model.optimizer, self.history, self.settings)
        self.saved_at = time.monotonic()
        if self.on_saved is not None:
            self.on_saved(path)
        for old in sorted(self.directory.glob("epoch-*.npz"))[:-2]:
            old.unlink()


def _named(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> dict[str, keras.Variable]:
    """Variables by owner, place and path. The place makes the name unique."""
    named = {f"model {i:05d} {variable.path}": variable for i, variable in enumerate(model.variables)}
    for i, variable in enumerate(optimizer.variables):
        named[f"optimizer {i:05d} {variable.path}"] = variable
    return named


def _kind(name: str) -> str:
    """What must agree of a name; Keras numbers unnamed layers by what else the process has built."""
    return name.rpartition("/")[2]


def _say(name: str, value: np.ndarray | keras.Variable | None) -> str:
    return name if value is None else f"{name.split(' ', 2)[2]} {tuple(value.shape)}"
