"""Checkpoints: whole or not there, for the network that made them, and no more of them than needed."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest

from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training.checkpoint import (
    CheckpointError,
    SaveCheckpoints,
    latest,
    path_of,
    restore,
    save,
)

SETTINGS = {"epochs": "2", "ema": 0.9}
HISTORY = {"loss": [0.1, 1 / 3], "val_loss": [2.0, float("nan")]}


def network(width: int = 4, classes: int = 3) -> keras.Model:
    return build(Train(depth=14, width=width), [str(i) for i in range(classes)])


def optimizer(model: keras.Model, made: type = keras.optimizers.AdamW) -> keras.optimizers.Optimizer:
    result = made(0.01)
    result.build(model.trainable_variables)
    return result


def values(*owners: keras.Model | keras.optimizers.Optimizer) -> list[np.ndarray]:
    return [np.array(variable) for owner in owners for variable in owner.variables]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write any file beyond `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_network_optimizer_and_history_come_back_bit_for_bit(tmp_path: Path) -> None:
    model = network()
    adam = optimizer(model)
    adam.apply([keras.random.normal(v.shape) for v in model.trainable_variables], model.trainable_variables)
    save(path_of(tmp_path, 2), model, adam, HISTORY, SETTINGS)

    other = network()
    fresh = optimizer(other)
    history = restore(path_of(tmp_path, 2), other, fresh, SETTINGS)
    assert all(np.array_equal(a, b) for a, b in zip(values(model, adam), values(other, fresh), strict=True))
    assert history["loss"] == HISTORY["loss"] and np.isnan(history["val_loss"][1])


@pytest.mark.parametrize(
    ("other", "made", "settings", "complaint"),
    [
        ({"width": 6}, keras.optimizers.AdamW, {}, r"kernel \(7, 7, 3, 4\).*kernel \(7, 7, 3, 6\)"),
        ({"classes": 5}, keras.optimizers.AdamW, {}, r"logits/kernel \(128, 3\).*logits/kernel \(128, 5\)"),
        ({}, keras.optimizers.SGD, {}, r"it has \S+momentum .* where this training has nothing"),
        ({}, keras.optimizers.AdamW, {"epochs": "3"}, "was made with epochs=2, and this training has epochs=3"),
    ],
    ids=["wider", "more classes", "another optimizer", "another schedule"],
)
def test_a_checkpoint_of_another_training_is_refused_with_the_difference(
    other: dict[str, int], made: type, settings: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    model = network()
    save(tmp_path / "epoch-0001.npz", model, optimizer(model), HISTORY, SETTINGS)
    here = network(**other)
    fresh = optimizer(here, made)
    before = values(here, fresh)
    with pytest.raises(CheckpointError, match=complaint) as error:
        restore(tmp_path / "epoch-0001.npz", here, fresh, SETTINGS | settings)
    assert "epoch-0001.npz" in str(error.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, values(here, fresh), strict=True))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    model = network()
    save(tmp_path / "epoch-0001.npz", model, optimizer(model), HISTORY, SETTINGS)
    whole = (tmp_path / "epoch-0001.npz").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no checkpoint", whole[:3000] + b"?" * 3000 + whole[6000:]):
        (tmp_path / "epoch-0002.npz").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"epoch-0002\.npz is not a readable checkpoint"):
            restore(tmp_path / "epoch-0002.npz", model, optimizer(model), SETTINGS)


EVERY = 0
"""Of so many epochs, each is the last one or later, and is saved."""


def save_epochs(folder: Path, epochs: range, of: int) -> list[str]:
    """Save after some epochs of a training of `of` epochs, and return the names of the checkpoints in the order of saving."""
    model = network()
    saved: list[str] = []
    saving = SaveCheckpoints(folder, model, {}, SETTINGS, on_saved=lambda path: saved.append(path.name))
    saving.set_params({"epochs": of})
    model.compile(optimizer(model))
    saving.set_model(model)
    for epoch in epochs:
        saving.on_epoch_end(epoch, {"loss": 9.0})
    assert saving.history["loss"] == [9.0] * len(epochs)
    return saved


# The standard library's zipfile tries once more to finish the file when it is collected.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function ZipFile.__del__")
def test_a_full_disk_loses_no_earlier_checkpoint_and_leaves_no_part_of_the_new_one(tmp_path: Path) -> None:
    save_epochs(tmp_path, range(2), of=EVERY)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with largest_file(10_000), pytest.raises(OSError, match=r"File too large.*epoch-0003\.npz"):
        save_epochs(tmp_path, range(2, 3), of=EVERY)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert latest(tmp_path) == path_of(tmp_path, 2)


def test_the_last_two_are_kept_and_each_new_one_is_announced(tmp_path: Path) -> None:
    assert save_epochs(tmp_path, range(5), of=EVERY) == [f"epoch-000{epoch}.npz" for epoch in range(1, 6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0004.npz", "epoch-0005.npz"]


def test_short_epochs_are_saved_now_and_then_and_always_at_the_end(tmp_path: Path) -> None:
    assert save_epochs(tmp_path, range(5), of=5) == ["epoch-0001.npz", "epoch-0005.npz"]


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    model = network()
    for epoch in (1, 2):
        save(path_of(tmp_path, epoch), model, optimizer(model), {"loss": [1.0] * epoch}, SETTINGS)
    newest = path_of(tmp_path, 2)
    newest.write_bytes(newest.read_bytes()[:-100])
    assert latest(tmp_path) == path_of(tmp_path, 1)
    assert latest(tmp_path / "missing") is None


def test_checkpoints_that_were_all_cut_off_do_not_restart_a_training_silently(tmp_path: Path) -> None:
    path_of(tmp_path, 1).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="every checkpoint .* is truncated. Start a new training"):
        latest(tmp_path)
