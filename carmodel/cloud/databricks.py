"""The project as Databricks runs it since Databricks Runtime 13: an MLflow "Spark job" project.

There a job's Python file runs in the driver's own Python process, with the cluster's Spark session, so `engine=spark` works for
a step. The steps of a `main` are processes of their own without that session: give them a `carmodel.cloud.placement` for it.
Such a project has no environment of its own, so it is a copy with another MLproject
(https://docs.databricks.com/en/mlflow/projects.html#mlflow-databricks-spark-job-project-format)::

    python -m carmodel.cloud.databricks FOLDER
    mlflow run FOLDER -b databricks --backend-config backends/databricks.json --experiment-name /Users/…/cars
"""

import json
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import mlflow
import yaml
from mlflow.projects.databricks import DatabricksJobRunner, run_databricks_spark_job
from mlflow.projects.utils import get_or_create_run, load_project

from carmodel.cloud.project import copy_project
from carmodel.cloud.waiting import Remote, State
from carmodel.errors import InputError
from carmodel.tracking.digests import ROOT

JOB = "databricks_job.py"
# A run that could not even start has no result: https://docs.databricks.com/api/workspace/jobs/getrun
ENDED = ("TERMINATED", "SKIPPED", "INTERNAL_ERROR")
MODULE = re.compile(r"^python -m steps\.(\w+)")


def make_project(folder: Path, tracking_uri: str = "databricks") -> Path:
    """Write the project into a new folder and return it.

    Args:
        folder: is not there yet, and not within the project.
        tracking_uri: where the jobs log: MLflow itself sends all Spark jobs to Databricks' own tracking.

    Raises:
        InputError: a folder that is there already or within the project, or a tracking URI with a password.
    """
    folder = folder.resolve()
    if folder.exists() or ROOT in folder.parents:
        raise InputError(f"{folder}: give a new folder outside of the project")
    if urlsplit(tracking_uri).password:
        raise InputError(
            "the tracking URI holds a password, which would be sent with the project: put MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD into spark_env_vars as {{secrets/SCOPE/KEY}} instead"
        )
    copy_project(folder)
    shutil.copy(ROOT / "backends" / JOB, folder / JOB)
    (folder / "MLproject").write_text(spark_job(yaml.safe_load((ROOT / "MLproject").read_text()), tracking_uri))
    return folder


def spark_job(project: dict, tracking_uri: str) -> str:
    """An MLproject as YAML whose entry points run in a Spark job; MLflow wants a file there, not a module."""
    points = {
        name: point | {"command": MODULE.sub(rf"python {JOB} {tracking_uri} \1", point["command"])}
        for name, point in project["entry_points"].items()
    }
    return yaml.safe_dump(
        {"name": project["name"], "databricks_spark_job": {"python_libraries": []}, "entry_points": points}
    )


def submit(step: str, parameters: dict[str, str], config: Path, experiment_id: str) -> Remote:
    """Start a step as a job of Databricks, in a run that is a child of the active one.

    MLflow's own backend without the check of `mlflow.projects.run`, which lets jobs of Databricks log to Databricks or to
    ``http(s)://`` alone, though azureml-mlflow works there as well.
    """
    tracking_uri = mlflow.get_tracking_uri()
    with TemporaryDirectory() as folder:
        # A profile is this machine's.
        project = make_project(
            Path(folder) / "carmodel", "databricks" if tracking_uri.startswith("databricks") else tracking_uri
        )
        run = get_or_create_run(None, str(project), experiment_id, str(project), None, step, parameters)
        client = mlflow.MlflowClient()
        try:
            submitted = run_databricks_spark_job(
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
            client.set_terminated(run.info.run_id, "FAILED")
            raise
    client.set_tag(run.info.run_id, "mlflow.runName", step)
    runner, job = DatabricksJobRunner(tracking_uri), submitted._databricks_run_id
    page = client.get_run(run.info.run_id).data.tags["mlflow.databricks.runURL"]

    def state() -> State:
        said = runner.jobs_runs_get(job)["state"]
        life, result = said["life_cycle_state"], said.get("result_state", "")
        return State(result or life, bool(result) or life in ENDED, result == "SUCCESS", said.get("state_message", ""))

    return Remote(run.info.run_id, f"Databricks run {job}", page, state, lambda: runner.jobs_runs_cancel(job))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(make_project(Path(sys.argv[1])))
    except InputError as error:
        sys.exit(f"error: {error}")
