"""An Azure ML workspace: its URI, its client, and steps as jobs in it.

A step runs as a command job of SDK v2, or through MLflow's project backend `azureml` on SDK v1. SDK v1 is out of support since
2026-06-30 (https://learn.microsoft.com/azure/machine-learning/v1/introduction), so prefer the command job.

azureml-mlflow 1.62 has a backend `azureml` of its own. It reads `conda_env_path` of a project, which MLflow now calls
`env_config_path`, so ``mlflow run -b azureml`` raises an AttributeError. It also cannot use an image. This module provides
the same command with a backend that works::

    python -m carmodel.cloud.azure run . -b azureml --backend-config backends/azureml.json
"""

import json
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import SubmittedRun
from mlflow.projects.utils import load_project

from carmodel.cloud.snapshot import copy_project
from carmodel.cloud.waiting import JobState, RemoteStep
from carmodel.errors import InputError
from carmodel.service_errors import without_secrets
from carmodel.tracking.digests import ROOT

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azureml.core import Environment, Run

INSTALL = "make azure"
IMAGE = "IMAGE"
"""Key of the image in the backend's file. azureml-mlflow defines the other keys, COMPUTE and STREAM_OUTPUT."""
_WORKSPACE = re.compile(r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/.*/workspaces/([^/?]+)", re.IGNORECASE)
_ENDED = ("Completed", "Failed", "Canceled", "NotResponding")


class Workspace(NamedTuple):
    """The names of an Azure ML workspace."""

    subscription: str
    resource_group: str
    name: str


def parse_workspace(tracking_uri: str) -> Workspace:
    """Return the workspace that an MLflow tracking URI names.

    Raises:
        InputError: it names none.
    """
    found = _WORKSPACE.search(tracking_uri)
    if not tracking_uri.startswith("azureml:") or found is None:
        raise InputError(
            f"MLFLOW_TRACKING_URI={without_secrets(tracking_uri)} is not the URI of an Azure ML workspace (azureml://…); to "
            "get it: az ml workspace show --name WORKSPACE --resource-group GROUP --query mlflow_tracking_uri -o tsv"
        )
    return Workspace(*found.groups())


def workspace_client() -> "MLClient":
    """Return the client of SDK v2 for the workspace of the tracking URI, with the identity of the environment.

    Raises:
        InputError: the tracking URI names no workspace, or the SDK is not installed.
    """
    workspace = parse_workspace(mlflow.get_tracking_uri())
    try:
        from azure.ai.ml import MLClient
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise InputError(f"this needs azure-ai-ml: {INSTALL}") from None
    return MLClient(DefaultAzureCredential(), *workspace, enable_telemetry=False, show_progress=False)


def submit_command_job(step: str, parameters: dict[str, str], config: Path, experiment_id: str) -> RemoteStep:
    """Start a step as a command job (SDK v2), whose run becomes a child of the active run.

    Args:
        step: entry point. Its command replaces the command and the inputs of the job's file.
        parameters: parameters of the step.
        config: the job's YAML file, with environment, compute, resources and identity
            (https://learn.microsoft.com/azure/machine-learning/reference-yaml-job-command).
        experiment_id: experiment of the active run.

    Raises:
        InputError: azure-ai-ml refuses the YAML file or is not installed, or the tracking URI names no workspace.
    """
    client = workspace_client()
    from azure.ai.ml import load_job
    from azure.ai.ml.entities import Command
    from azure.ai.ml.exceptions import ValidationException
    from marshmallow import ValidationError

    try:
        job = load_job(config)
    except (ValidationException, ValidationError) as error:
        raise InputError(f"{config}: {' '.join(str(error).split())}") from None
    if not isinstance(job, Command):
        raise InputError(f"{config}: its type is not command")
    active = mlflow.active_run()
    job.command = load_project(str(ROOT)).get_entry_point(step).compute_command(parameters, None)
    job.inputs.clear()
    job.display_name = step
    job.experiment_name = mlflow.get_experiment(experiment_id).name
    job.tags = (job.tags or {}) | ({"mlflow.parentRunId": active.info.run_id} if active else {})
    with TemporaryDirectory() as folder:
        job.code = str(copy_project(Path(folder) / "carmodel", step, parameters))
        submitted = client.jobs.create_or_update(job)

    def state() -> JobState:
        status = client.jobs.get(submitted.name).status
        name = str(getattr(status, "value", status))  # an enumeration for the names that the SDK knows, else text
        if name != "Failed":
            return JobState(name, name in _ENDED, name == "Completed")
        try:
            client.jobs.stream(submitted.name)  # raises the reason, which `get` does not return
        except Exception as error:
            return JobState(name, ended=True, message=str(error))
        return JobState(name, ended=True)

    def cancel() -> None:
        client.jobs.begin_cancel(submitted.name).wait()

    return RemoteStep(submitted.name, f"Azure ML job {submitted.name}", submitted.studio_url, state, cancel)


def submit_project_run(step: str, parameters: dict[str, str], config: Path, experiment_id: str) -> RemoteStep:
    """Start a step through SDK v1, in a run that becomes a child of the active run.

    Args:
        step: entry point.
        parameters: parameters of the step.
        config: the backend's JSON file.
        experiment_id: experiment of the active run.

    Raises:
        InputError: SDK v1 refuses, for example because there is no such cluster, or azureml-core is not installed.
    """
    run = _submit(step, parameters, json.loads(config.read_text()), experiment_id)
    client = mlflow.MlflowClient()
    try:
        client.set_tag(run.id, "mlflow.runName", step)
        if (active := mlflow.active_run()) is not None:
            client.set_tag(run.id, "mlflow.parentRunId", active.info.run_id)
    except BaseException:
        run.cancel()
        raise

    def state() -> JobState:
        details = run.get_details()
        name = details["status"]
        return JobState(name, name in _ENDED, name == "Completed", json.dumps(details.get("error") or ""))

    return RemoteStep(run.id, f"Azure ML run {run.id}", run.get_portal_url(), state, run.cancel)


class ProjectBackend(AbstractBackend):
    """MLflow's project backend `azureml`: submits the project to a cluster of the workspace."""

    def run(  # noqa: PLR0917 (MLflow's signature)
        self,
        project_uri: str,
        entry_point: str,
        params: dict[str, str],
        version: str | None,
        backend_config: dict[str, Any],
        tracking_uri: str,
        experiment_id: str,
    ) -> SubmittedRun:
        """Submit an entry point of the project in this folder and return its run."""
        if Path(project_uri).resolve() != ROOT:
            raise InputError(f"{project_uri}: only the project {ROOT} can be submitted")
        return _ProjectRun(
            _submit(entry_point, params, backend_config, experiment_id), backend_config.get("STREAM_OUTPUT", True)
        )


class _ProjectRun(SubmittedRun):
    """A run of SDK v1 as MLflow's command line waits for it."""

    def __init__(self, run: "Run", stream_output: bool) -> None:
        super().__init__()
        self.run, self.stream_output = run, stream_output

    @property
    def run_id(self) -> str:
        return str(self.run.id)

    def wait(self) -> bool:
        from azureml.exceptions import ActivityFailedException, ExperimentExecutionException

        try:
            self.run.wait_for_completion(show_output=self.stream_output, wait_post_processing=True)
        except (ActivityFailedException, ExperimentExecutionException) as error:
            print(error, file=sys.stderr)
        return bool(self.get_status() == "Completed")

    def get_status(self) -> str:
        return str(self.run.get_status())

    def cancel(self) -> None:
        self.run.cancel()


def _submit(entry_point: str, parameters: dict[str, str], config: dict[str, Any], experiment_id: str) -> "Run":
    """Submit an entry point to a cluster through SDK v1.

    Raises:
        InputError: SDK v1 refuses, or azureml-core is not installed.
    """
    names = parse_workspace(mlflow.get_tracking_uri())
    try:
        from azureml.core import ComputeTarget, Experiment, ScriptRunConfig
        from azureml.core import Workspace as WorkspaceV1
        from azureml.core.authentication import ServicePrincipalAuthentication
        from azureml.core.compute_target import ComputeTargetException
        from azureml.exceptions import AzureMLException
    except ImportError:
        raise InputError(f"backend azureml needs azureml-core: {INSTALL}") from None
    if "COMPUTE" not in config:
        raise InputError(
            "the backend's file has no COMPUTE, the name of the cluster; backends/azureml.json is an example"
        )
    variables = [os.environ.get(f"AZURE_{name}", "") for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET")]
    # Without a service principal SDK v1 signs in by itself.
    auth = ServicePrincipalAuthentication(*variables) if all(variables) else None
    project = load_project(str(ROOT))
    try:
        workspace = WorkspaceV1(names.subscription, names.resource_group, names.name, auth=auth)
        command = project.get_entry_point(entry_point).compute_command(parameters, None)
        environment = environment_of(project.env_config_path, config.get(IMAGE, "")).register(workspace=workspace)
        target = ComputeTarget(workspace=workspace, name=config["COMPUTE"]).name
        experiment = Experiment(workspace, mlflow.get_experiment(experiment_id).name)
        with TemporaryDirectory() as folder:
            source = copy_project(Path(folder) / "carmodel", entry_point, parameters)
            job = ScriptRunConfig(source_directory=str(source), command=[command])
            job.run_config.environment, job.run_config.target = environment, target
            return experiment.submit(job)
    # Only the messages: converting a whole error to text fails if it holds another exception.
    except ComputeTargetException as error:
        raise InputError(f"COMPUTE={config['COMPUTE']}: {error.message}") from None
    except AzureMLException as error:
        raise InputError(f"workspace {names.name}: {error.message}") from None


def environment_of(conda_file: str, image: str) -> "Environment":
    """Return the environment of SDK v1 for a job.

    Args:
        conda_file: path of conda.yaml, which is used if there is no image. It does not include Horovod.
        image: image with all packages and Horovod, or empty.
    """
    from azureml.core import Environment

    if not image:
        return Environment.from_conda_specification("carmodel", conda_file)
    environment = Environment("carmodel")
    environment.environment_variables = {}  # azureml-core puts an example there
    environment.docker.base_image = image
    environment.python.user_managed_dependencies = True
    return environment


if __name__ == "__main__":
    from mlflow.cli import cli
    from mlflow.projects.backend.loader import MLFLOW_BACKENDS

    MLFLOW_BACKENDS["azureml"] = ProjectBackend  # type: ignore[assignment]
    try:
        cli()
    except InputError as error:
        sys.exit(f"error: {error}")
