"""A copy of the project, and its commands run in it as a user runs them, without those variables that name a cloud."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from carmodel.parameters import STEPS
from carmodel.tracking.digests import ROOT

TINY = {
    "preprocess.sample_classes": "3",
    "preprocess.sample_photos": "10",
    "preprocess.image_size": "32",
    "preprocess.crop": "box",
    "train.backbone": "resnet",
    "train.depth": "14",
    "train.batch_norm": "train",
    "train.head_init": "random",
    "train.layer_decay": "1",
    "train.width": "4",
    "train.epochs": "1",
    "package_pyfunc.min_accuracy": "0",
    "package_pyfunc.example_pictures": "1",
}
"""Parameters with which `main` takes seconds."""
TINY_PREPROCESS = {"sample_classes": "2", "sample_photos": "5", "image_size": "16"}
"""Parameters with which `preprocess` takes a second."""
CLOUDS = ("MLFLOW_", "AZURE", "DATABRICKS_", "MSI_", "IDENTITY_", "ARM_")
# Clients retry as always, without long waits.
SHORT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "3",
}


def environment(commands: str, **variables: str) -> dict[str, str]:
    """Return this process's variables, without those of a cloud or of MLflow, and with more.

    Args:
        commands: folder with `python` and `mlflow`, which comes first in PATH.
        variables: the others.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(CLOUDS)}
    own = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return kept | own | SHORT | {"MLFLOW_DISABLE_TELEMETRY": "true"} | variables


@contextmanager
def client_here(variables: dict[str, str]) -> Iterator[None]:
    """Give this process these variables alone, and the tracking URI among them, until the context ends."""
    before, uri = dict(os.environ), mlflow.get_tracking_uri()
    os.environ.clear()
    os.environ.update(variables)
    mlflow.set_tracking_uri(variables["MLFLOW_TRACKING_URI"])
    try:
        yield
    finally:
        mlflow.set_tracking_uri(uri)
        os.environ.clear()
        os.environ.update(before)


def copy_project(folder: Path) -> Path:
    """Copy what a job needs of the project into a new folder: a tenth of the files of a clone. Return the folder."""
    for name in ("carmodel", "steps", "configs", "backends"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("MLproject", "conda.yaml", "requirements.lock", ".amlignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    return folder


class Project:
    """A copy in `folder`, whose commands have their home and temporary folder there too.

    Attributes:
        said: the output of all commands.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.said = copy_project(folder), ""
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        self.environment = environment | {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}

    def run(self, *command: str, **environment: str | None) -> CompletedProcess[str]:
        """Run a command in the copy, with more variables, and without those that are None."""
        variables = {name: value for name, value in (self.environment | environment).items() if value is not None}
        where = {"cwd": self.folder, "env": variables}
        done = subprocess.run(command, capture_output=True, text=True, check=False, **where)
        self.said += done.stdout + done.stderr
        return done

    def main(self, experiment: str, *shared: str, **parameters: str) -> CompletedProcess[str]:
        """Run `main` through `mlflow run`.

        Args:
            experiment: of the runs.
            shared: parameters of `main`, ``NAME=VALUE``.
            parameters: those of one step, ``STEP__NAME``, which replace those of `TINY`.
        """
        given = TINY | {name.replace("__", "."): value for name, value in parameters.items()}
        chosen = ",".join(f"{name}={value}" for name, value in given.items())
        own = ("--env-manager", "local", "--experiment-name", experiment)
        return self.run("mlflow", "run", ".", *own, *(f"-P{value}" for value in (f"set={chosen}", *shared)))

    def preprocess(self, **environment: str | None) -> CompletedProcess[str]:
        """Run the first step with few and small pictures."""
        given = [f"--{name}={value}" for name, value in TINY_PREPROCESS.items()]
        return self.run("python", "-m", "steps.preprocess", *given, **environment)


def happened(printed: str) -> dict[str, str]:
    """Return what the table that `main` printed says of each step: ran or reused."""
    words = [line.split() for line in printed.splitlines()]
    return {line[0]: line[1] for line in words if line and line[0] in STEPS and line[1] in ("ran", "reused")}


def finished_runs(client: MlflowClient, experiment: str) -> dict[str, Run]:
    """Return the oldest FINISHED run of each name in an experiment."""
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], "attributes.status = 'FINISHED'")
    return {run.info.run_name or "": run for run in runs}


def check_runs(runs: dict[str, Run]) -> None:
    """Check that `main` and each step has a run with parameters, metrics and lineage."""
    assert runs.keys() >= {"main", *STEPS}
    for name, settings in STEPS.items():
        assert set(settings.model_fields) <= set(runs[name].data.params), name
        assert runs[name].data.metrics["seconds"] > 0, name
        assert runs[name].data.tags["mlflow.parentRunId"], name
    assert {"loss", "accuracy", "val_loss", "images_per_second"} <= set(runs["train"].data.metrics)
    assert {"test_top1", "test_top5"} <= set(runs["evaluate"].data.metrics)
