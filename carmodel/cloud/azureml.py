"""MLflow's command line, on which `run -b azureml` works: `python -m carmodel.cloud.azureml run . -b azureml …`.

azureml-mlflow's project backend asks a project for `conda_env_path`, which MLflow calls `env_config_path` by now, so with
`mlflow run` itself it ends in an AttributeError; and it knows no images. It also needs azureml-core, SDK v1 of Azure ML, out of
support since 2026-06-30 (https://learn.microsoft.com/en-us/azure/machine-learning/v1/introduction); the way that lasts is a
command job, `carmodel.cloud.command_job`.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.cli import cli
from mlflow.projects.backend.loader import MLFLOW_BACKENDS

from carmodel.cloud.waiting import Remote, State
from carmodel.errors import InputError
from carmodel.tracking.digests import ROOT

if TYPE_CHECKING:
    from azureml.core import Environment
    from mlflow.projects._project_spec import Project

ENDED = ("Completed", "Failed", "Canceled", "NotResponding")
IMAGE = "IMAGE"
"""Key of the backend's file, beside its own COMPUTE and STREAM_OUTPUT: the image of backends/environment/Dockerfile."""
CREDENTIALS = {
    "AZURE_TENANT_ID": "AZUREML_SERVICE_PRINCIPAL_TENANT_ID",
    "AZURE_CLIENT_ID": "AZUREML_SERVICE_PRINCIPAL_ID",
    "AZURE_CLIENT_SECRET": "AZUREML_SERVICE_PRINCIPAL_PASSWORD",
}
"""SDK v1 has names of its own for what all other clients read."""


def environment_of(project: "Project", image: str) -> "Environment":
    """What a job runs in: an image with all packages and Horovod; without one, packages that Azure ML installs, without it."""
    from azureml.core import Environment

    if not image:
        return Environment.from_conda_specification("carmodel", project.env_config_path)
    environment = Environment("carmodel")
    environment.environment_variables = {}  # azureml-core puts an example there
    environment.docker.base_image = image
    environment.python.user_managed_dependencies = True
    return environment


def register() -> None:
    """Have MLflow take azureml-mlflow's backend with our environment, and SDK v1 the service principal of `CREDENTIALS`.

    Raises:
        InputError: azureml-core is not installed.
    """
    try:
        from azureml.mlflow._internal import projects
    except Exception:  # as azureml-mlflow raises it
        raise InputError("backend azureml needs azureml-core: make azure") from None

    for ours, theirs in CREDENTIALS.items():
        if value := os.environ.get(ours):
            os.environ.setdefault(theirs, value)

    class Backend(projects.AzureMLProjectBackend):
        def run(self, *arguments: Any) -> Any:
            _uri, _entry_point, _parameters, _version, config, *_ = arguments
            projects._load_remote_environment = lambda project: environment_of(project, config.get(IMAGE, ""))
            return super().run(*arguments)

    MLFLOW_BACKENDS["azureml"] = Backend


def submit(step: str, parameters: dict[str, str], config: Path, experiment_id: str) -> Remote:
    """Start a step as a job of Azure ML through MLflow's backend, in a run that becomes a child of the active one.

    Raises:
        InputError: SDK v1 refuses, such as a cluster that is not there; with its message.
    """
    register()
    from azureml.exceptions import AzureMLException

    try:
        submitted = mlflow.projects.run(
            str(ROOT),
            step,
            parameters=parameters,
            experiment_id=experiment_id,
            run_name=step,
            backend="azureml",
            backend_config=str(config),
            synchronous=False,
        )
    except AzureMLException as error:
        # Only the message: the text of the whole can't be made where it holds another exception.
        raise InputError(f"{config}: {error.message}") from None
    if (active := mlflow.active_run()) is not None:
        mlflow.MlflowClient().set_tag(submitted.run_id, "mlflow.parentRunId", active.info.run_id)
    run = submitted._run

    def state() -> State:
        details = run.get_details()
        word = details["status"]
        return State(word, word in ENDED, word == "Completed", json.dumps(details.get("error") or ""))

    return Remote(submitted.run_id, f"Azure ML run {run.id}", run.get_portal_url(), state, run.cancel)


if __name__ == "__main__":
    try:
        register()
    except InputError as error:
        sys.exit(f"error: {error}")
    cli()
