"""Checkpoints: files with everything that training needs to resume as if it had never stopped.

A checkpoint is an ``.npz`` file. It contains the variables of the network, including random seeds, the variables of the
optimizer, including moving averages of the weights, and the history and parameters as JSON.
"""

import hashlib
import json
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import keras
import numpy as np

from carmodel.errors import InputError
from carmodel.parameters import Train
from carmodel.training.batches import Photos

History = dict[str, list[float]]
Settings = dict[str, object]

AGAIN = " (main: -P fresh=true, train: without resume)"
"""How to start a new training, for messages."""

SECONDS = 30.0
"""Shortest time between two checkpoints of a stage."""


MAY_CHANGE_ON_RESUME = {
    *("store_uri", "augmented_uri", "resume"),
    *("processes", "hosts", "launcher", "spark_master"),
}
"""Parameters that may change when a training is resumed. The stores may have moved, but must have the same rows."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, or belongs to another training. The message names the file and the difference."""


def settings_of(params: Train, store: Photos) -> Settings:
    """Return the parameters that must not change when a training is resumed, and a digest of the rows.

    A file may have moved, so parameters that name a file have a digest of its contents.
    """
    columns = (store.labels, store.validation, store.crc32)
    rows = [store.image_size, list(store.class_names), *(column.tolist() for column in columns)]
    files = {name: Path(getattr(params, name)) for name in ("backbone", "init", "weights")}
    contents = {name: _digest(path.read_bytes()) for name, path in files.items() if path.is_file()}
    return params.model_dump(exclude=MAY_CHANGE_ON_RESUME) | contents | {"rows": _digest(json.dumps(rows).encode())}


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def path_of(directory: Path, epoch: int) -> Path:
    """Return the path of the checkpoint after `epoch` epochs."""
    return directory / f"epoch-{epoch:04d}.npz"


def latest(directory: Path) -> Path | None:
    """Return the checkpoint of the latest epoch, or None. Truncated files, for example of an upload, are ignored.

    Raises:
        CheckpointError: there are checkpoints, and all of them are truncated.
    """
    found = sorted(directory.glob("epoch-*.npz"))
    complete = [path for path in found if is_zipfile(path)]
    if found and not complete:
        raise CheckpointError(f"every checkpoint in {directory} is truncated. Start a new training{AGAIN}")
    return complete[-1] if complete else None


def save(
    path: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer, history: History, settings: Settings
) -> None:
    """Write a checkpoint under a temporary name, and rename it when it is complete.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. Names the checkpoint.
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
    """Set the variables of the network and of the built optimizer, and return the history up to the checkpoint.

    Raises:
        CheckpointError: the file is not a checkpoint, or belongs to a training with other settings, another network or
            another optimizer. Names the first difference. No variable is changed.
    """
    variables = _named(model, optimizer)
    try:
        with np.load(path) as file:
            saved = {name: file[name] for name in file.files}
        history, made_with = json.loads(str(saved.pop("history")))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from None
    for name in sorted(made_with.keys() & settings.keys()):
        if made_with[name] != settings[name]:
            raise CheckpointError(
                f"{path} was made with {name}={made_with[name]}, and this training has {name}={settings[name]}. Resume with "
                f"the same value, or start a new training{AGAIN}"
            )
    for (old, value), (new, variable) in zip_longest(saved.items(), variables.items(), fillvalue=("nothing", None)):
        if value is None or variable is None or value.shape != tuple(variable.shape) or _kind(old) != _kind(new):
            raise CheckpointError(
                f"{path} does not fit: it has {_describe(old, value)} where this training has {_describe(new, variable)}. "
                "Resume with the network and optimizer parameters of the run that made it"
            )
    for value, variable in zip(saved.values(), variables.values(), strict=True):
        variable.assign(value)
    return history


class SaveCheckpoints(keras.callbacks.Callback):
    """Save checkpoints after epochs, keep the last two, and record the history.

    A checkpoint is saved at most every `SECONDS` seconds, and after the last epoch of a stage.

    Args:
        directory: directory of the checkpoints.
        network: the trained network. The optimizer is the one of the fitted model.
        history: the history before this process, which is extended in place.
        settings: parameters that must not change when training is resumed.
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
        """Record the logs, save a checkpoint, then remove older ones."""
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
    """Return all variables under names made of owner, position and path. The position makes a name unique."""
    named = {f"model {i:05d} {variable.path}": variable for i, variable in enumerate(model.variables)}
    for i, variable in enumerate(optimizer.variables):
        named[f"optimizer {i:05d} {variable.path}"] = variable
    return named


def _kind(name: str) -> str:
    """Return the part of a name that must agree. Keras numbers unnamed layers in the order in which a process builds them."""
    return name.rpartition("/")[2]


def _describe(name: str, value: np.ndarray | keras.Variable | None) -> str:
    return name if value is None else f"{name.split(' ', 2)[2]} {tuple(value.shape)}"
