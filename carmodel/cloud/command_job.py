"""A step as a command job of Azure ML (SDK v2): https://learn.microsoft.com/en-us/azure/machine-learning/reference-yaml-job-command"""

import re
from pathlib import Path

import mlflow
from mlflow.projects.utils import load_project

from carmodel.cloud.waiting import Remote, State
from carmodel.errors import InputError
from carmodel.service_errors import without_secrets
from carmodel.tracking.digests import ROOT

WORKSPACE = re.compile(r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/providers/[^/]+/workspaces/([^/?]+)")
ENDED = ("Completed", "Failed", "Canceled", "NotResponding")


def submit(step: str, parameters: dict[str, str], config: Path, experiment_id: str) -> Remote:
    """Start a step as a job, whose run becomes a child of the active one.

    Args:
        step: entry point; its command takes the place of the job's own, and the job's inputs, which were for that, go.
        parameters: of the step.
        config: the job's YAML: environment, compute, resources, identity.
        experiment_id: where main logs.

    Raises:
        InputError: a YAML that azure-ai-ml refuses, or no azure-ai-ml.
    """
    try:
        from azure.ai.ml import MLClient, load_job
        from azure.ai.ml.entities import Command
        from azure.ai.ml.exceptions import ValidationException
        from azure.identity import DefaultAzureCredential
        from marshmallow import ValidationError
    except ImportError:
        raise InputError("placement: azureml-job needs azure-ai-ml: make azure") from None
    workspace = WORKSPACE.search(mlflow.get_tracking_uri())
    if workspace is None:
        raise InputError(f"no workspace of Azure ML in the tracking URI {without_secrets(mlflow.get_tracking_uri())}")
    try:
        job = load_job(config)
    except (ValidationException, ValidationError) as error:
        raise InputError(f"{config}: {' '.join(str(error).split())}") from None
    active = mlflow.active_run()
    # load_job's type is that of every job; it knows which by the YAML's own `type`.
    if not isinstance(job, Command):
        raise InputError(f"{config}: type: is not command")
    job.command = load_project(str(ROOT)).get_entry_point(step).compute_command(parameters, None)
    job.inputs.clear()
    job.code = str(ROOT)
    job.display_name = step
    job.experiment_name = mlflow.get_experiment(experiment_id).name
    job.tags = {"mlflow.parentRunId": active.info.run_id} if active else {}
    client = MLClient(DefaultAzureCredential(), *workspace.groups())
    submitted = client.jobs.create_or_update(job)

    def state() -> State:
        status = client.jobs.get(submitted.name).status
        word = str(getattr(status, "value", status))  # an enumeration's member where the service's word is known
        if word != "Failed":
            return State(word, word in ENDED, word == "Completed")
        try:
            client.jobs.stream(submitted.name)  # raises the reason, which is in the run's history
        except Exception as error:
            return State(word, ended=True, message=str(error))
        return State(word, ended=True)

    def cancel() -> None:
        client.jobs.begin_cancel(submitted.name).wait()

    return Remote(submitted.name, f"Azure ML job {submitted.name}", submitted.studio_url, state, cancel)
