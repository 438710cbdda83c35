"""Fit the network on the stores, on one process or many, and log it with its custom objects."""

import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

# TensorFlow uses oneDNN by itself only where the CPU has instructions for neural networks. With AVX2 alone it is faster, too:
# training takes 0.7 of the time on two cores of an AMD EPYC. The variable is read when TensorFlow is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

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
from carmodel.recipe import require
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.lineage import outputs_of
from carmodel.tracking.runs import StepRun
from carmodel.training import launch, precision, spark
from carmodel.training.fit import fit
from carmodel.training.ranks import Ranks, Single
from steps.command import run_step

CHECKPOINTS = "checkpoints"


def work(settings: Train, step: StepRun) -> None:
    """Train in this process, or start the ranks that do and keep what they print; `train` says what is left."""
    if settings.processes <= 1 and not settings.hosts and settings.launcher != "spark":
        train(settings, step)
        return
    logs = step.folder / "ranks"
    arguments = (settings.model_dump_json(), step.run_id)
    environment = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    try:
        if settings.launcher == "spark":
            spark.run(
                "steps.train:train_rank", arguments, settings.processes, logs, environment, master=settings.spark_master
            )
        else:
            hosts = launch.check(settings.processes, settings.hosts)
            launch.run("steps.train:train_rank", arguments, hosts, logs, environment)
    finally:
        if logs.exists():
            mlflow.log_artifacts(str(logs), logs.name)
    step.outputs.update(outputs_of(mlflow.get_run(step.run_id)))


def train_rank(settings: str, run_id: str) -> None:
    """One rank's part of `train`: rank 0 goes on with the step's run, the others log nothing.

    Args:
        settings: those of the step, as JSON.
        run_id: the step's run.
    """
    from carmodel.training.distributed import Horovod

    ranks = Horovod()
    with ExitStack() as stack:
        if ranks.rank == 0:
            stack.enter_context(mlflow.start_run(run_id=run_id))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="carmodel-train-")))
        train(Train.model_validate_json(settings), StepRun("train", run_id, folder), ranks)


def train(settings: Train, step: StepRun, ranks: Ranks | None = None) -> None:
    """Train; rank 0 leaves the model, the training curves and checkpoints."""
    ranks = ranks or Single()
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
        # A copy: the other run keeps its own.
        shutil.copytree(fetch_checkpoints(settings.resume), checkpoints)
        mlflow.log_artifacts(str(checkpoints), CHECKPOINTS)
    history = fit(
        network, store, settings, checkpoints, ranks=ranks, callbacks=[autologging()], on_saved=keep_checkpoint
    )

    mlflow.log_figure(training_curves(history, str(store.attrs["note"])), "training_curves.png")
    metadata = {key: store.attrs[key] for key in ("image_size", "crop", "margin")} | {"class_names": store.class_names}
    model = log_network(network, store.take(np.array([0])), metadata, settings.model_dump())
    step.add_output("model", model.model_uri)
    step.summarise(
        f"{network.count_params():,} weights, {len(history['loss'])} epochs, loss {history['loss'][-1]:.3f}, "
        f"{history['images_per_second'][-1]:.0f} images/s"
    )


def autologging() -> keras.callbacks.Callback:
    """Return the callback of `mlflow.keras.autolog`: it logs the metrics of each epoch, the optimizer and a summary.

    It is given by hand because `autolog` logs the arguments of `fit`, which may not change within a run, and a training
    with several image sizes calls `fit` for each.
    """
    callback = mlflow.keras.MlflowCallback()
    # It reads the logs of steps only where it is asked to, so Keras need not wait for each step's loss.
    callback.async_safe = True
    return callback


def fetch_checkpoints(run_id: str) -> Path:
    """The checkpoints of the run to resume.

    Raises:
        InputError: there are none.
    """
    try:
        return fetch(f"runs:/{run_id}/{CHECKPOINTS}")
    except InputError:
        raise InputError(
            f"run {run_id} has no checkpoint (its first epoch did not end): train without resume"
        ) from None


def keep_checkpoint(path: Path) -> None:
    """Log a new checkpoint, and drop those of the run that were no longer kept here when it was written."""
    mlflow.log_artifact(str(path), CHECKPOINTS)
    repository = get_artifact_repository(mlflow.get_artifact_uri())
    for file in repository.list_artifacts(CHECKPOINTS):
        if not (path.parent / Path(file.path).name).exists():
            with suppress(NotImplementedError):  # some artifact stores keep everything
                repository.delete_artifacts(file.path)


def fetch_stores(settings: Train, ranks: Ranks) -> list[Path]:
    """Return the store files; one rank of each machine downloads them for all."""

    def fetch_here() -> list[Path]:
        paths = [fetch(require("train", "store_uri", settings.store_uri, "preprocess")) / "train.h5"]
        if settings.augmented_uri:
            paths.append(fetch(settings.augmented_uri) / "augmented.h5")
            check_augmented(open_store(paths[0]), open_store(paths[1]))
        return paths

    if ranks.count == 1:
        return fetch_here()
    from carmodel.training.distributed import once_a_machine

    return once_a_machine(fetch_here)


if __name__ == "__main__":
    run_step("train", work)
