"""Training end to end on a small store: what it learns, leaves behind and takes up again.

Run as a program (``python test_fit.py RUN FOLDER``) this file is one process of a training, for the tests that need a
process of their own: one that dies, one on another machine, one with another backend.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest

from carmodel.data.store import Store, open_store
from carmodel.data.writer import StoreColumns, StoreSpec, Writer
from carmodel.errors import InputError
from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training import precision
from carmodel.training.batches import Batches
from carmodel.training.checkpoint import CheckpointError, path_of
from carmodel.training.fit import fit
from carmodel.training.optimizer import undecayed
from tests.tracked import tracked_in

CLASSES, SIDE = 6, 32
SMALL = {"depth": 14, "width": 4, "batch_size": 8, "warmup_epochs": 0.5}
EVERYTHING = Train(**SMALL, epochs=4, early_stop=9, random_crop=0.5, random_flip=True, mixup=0.2, label_smoothing=0.1)


def write_store(path: Path, rows: int = 65, validation: bool = True) -> Store:
    """Noisy images whose brightness tells the class; every fifth row for validation."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, rows)
    images = (rng.integers(0, 60, (rows, SIDE, SIDE, 3)) + 32 * labels[:, None, None, None]).astype(np.uint8)
    attributes: dict[str, str | int | float] = {"crop": "none", "margin": 0.0, "seed": 0, "created_by": "a test"}
    with Writer(
        StoreSpec(path, SIDE, [f"car {label}" for label in range(CLASSES)], split="train", **attributes), rows
    ) as writer:
        is_validation = (np.arange(rows) % 5 == 0) & validation
        writer.append(images)
        writer.describe(StoreColumns(labels, [f"{row}.jpg" for row in range(rows)], np.arange(rows), is_validation))
    return open_store(path)


def network(params: Train) -> keras.Model:
    keras.utils.set_random_seed(params.seed)
    return build(params, CLASSES, SIDE)


def run_in_a_process(run: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, __file__, run, str(folder)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TF_DETERMINISTIC_OPS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


class DieInEpoch3(keras.callbacks.Callback):
    """Ends the process at once, as a power cut does, two steps into the third epoch."""

    epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if (self.epoch, batch) == (2, 1):
            os._exit(9)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("store") / "train.h5")


@pytest.fixture
def autologged(tmp_path: Path) -> Iterator[mlflow.ActiveRun]:
    """An MLflow run in a store of its own, with Keras's autologging on."""
    mlflow.keras.autolog(log_models=False, log_datasets=False)
    with tracked_in(tmp_path):
        experiment = mlflow.create_experiment("test", artifact_location=(tmp_path / "artifacts").as_uri())
        with mlflow.start_run(experiment_id=experiment) as run:
            yield run
    mlflow.keras.autolog(disable=True)


def test_a_network_learns_and_its_history_tells(store: Store, tmp_path: Path) -> None:
    params = Train(**SMALL, epochs=6, learning_rate=0.02)
    history = fit(network(params), store, params, tmp_path).history
    assert set(history) == {f"{v}{m}" for v in ("", "val_") for m in ("loss", "accuracy", "top5")} | {
        "images_per_second"
    }
    assert {len(values) for values in history.values()} == {6}
    assert history["loss"][-1] < history["loss"][0] and history["accuracy"][-1] > 0.5
    assert all(rate > 0 for rate in history["images_per_second"])
    assert np.all(np.array(history["top5"]) >= history["accuracy"])


def test_validation_weighs_every_row_alike_although_the_batches_differ_in_size(store: Store, tmp_path: Path) -> None:
    rows = np.flatnonzero(store.validation)
    params = Train(**SMALL, epochs=1)
    assert [len(Batches(store, rows, params.batch_size)[step][1]) for step in range(2)] == [6, 7]
    model = network(params)
    history = fit(model, store, params, tmp_path).history
    probabilities = model.predict(store.take(rows), verbose=0)
    right = probabilities[np.arange(len(rows)), store.labels[rows]]
    assert history["val_loss"][-1] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert history["val_accuracy"][-1] == pytest.approx((probabilities.argmax(1) == store.labels[rows]).mean())


def test_the_network_itself_is_trained_through_views_and_carries_nothing_of_the_training(
    store: Store, tmp_path: Path
) -> None:
    params = Train(**SMALL, epochs=2, random_flip=True, mixup=0.2)
    model = network(params)
    history = fit(model, store, params, tmp_path / "checkpoints").history
    rows = np.flatnonzero(store.validation)
    probabilities = model.predict(store.take(rows), verbose=0)
    assert history["val_accuracy"][-1] == pytest.approx((probabilities.argmax(1) == store.labels[rows]).mean())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert getattr(loaded, "optimizer", None) is None
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(loaded.predict(store.take(rows), verbose=0), probabilities)


def test_a_frozen_networks_head_is_fitted_on_its_features_within_the_whole_network(
    store: Store, tmp_path: Path
) -> None:
    params = Train(**SMALL, epochs=3, freeze=True)
    model = network(params)
    before = {variable.path: variable.numpy() for variable in model.variables}
    history = fit(model, store, params, tmp_path / "checkpoints").history
    changed = {variable.path for variable in model.variables if not np.array_equal(variable, before[variable.path])}
    assert changed == {"predictions/kernel", "predictions/bias"}
    rows = np.flatnonzero(store.validation)
    probabilities = model.predict(store.take(rows), verbose=0)
    assert history["val_accuracy"][-1] == pytest.approx((probabilities.argmax(1) == store.labels[rows]).mean())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(store.take(rows), verbose=0), probabilities)


def test_early_stopping_ends_with_the_best_epochs_weights(store: Store, tmp_path: Path) -> None:
    # A rate that diverges: the first epochs are the best.
    params = Train(**SMALL, epochs=30, learning_rate=3.0, early_stop=2)
    model = network(params)
    history = fit(model, store, params, tmp_path).history
    best = int(np.argmin(history["val_loss"])) + 1
    assert len(history["loss"]) == best + 2 < 30
    with np.load(path_of(tmp_path, best)) as saved:
        kernel = next(
            saved[name] for name in saved.files if name.startswith("model") and name.endswith("predictions/kernel")
        )
    np.testing.assert_array_equal(model.get_layer("predictions").kernel, kernel)

    again = network(params)
    assert fit(again, store, params, tmp_path).history == history
    np.testing.assert_array_equal(again.get_layer("predictions").kernel, kernel)


def test_a_store_without_validation_rows_trains_but_cannot_stop_early(tmp_path: Path) -> None:
    store = write_store(tmp_path / "train.h5", rows=20, validation=False)
    params = Train(**SMALL, epochs=1)
    assert set(fit(network(params), store, params, tmp_path).history) == {
        "loss",
        "accuracy",
        "top5",
        "images_per_second",
    }
    with pytest.raises(InputError, match="early_stop needs validation rows"):
        stopping = Train(**SMALL, early_stop=1)
        fit(network(stopping), store, stopping, tmp_path)


def test_resuming_with_another_batch_size_or_network_is_refused(store: Store, tmp_path: Path) -> None:
    params = Train(**SMALL, epochs=1)
    fit(network(params), store, params, tmp_path)
    other = Train(**SMALL | {"batch_size": 16}, epochs=2)
    with pytest.raises(CheckpointError, match="7 steps an epoch, this training makes 4"):
        fit(network(other), store, other, tmp_path)
    wider = Train(**SMALL | {"width": 8}, epochs=2)
    with pytest.raises(CheckpointError, match=r"does not fit: it holds .*kernel"):
        fit(network(wider), store, wider, tmp_path)


@pytest.mark.slow
def test_a_training_that_died_and_goes_on_in_another_process_ends_with_the_same_weights(tmp_path: Path) -> None:
    write_store(tmp_path / "train.h5")
    died = run_in_a_process("whole, then one that dies", tmp_path)
    assert died.returncode == 9, died.stderr
    assert sorted(path.name for path in (tmp_path / "died").iterdir()) == ["epoch-0001.npz", "epoch-0002.npz"]
    resumed = run_in_a_process("resumed", tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    with (
        np.load(tmp_path / "whole" / "epoch-0004.npz") as whole,
        np.load(tmp_path / "died" / "epoch-0004.npz") as other,
    ):
        assert whole.files == other.files and len(whole.files) > 100
        for name in whole.files:
            if name != "history":
                np.testing.assert_array_equal(whole[name], other[name], err_msg=name)
    assert (tmp_path / "whole.npy").read_bytes() == (tmp_path / "resumed.npy").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")
def test_it_trains_under_jax_without_tensorflow(tmp_path: Path) -> None:
    # 8 rows in every batch: each further size would be compiled once more.
    write_store(tmp_path / "train.h5", rows=40)
    done = run_in_a_process("under jax", tmp_path, KERAS_BACKEND="jax")
    assert done.returncode == 0, done.stderr
    assert "loss fell" in done.stdout


def test_autologging_records_the_epochs_the_batch_size_and_the_rate(
    store: Store, autologged: mlflow.ActiveRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = Train(**SMALL, epochs=2, random_flip=True)
    history = fit(network(params), store, params, tmp_path / "checkpoints").history
    mlflow.flush_async_logging()
    client = mlflow.MlflowClient()
    run = client.get_run(autologged.info.run_id)
    assert run.data.params["batch_size"] == "8" and run.data.params["epochs"] == "2"
    for name in ("loss", "val_accuracy", "images_per_second"):
        logged = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert logged == pytest.approx(dict(enumerate(history[name])))
    assert not [record for record in caplog.records if record.name.startswith("mlflow")]


def test_only_kernels_decay_in_every_network() -> None:
    for params in (Train(**SMALL), Train(backbone="EfficientNetV2B0")):
        spared = {variable.path.rpartition("/")[2] for variable in undecayed(network(params))}
        assert spared == {"gamma", "beta", "bias"}


@pytest.mark.skipif(precision.gpus() > 0, reason="a GPU computes bfloat16 whatever the processor")
@pytest.mark.parametrize(
    ("flags", "words"),
    [("sse avx2 avx512_bf16", "oneDNN automatic mixed precision (avx512_bf16)"), ("sse avx2", "float32 is used")],
)
def test_bfloat16_is_used_where_it_is_fast_and_declined_in_words_elsewhere(
    flags: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert words in precision.apply("bfloat16", tmp_path / "cpuinfo")
    assert keras.config.dtype_policy().name == "float32"
    assert precision.apply("float32") == "float32"


def main(run: str, folder: Path) -> None:
    """One process of a training."""
    if run == "under jax":
        assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
        history = fit(network(EVERYTHING), open_store(folder / "train.h5"), EVERYTHING, folder / "jax").history
        assert history["loss"][-1] < history["loss"][0], history
        print("loss fell")
        return
    store = open_store(folder / "train.h5")
    model = network(EVERYTHING)
    if run == "resumed":
        fit(model, store, EVERYTHING, folder / "died")
        np.save(folder / "resumed.npy", np.concatenate([weight.ravel() for weight in model.get_weights()]))
        return
    fit(model, store, EVERYTHING, folder / "whole")
    np.save(folder / "whole.npy", np.concatenate([weight.ravel() for weight in model.get_weights()]))
    fit(network(EVERYTHING), store, EVERYTHING, folder / "died", callbacks=[DieInEpoch3()])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
