"""Training end to end on a small store: what it learns, leaves behind and takes up again.

Run as a program (``python test_fit.py RUN FOLDER``) this file is one process of a training, for the tests that need a
process of their own: one that resumes, and one with another backend.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import keras
import mlflow
import numpy as np
import pytest

from carmodel.data.store import Store, open_store
from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training import checkpoint, precision
from carmodel.training import fit as fit_module
from carmodel.training.batches import permutation
from carmodel.training.checkpoint import CheckpointError, path_of
from carmodel.training.features import Features, initialise_head
from carmodel.training.fit import fit
from carmodel.training.optimizer import decays
from carmodel.training.progress import line
from tests.policy import mixed_bfloat16
from tests.stores import store_of
from tests.tracked import tracked_in

CLASSES, SIDE = 6, 32
SMALL = {"depth": 14, "width": 4, "batch_size": 8, "warmup_epochs": 0.5, "weight_decay": 1e-4}
NAMES = [f"car {label}" for label in range(CLASSES)]
AUGMENTED = {
    "random_crop": 0.5,
    "random_flip": True,
    "zoom_out": 0.3,
    "colors": 0.5,
    "erase": 0.2,
    "mixup": 0.2,
    "cutmix": 1,
}
EVERYTHING = Train(
    **SMALL, **AUGMENTED, epochs="24x1,32x2", ema=0.9, dropout=0.1, drop_path=0.1, layer_decay=0.8, label_smoothing=0.1
)


def write_store(path: Path, rows: int = 65, validation: bool = True) -> Store:
    """Noisy images whose brightness tells the class; every fifth row for validation."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, rows)
    images = (rng.integers(0, 60, (rows, SIDE, SIDE, 3)) + 32 * labels[:, None, None, None]).astype(np.uint8)
    return store_of(path, images, labels, NAMES, (np.arange(rows) % 5 == 0) & validation)


def network(params: Train) -> keras.Model:
    keras.utils.set_random_seed(params.seed)
    return build(params, NAMES)


def run_in_a_process(run: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, __file__, run, str(folder)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TF_DETERMINISTIC_OPS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


class CopyInEpoch3(keras.callbacks.Callback):
    """Copies the checkpoints two steps into the third epoch: what a process that dies there leaves."""

    def __init__(self, checkpoints: Path, copy: Path) -> None:
        super().__init__()
        self.checkpoints, self.copy, self.epoch = checkpoints, copy, 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if (self.epoch, batch) == (2, 1):
            shutil.copytree(self.checkpoints, self.copy)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("store") / "train.h5")


class Training(NamedTuple):
    """A trained network, its history, its parameters, and the folder of its checkpoints."""

    network: keras.Model
    history: dict[str, list[float]]
    params: Train
    folder: Path


@pytest.fixture(scope="module")
def trained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Training:
    params = Train(**SMALL, epochs=6, learning_rate=0.02)
    model, folder = network(params), tmp_path_factory.mktemp("trained")
    return Training(model, fit(model, store, params, folder), params, folder)


def test_a_network_learns_and_returns_its_history(trained: Training) -> None:
    history = trained.history
    assert set(history) == {f"{v}{m}" for v in ("", "val_") for m in ("loss", "accuracy", "top5")} | {
        "images_per_second"
    }
    assert {len(values) for values in history.values()} == {6}
    assert history["loss"][-1] < history["loss"][0] and history["accuracy"][-1] > 0.5
    assert all(rate > 0 for rate in history["images_per_second"])
    assert np.all(np.array(history["top5"]) >= history["accuracy"])


def test_validation_weighs_every_row_alike(store: Store, trained: Training) -> None:
    rows = int(store.validation.sum())
    assert rows % trained.params.batch_size, "the last batch is smaller"
    right = np.array(trained.history["val_accuracy"]) * rows
    np.testing.assert_allclose(right, right.round(), atol=1e-4)


def test_statistics_of_normalisation_are_those_of_the_final_weights(store: Store, trained: Training) -> None:
    model, params = trained.network, trained.params
    first = keras.Model(model.input, model.get_layer("stem_conv1").output)
    order = permutation(np.flatnonzero(~store.validation), params.seed, 6)
    rows = order[: len(order) // params.batch_size * params.batch_size]
    mean = first.predict(store.take(rows), verbose=0).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(model.get_layer("stem_bn1").moving_mean, mean, atol=1e-4)


def test_the_last_validation_measures_the_network_that_is_returned(store: Store, trained: Training) -> None:
    rows = np.flatnonzero(store.validation)
    answers = trained.network.predict(store.take(rows), verbose=0)
    loss = -np.log(answers[np.arange(len(rows)), store.labels[rows]]).mean()
    assert trained.history["val_loss"][-1] == pytest.approx(loss, rel=1e-3)


def test_resuming_with_another_batch_size_or_schedule_is_refused(store: Store, trained: Training) -> None:
    for changed, said in (
        ({"batch_size": 16}, "batch_size=8, and this training has batch_size=16"),
        ({"epochs": "7"}, "epochs=6, and this training has epochs=7"),
    ):
        params = trained.params.model_copy(update=changed)
        with pytest.raises(CheckpointError, match=said):
            fit(network(params), store, params, trained.folder)


@pytest.mark.parametrize("changed", [{"init": "other.keras"}, {"head_init": "lda"}, {"weights": "imagenet"}])
def test_resuming_with_another_start_is_refused(changed: dict[str, str], store: Store, trained: Training) -> None:
    (name,) = changed
    with pytest.raises(CheckpointError, match=f"{name}=.*, and this training has {name}={changed[name]}"):
        fit(network(trained.params), store, trained.params.model_copy(update=changed), trained.folder)


def test_resuming_needs_the_same_files_at_any_place(store: Store, trained: Training, tmp_path: Path) -> None:
    def settings(name: str, content: bytes) -> checkpoint.Settings:
        (file := tmp_path / name).write_bytes(content)
        return checkpoint.settings_of(trained.params.model_copy(update={"init": str(file)}), store)

    assert settings("a.keras", b"one") == settings("b.keras", b"one") != settings("b.keras", b"other")


def test_resuming_needs_the_version_that_an_alias_named(store: Store, trained: Training, tmp_path: Path) -> None:
    from steps.train_rank import with_fixed_start  # imports TensorFlow

    def settings(init: str) -> checkpoint.Settings:
        return checkpoint.settings_of(with_fixed_start(trained.params.model_copy(update={"init": init})), store)

    with tracked_in(tmp_path):
        client = mlflow.MlflowClient()
        client.create_registered_model("cars")
        seen = []
        for version in ("1", "2"):
            client.create_model_version("cars", f"{tmp_path}/{version}")
            client.set_registered_model_alias("cars", "champion", version)
            seen.append(settings("models:/cars@champion"))
            assert seen[-1] == settings(f"models:/cars/{version}")
    assert seen[0] != seen[1]
    # The network in pretrained/ may be replaced, too.
    assert settings("pretrained")["init"] != "pretrained"


def test_resuming_with_other_rows_is_refused(trained: Training, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other.h5")
    other.labels[0] = (other.labels[0] + 1) % CLASSES
    with pytest.raises(CheckpointError, match="rows="):
        fit(network(trained.params), other, trained.params, trained.folder)


def test_mlflow_records_each_epoch_of_a_training_through_augmentation(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from steps.train_rank import autologging  # imports TensorFlow

    params = Train(**SMALL, epochs=2, random_flip=True, mixup=0.2)
    model = network(params)
    with tracked_in(tmp_path):
        with mlflow.start_run() as run:
            caplog.clear()  # of a new database's messages
            history = fit(model, store, params, tmp_path / "checkpoints", callbacks=[autologging()])
        mlflow.flush_async_logging()
        client = mlflow.MlflowClient()
        assert client.get_run(run.info.run_id).data.params["optimizer_name"] == "sgd"
        for name in ("loss", "val_accuracy", "images_per_second"):
            logged = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
            assert logged == pytest.approx(dict(enumerate(history[name])))
    assert not [record for record in caplog.records if record.name.startswith("mlflow")]
    check_saved(model, store, tmp_path)


def test_the_line_of_an_epoch_has_at_most_100_columns_on_any_number_of_ranks() -> None:
    logs = {"loss": 10.1234, "accuracy": 0.5, "top5": 0.9, "val_loss": 0.12, "val_accuracy": 0.75, "val_top5": 1.0}
    text = line(600, 600, logs | {"images_per_second": 20000.4, "images_per_second_rank_0": 10000.2}, 987.6)
    assert text == "epoch 600/600: loss 10.12, accuracy 0.500, val_loss 0.12, val_accuracy 0.750, 20000 img/s, 988 s"
    assert len(f"[0] {text}") <= 100


def check_saved(model: keras.Model, store: Store, folder: Path) -> None:
    """The network is saved without its optimizer, and answers alike when it is loaded."""
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    assert getattr(loaded, "optimizer", None) is None
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    images = store.take(np.flatnonzero(store.validation))
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), model.predict(images, verbose=0))


def test_a_frozen_networks_head_is_fitted_on_its_features_within_the_whole_network(
    store: Store, tmp_path: Path
) -> None:
    params = Train(**SMALL, epochs=3, unfreeze="head", head_init="lda")
    model = network(params)
    before = {variable.path: variable.numpy() for variable in model.variables}
    history = fit(model, store, params, tmp_path / "checkpoints")
    changed = {variable.path for variable in model.variables if not np.array_equal(variable, before[variable.path])}
    assert changed == {"logits/kernel", "logits/bias"}
    rows = np.flatnonzero(store.validation)
    probabilities = model.predict(store.take(rows), verbose=0)
    assert history["val_accuracy"][-1] == pytest.approx((probabilities.argmax(1) == store.labels[rows]).mean())
    check_saved(model, store, tmp_path)


def test_features_are_float32_under_mixed_precision(store: Store) -> None:
    with mixed_bfloat16():
        features = Features(network(Train(**SMALL)), store, 8, SIDE, verbose=0)
    assert features.values.dtype == np.float32


def test_a_resumed_training_of_the_head_drops_the_same_features(store: Store, tmp_path: Path) -> None:
    params = Train(**SMALL, epochs=4, unfreeze="head", dropout=0.5)
    whole, died = network(params), tmp_path / "died"
    fit(whole, store, params, tmp_path / "whole", callbacks=[CopyInEpoch3(tmp_path / "whole", died)])
    resumed = network(params)
    fit(resumed, store, params, died)
    np.testing.assert_allclose(resumed.get_layer("logits").kernel, whole.get_layer("logits").kernel, rtol=1e-5)


def test_features_are_computed_once_for_each_size_of_the_images(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []

    class Counted(Features):
        def __init__(self, model: keras.Model, data: Store, batch_size: int, size: int, **more: object) -> None:
            sizes.append(size)
            super().__init__(model, data, batch_size, size, **more)

    monkeypatch.setattr(fit_module, "Features", Counted)
    params = Train(**SMALL, epochs="24x1,32x1,24x1", unfreeze="head", head_init="lda")
    fit(network(params), store, params, tmp_path)
    assert sizes == [24, SIDE]
    assert "in every step" not in capsys.readouterr().out


def test_the_weights_end_as_their_moving_average(store: Store, tmp_path: Path) -> None:
    params = Train(**SMALL, epochs=2, ema=0.9, batch_norm="inference")
    model = network(params)
    fit(model, store, params, tmp_path / "checkpoints")
    with np.load(path_of(tmp_path / "checkpoints", 2)) as saved:
        average = next(
            saved[name] for name in saved.files if "average" in name and name.endswith("logits_kernel_average")
        )
        trained = next(
            saved[name] for name in saved.files if name.startswith("model") and name.endswith("logits/kernel")
        )
    kernel = model.get_layer("logits").kernel.numpy()
    np.testing.assert_array_equal(kernel, average)
    assert np.abs(kernel - trained).max() > 0
    again = network(params)
    fit(again, store, params, tmp_path / "checkpoints")
    np.testing.assert_array_equal(again.get_layer("logits").kernel, kernel)


def test_linear_discriminant_analysis_is_a_better_start_than_chance(store: Store, tmp_path: Path) -> None:
    model = network(Train(**SMALL))
    features = Features(model, store, 8, SIDE, verbose=0)
    accuracy = initialise_head(model, features)
    rows = np.flatnonzero(store.validation)
    answers = model.predict(store.take(rows), verbose=0).argmax(axis=1)
    assert accuracy == pytest.approx(np.mean(answers == store.labels[rows])) and accuracy > 0.6


def test_a_very_wrong_class_gets_a_gradient(store: Store, tmp_path: Path) -> None:
    """Training is on logits: a softmax that has rounded to 0 would give none."""
    params = Train(**SMALL | {"weight_decay": 0}, epochs=1, learning_rate=1e-4, unfreeze="head")
    model = network(params)
    kernel = model.get_layer("logits").kernel.numpy()
    model.get_layer("logits").set_weights([kernel * 0, np.linspace(0, 500, CLASSES).astype("float32")])
    fit(model, store, params, tmp_path)
    assert model.get_layer("logits").bias.numpy()[0] > 0


def test_a_store_without_validation_rows_trains(tmp_path: Path) -> None:
    store = write_store(tmp_path / "train.h5", rows=20, validation=False)
    params = Train(**SMALL, epochs=1)
    assert set(fit(network(params), store, params, tmp_path)) == {"loss", "accuracy", "top5", "images_per_second"}


def test_a_head_trained_under_augmentation_says_that_features_are_not_kept(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = Train(**SMALL, epochs=1, unfreeze="head", random_flip=True)
    fit(network(params), store, params, tmp_path)
    assert "the features of each photo are computed once" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_resumed_in_another_process_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Through a change of the image size. `test_distributed_training` kills a process."""
    write_store(tmp_path / "train.h5")
    done = run_in_a_process("whole", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "died").iterdir()) == ["epoch-0001.npz", "epoch-0002.npz"]
    resumed = run_in_a_process("resumed", tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    with (
        np.load(tmp_path / "whole" / "epoch-0003.npz") as whole,
        np.load(tmp_path / "died" / "epoch-0003.npz") as other,
    ):
        assert whole.files == other.files and len(whole.files) > 100
        for name in whole.files:
            if name != "history":
                np.testing.assert_array_equal(whole[name], other[name], err_msg=name)
    assert (tmp_path / "whole.npy").read_bytes() == (tmp_path / "resumed.npy").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")
def test_it_trains_under_jax_without_tensorflow(tmp_path: Path) -> None:
    write_store(tmp_path / "train.h5", rows=40)
    done = run_in_a_process("under jax", tmp_path, KERAS_BACKEND="jax")
    assert done.returncode == 0, done.stderr
    assert "loss fell" in done.stdout


@pytest.mark.parametrize("batch_norm", ["train", "inference"])
def test_xla_can_compile_a_training_as_keras_does_on_gpus(
    batch_norm: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras.Model, "jit_compile", property(lambda model: True, lambda model, value: None))
    params = Train(**EVERYTHING.model_dump() | {"head_init": "lda", "batch_norm": batch_norm, "epochs": "24x1"})
    assert np.isfinite(fit(network(params), store, params, tmp_path)["val_loss"]).all()


def test_only_kernels_decay_in_every_network() -> None:
    for params in (Train(**SMALL), Train(backbone="MobileNetV2")):
        spared = {v.path.rpartition("/")[2] for v in network(params).trainable_variables if not decays(v)}
        assert spared == {"gamma", "beta", "bias"}


@pytest.mark.skipif(precision.gpus() > 0, reason="a GPU computes bfloat16 whatever the processor")
@pytest.mark.parametrize(
    ("vendor", "flags", "words"),
    [
        ("AuthenticAMD", "sse avx2 avx512_bf16", "oneDNN automatic mixed precision (avx512_bf16)"),
        ("AuthenticAMD", "sse avx2", "float32, because"),
        ("GenuineIntel", "sse avx512_bf16 amx_bf16", "oneDNN automatic mixed precision (amx_bf16)"),
        ("GenuineIntel", "sse avx2 avx512_bf16", "float32, because"),
    ],
)
def test_bfloat16_is_used_where_it_is_fast_and_declined_in_words_elsewhere(
    vendor: str, flags: str, words: str, tmp_path: Path
) -> None:
    core = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: some: name\npower management:\nflags\t\t: {flags}\n\n"
    (tmp_path / "cpuinfo").write_text(core * 2)
    assert words in precision.apply("bfloat16", tmp_path / "cpuinfo")
    assert keras.config.dtype_policy().name == "float32"
    assert precision.apply("float32") == "float32"


def main(run: str, folder: Path) -> None:
    """One process of a training."""
    checkpoint.SECONDS = 0.0  # every epoch is saved
    if run == "under jax":
        assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
        params = EVERYTHING.model_copy(update={"ema": 0.0, "epochs": "24x2,32x2"})
        history = fit(network(params), open_store(folder / "train.h5"), params, folder / "jax")
        assert history["loss"][-1] < history["loss"][0], history
        print("loss fell")
        return
    store = open_store(folder / "train.h5")
    model = network(EVERYTHING)
    if run == "whole":
        fit(model, store, EVERYTHING, folder / run, callbacks=[CopyInEpoch3(folder / run, folder / "died")])
    else:
        fit(model, store, EVERYTHING, folder / "died")
    np.save(folder / f"{run}.npy", np.concatenate([weight.ravel() for weight in model.get_weights()]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
