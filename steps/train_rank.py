"""Train in one process: load the stores and fit. Rank 0 also logs the model, the curves and the checkpoints to MLflow."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import steps.quiet_tensorflow  # noqa: F401

# isort: split
import keras
import mlflow
import numpy as np
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from carmodel.data.augmentation import check_augmented
from carmodel.data.store import open_store
from carmodel.errors import InputError
from carmodel.evaluation.figures import training_curves
from carmodel.mlflow_model import load_initial, log_network
from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.service_errors import without_secrets
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.cache import versioned
from carmodel.tracking.paths import initial_file
from carmodel.tracking.runs import StepRun
from carmodel.tracking.unfinished import CHECKPOINTS
from carmodel.training import precision
from carmodel.training.fit import fit
from carmodel.training.ranks import ALONE, Ranks


def train_rank(settings: str, run_id: str) -> None:
    """Train as one of several ranks. Only rank 0 logs to the run of the step.

    Args:
        settings: parameters of the step, as JSON.
        run_id: run of the step.
    """
    from carmodel.training.distributed import Horovod

    ranks = Horovod()
    with ExitStack() as stack:
        if ranks.rank == 0:
            stack.enter_context(mlflow.start_run(run_id=run_id))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="carmodel-train-")))
        train(Train.model_validate_json(settings), StepRun("train", run_id, folder), ranks)


def train(settings: Train, step: StepRun, ranks: Ranks = ALONE) -> None:
    """Train. Rank 0 logs the output `model`, the training curves and checkpoints."""
    store = open_store(*fetch_stores(settings, ranks))
    used = precision.apply(settings.precision)
    keras.utils.set_random_seed(settings.seed)
    network = build(settings, store.class_names, load_initial(settings.init) if settings.init else None)
    checkpoints = step.folder / CHECKPOINTS
    if ranks.rank != 0:
        fit(network, store, settings, checkpoints, ranks=ranks)
        return

    print(f"train: {len(store)} rows, {len(store.class_names)} classes, {store.image_size} px; precision: {used}")
    if settings.resume:
        # Copied, because this training deletes old checkpoints and the other run must keep its own.
        shutil.copytree(fetch_checkpoints(settings.resume), checkpoints)
        mlflow.log_artifacts(str(checkpoints), CHECKPOINTS)
    history = fit(
        network,
        store,
        with_fixed_start(settings),
        checkpoints,
        ranks=ranks,
        callbacks=[autologging()],
        on_saved=keep_checkpoint,
    )

    if accuracies := history.get("val_accuracy"):
        # The callback logs nothing if a training resumes after its last epoch.
        mlflow.log_metric("val_accuracy", accuracies[-1], step=len(accuracies) - 1)
    mlflow.log_figure(training_curves(history, str(store.attrs["note"])), "training_curves.png")
    metadata = {key: store.attrs[key] for key in ("image_size", "crop", "margin")} | {"class_names": store.class_names}
    # MLflow calls the network on the example, for which Keras would print a progress bar.
    keras.config.disable_interactive_logging()
    model = log_network(network, store.take(np.array([0])), metadata, settings.model_dump())
    keras.config.enable_interactive_logging()
    step.add_output("model", model.model_uri)
    epochs = len(history["loss"])
    step.summarise(
        f"{network.count_params():,} weights, {epochs} epoch{'s' * (epochs > 1)}, loss {history['loss'][-1]:.3f}, "
        f"{history['images_per_second'][-1]:.0f} images/s"
    )


def with_fixed_start(settings: Train) -> Train:
    """Return the settings with `init` as the path of a file, or with its version.

    An alias may name another version when the training is resumed, and pretrained may be another network.
    """
    init = settings.init
    if file := initial_file(init):
        return settings.model_copy(update={"init": str(file)})
    return settings.model_copy(update={"init": versioned(init)}) if init.startswith("models:/") else settings


def autologging() -> keras.callbacks.Callback:
    """Return the callback of `mlflow.keras.autolog`, which logs the metrics of each epoch, the optimizer and a summary.

    `autolog` itself also logs the arguments of `fit`. MLflow refuses a second value for a parameter, and a training with
    several image sizes calls `fit` several times with different arguments.
    """
    callback = mlflow.keras.MlflowCallback()
    # By default, the callback logs once per epoch and does not read the loss of each step, so Keras need not wait for it.
    callback.async_safe = True
    return callback


def fetch_checkpoints(run_id: str) -> Path:
    """Download the checkpoints of a run to resume, and return their directory.

    Raises:
        InputError: the run has none.
    """
    try:
        return fetch(f"runs:/{run_id}/{CHECKPOINTS}")
    except InputError as error:
        raise InputError(
            f"resume={run_id}: no checkpoint can be read, perhaps because this run finished no epoch; train without "
            f"resume ({error})"
        ) from None


def keep_checkpoint(path: Path) -> None:
    """Log a new checkpoint, and delete from the run the checkpoints that no longer exist locally."""
    mlflow.log_artifact(str(path), CHECKPOINTS)
    repository = get_artifact_repository(mlflow.get_artifact_uri())
    for file in repository.list_artifacts(CHECKPOINTS):
        if not (path.parent / Path(file.path).name).exists():
            try:
                repository.delete_artifacts(file.path)
            except Exception as error:  # some artifact stores cannot delete, or do not allow it; the training goes on
                reason = without_secrets(error) or type(error).__name__
                print(f"train: {file.path} is no longer needed, but cannot be deleted: {reason}", flush=True)
                return


def fetch_stores(settings: Train, ranks: Ranks) -> list[Path]:
    """Return the files of the stores. One rank of each machine downloads them for all."""

    def fetch_here() -> list[Path]:
        paths = [fetch(settings.store_uri) / "train.h5"]
        if settings.augmented_uri:
            paths.append(fetch(settings.augmented_uri) / "augmented.h5")
            check_augmented(open_store(paths[0]), open_store(paths[1]))
        return paths

    return ranks.once_per_machine(fetch_here)
