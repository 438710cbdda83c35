"""A copy of the project, and its commands run in it as a user would, in an environment that names a cloud."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

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
}
"""Parameters with which `main` takes seconds."""
CLOUDS = ("MLFLOW_", "AZURE", "DATABRICKS_", "MSI_", "IDENTITY_", "ARM_")
# Retried all the same, but not for minutes.
SHORT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}


class Project:
    """A copy in `folder`, whose commands have their home and temporary folder there too.

    Attributes:
        said: what all commands have printed.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.said = folder, ""
        for name in ("carmodel", "steps", "configs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("MLproject", "conda.yaml", "requirements.lock"):
            shutil.copy(ROOT / name, folder)
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(CLOUDS)}
        own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "TF_CPP_MIN_LOG_LEVEL": "3"}
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = kept | own | SHORT | {"MLFLOW_DISABLE_TELEMETRY": "true"} | environment

    def run(self, *command: str, timeout: float = 600, **environment: str | None) -> CompletedProcess[str]:
        """Run a command in the copy, with more variables, and without those that are None."""
        variables = self.environment | environment
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={name: value for name, value in variables.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        self.said += done.stdout + done.stderr
        return done

    def main(self, experiment: str, **parameters: str) -> CompletedProcess[str]:
        """Run `main` through `mlflow run` with `TINY` and more parameters, ``STEP__NAME``."""
        given = TINY | {name.replace("__", "."): value for name, value in parameters.items()}
        chosen = ",".join(f"{name}={value}" for name, value in given.items())
        return self.run(
            "mlflow", "run", ".", "--env-manager", "local", "--experiment-name", experiment, "-P", f"set={chosen}"
        )


def happened(done: CompletedProcess[str]) -> dict[str, str]:
    """What happened to each step, as the table of `main` says: ran or reused."""
    words = [line.split() for line in done.stdout.splitlines()]
    return {line[0]: line[1] for line in words if line and line[0] in STEPS and line[1] in ("ran", "reused")}
