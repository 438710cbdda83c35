"""MLflow's command line, on which `run -b azureml` works: `python -m carmodel.remote.azureml run . -b azureml …`.

azureml-mlflow's project backend asks a project for `conda_env_path`, which MLflow calls `env_config_path` by now, so with
`mlflow run` itself it ends in an AttributeError. It also needs azureml-core, SDK v1 of Azure ML, which is out of support
since 2026-06-30 (https://learn.microsoft.com/en-us/azure/machine-learning/v1/introduction); the way that lasts is a command
job, `carmodel.remote.command_job`.
"""

import json
from pathlib import Path

import mlflow
from mlflow.cli import cli
from mlflow.projects._project_spec import Project

from carmodel.errors import InputError
from carmodel.remote.waiting import Remote, State
from carmodel.tracking import ROOT

ENDED = ("Completed", "Failed", "Canceled", "NotResponding")


def name_environment() -> None:
    """Let a project answer by the name that azureml-mlflow asks for."""
    setattr(Project, "conda_env_path", property(lambda project: project.env_config_path))  # noqa: B010


def submit(step: str, parameters: dict[str, str], config: Path, experiment_id: str) -> Remote:
    """Start a step as a job of Azure ML through MLflow's backend, in a run that becomes a child of the active one.

    Raises:
        InputError: SDK v1 refuses, such as a cluster that is not there; with its message.
    """
    try:
        from azureml.exceptions import AzureMLException
    except ImportError:
        raise InputError("placement: azureml needs azureml-core: make azure") from None
    name_environment()
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
    name_environment()
    cli()
