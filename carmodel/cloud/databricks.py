"""Run steps as jobs of Databricks. Since Databricks Runtime 13, MLflow Projects run there as "Spark job" projects.

The Python file of such a job runs in the driver's own Python process with the cluster's Spark session, so a step can use
``engine=spark``. The steps of a `main` are separate processes without that session. To give them the session, use a
placement (`carmodel.cloud.placement`).

A Spark job project has no environment of its own, so it is a copy of this project with another MLproject file
(https://docs.databricks.com/en/mlflow/projects.html#mlflow-databricks-spark-job-project-format)::

    python -m carmodel.cloud.databricks FOLDER --config demo
    mlflow run FOLDER -b databricks --backend-config backends/databricks.json --experiment-name /Users/…/cars
"""

import json
import re
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import mlflow
import yaml
from mlflow.projects.databricks import DatabricksJobRunner, run_databricks_spark_job
from mlflow.projects.utils import get_or_create_run, load_project
from mlflow.utils.mlflow_tags import MLFLOW_DATABRICKS_RUN_URL, MLFLOW_DATABRICKS_SHELL_JOB_RUN_ID

from carmodel.cloud.snapshot import copy_project
from carmodel.cloud.waiting import JobState, RemoteStep
from carmodel.errors import InputError
from carmodel.tracking.digests import ROOT

JOB_FILE = "databricks_job.py"
# A job that could not start ends without a result: https://docs.databricks.com/api/workspace/jobs/getrun
_ENDED = ("TERMINATED", "SKIPPED", "INTERNAL_ERROR")
_MODULE = re.compile(r"^python -m steps\.(\w+)")


def make_project(
    folder: Path, entry_point: str, parameters: Mapping[str, str], tracking_uri: str = "databricks"
) -> Path:
    """Write the Spark job project into a new folder and return the folder.

    Args:
        folder: must not exist yet, and must not be inside this project.
        entry_point: the entry point that will run.
        parameters: its parameters. They decide whether ``pretrained/`` is copied.
        tracking_uri: tracking URI of the jobs. By default, MLflow would log all Spark jobs to Databricks.

    Raises:
        InputError: the folder exists or is inside the project, or the tracking URI contains a password.
    """
    folder = folder.resolve()
    if folder.exists() or ROOT in folder.parents:
        raise InputError(f"{folder}: give a new folder outside of the project")
    if urlsplit(tracking_uri).password:
        raise InputError(
            "the tracking URI contains a password, which would be sent with the project: put MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD into spark_env_vars as {{secrets/SCOPE/KEY}} instead"
        )
    copy_project(folder, entry_point, parameters)
    shutil.copy(ROOT / "backends" / JOB_FILE, folder / JOB_FILE)
    (folder / "MLproject").write_text(spark_job(yaml.safe_load((ROOT / "MLproject").read_text()), tracking_uri))
    return folder


def spark_job(project: dict, tracking_uri: str) -> str:
    """Return an MLproject file whose entry points run in a Spark job. MLflow requires a file there instead of a module."""
    points = {
        name: point | {"command": _MODULE.sub(rf"python {JOB_FILE} {tracking_uri} \1", point["command"])}
        for name, point in project["entry_points"].items()
    }
    return yaml.safe_dump(
        {"name": project["name"], "databricks_spark_job": {"python_libraries": []}, "entry_points": points}
    )


def submit(step: str, parameters: dict[str, str], config: Path, experiment_id: str) -> RemoteStep:
    """Start a step as a job of Databricks, in a run that is a child of the active run.

    `mlflow.projects.run` would do the same, but it rejects tracking URIs other than Databricks and ``http(s)://``. Jobs of
    Databricks can also log to Azure ML, through azureml-mlflow.

    Args:
        step: entry point.
        parameters: parameters of the step.
        config: JSON file that describes the cluster.
        experiment_id: experiment of the active run.
    """
    tracking_uri = mlflow.get_tracking_uri()
    with TemporaryDirectory() as folder:
        # A profile, as in databricks://PROFILE, exists on this machine only.
        job_uri = "databricks" if tracking_uri.startswith("databricks") else tracking_uri
        project = make_project(Path(folder) / "carmodel", step, parameters, job_uri)
        run = get_or_create_run(None, str(project), experiment_id, str(project), None, step, parameters)
        run_id = run.info.run_id
        client = mlflow.MlflowClient()
        try:
            client.set_tag(run_id, "mlflow.runName", step)
            run_databricks_spark_job(
                remote_run=run,
                uri="carmodel",
                work_dir=str(project),
                experiment_id=experiment_id,
                cluster_spec=json.loads(config.read_text()),
                project_spec=load_project(str(project)),
                entry_point=step,
                parameters=parameters,
            )
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
    tags = client.get_run(run_id).data.tags
    jobs, job_id = DatabricksJobRunner(tracking_uri), int(tags[MLFLOW_DATABRICKS_SHELL_JOB_RUN_ID])

    def state() -> JobState:
        answer = jobs.jobs_runs_get(job_id)["state"]
        life_cycle, result = answer["life_cycle_state"], answer.get("result_state", "")
        ended = bool(result) or life_cycle in _ENDED
        return JobState(result or life_cycle, ended, result == "SUCCESS", answer.get("state_message", ""))

    def cancel() -> None:
        jobs.jobs_runs_cancel(job_id)

    return RemoteStep(run_id, f"Databricks run {job_id}", tags[MLFLOW_DATABRICKS_RUN_URL], state, cancel)


if __name__ == "__main__":
    parser = ArgumentParser(description="Write a copy of this project that Databricks can run.")
    parser.add_argument("folder", type=Path, help="new folder outside of this project")
    parser.add_argument("--config", default="demo", help="recipe of main; its weights in pretrained/ are copied")
    arguments = parser.parse_args()
    try:
        print(make_project(arguments.folder, "main", {"config": arguments.config}))
    except InputError as error:
        sys.exit(f"error: {error}")
