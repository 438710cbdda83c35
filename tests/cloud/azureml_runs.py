"""A stand-in of an Azure ML workspace's jobs, however they were submitted: their machines and the run history's part of them.

What is known of the run history's API is the source of azureml-core and azure-ai-ml. Tracking, identity and storage are those
of `tests.cloud.azureml_tracking`.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from tests.cloud.azureml_tracking import HOST, MANAGEMENT, Workspace, refused
from tests.cloud.remote_machine import Job, start

NOW = "2026-07-01T00:00:00.0000000+00:00"
CLUSTERS = {"cpu-cluster": "STANDARD_D16DS_V5", "gpu-cluster": "STANDARD_NC64AS_T4_V3"}


@dataclass
class Jobs:
    """Jobs of a workspace.

    Attributes:
        workspace: whose jobs they are.
        database: SQLite file of the `mlflow server` behind the workspace.
        folder: where they run.
        commands: folder of the `python` that runs them.
        environment: variables of their machines, besides what Azure ML puts there.
        running: run id to the running job.
        targets: run id to the name of its cluster.
        snapshots: snapshot id to the files of the project, ``{path: bytes}``.
        environments: those that were registered, by name.
    """

    workspace: Workspace
    database: Path
    folder: Path
    commands: str
    environment: dict[str, str] = field(default_factory=dict)
    running: dict[str, Job] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, dict[str, bytes]] = field(default_factory=dict)
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Submit jobs that their machines do not get to."""
        self.environment["CARMODEL_HOLD"] = "1"
        yield
        del self.environment["CARMODEL_HOLD"]

    def unpack(self, files: dict[str, bytes], name: str) -> Path:
        """Write the files of a project into a new folder."""
        project = self.folder / name
        for path, content in files.items():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_bytes(content)
        return project

    def experiment(self, name: str) -> str | None:
        """Id of an experiment."""
        where = f"{self.workspace.server}/api/2.0/mlflow/experiments/get-by-name"
        answer = requests.get(where, params={"experiment_name": name}, timeout=30)
        return answer.json()["experiment"]["experiment_id"] if answer.ok else None

    def make_experiment(self, name: str) -> str:
        """Make an experiment and return its id."""
        where = f"{self.workspace.server}/api/2.0/mlflow/experiments/create"
        return requests.post(where, json={"name": name}, timeout=30).json()["experiment_id"]

    def track(self, experiment: str, run_id: str, tags: dict[str, str]) -> None:
        """Make the run that a job logs into: under the job's name, as the service does and `mlflow server` does not."""
        body: dict[str, Any] = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        body |= {"experiment_id": experiment, "run_name": run_id, "start_time": int(time.time() * 1000)}
        answer = requests.post(f"{self.workspace.server}/api/2.0/mlflow/runs/create", json=body, timeout=30)
        made = answer.json()["run"]["info"]["run_id"]
        with closing(sqlite3.connect(self.database)) as database, database:
            for table in ("runs", "tags"):
                database.execute(f"UPDATE {table} SET run_uuid = ? WHERE run_uuid = ?", (run_id, made))

    def run(self, run_id: str, experiment: str, target: str, command: str, project: Path, **own: str) -> None:
        """Start a job's command in its project, in the environment that Azure ML gives a job."""
        tracking = {
            "MLFLOW_TRACKING_URI": self.workspace.uri,
            "MLFLOW_TRACKING_TOKEN": self.workspace.identity.issue(MANAGEMENT),
            "MLFLOW_RUN_ID": run_id,
            "MLFLOW_EXPERIMENT_ID": experiment,
        }
        log = self.folder / f"{run_id}.log"
        self.targets[run_id] = target
        variables = self.environment | tracking | own
        self.running[run_id] = start(["bash", "-c", command], project, log, variables, self.commands)

    def status(self, run_id: str) -> str:
        """State of a job as the run history names it."""
        job = self.running[run_id]
        code = job.wait(0)
        if code is None:
            return "Running"
        return "Canceled" if job.cancelled else "Completed" if code == 0 else "Failed"

    def error(self, run_id: str) -> dict[str, Any] | None:
        """Why a job failed, as the run history says it."""
        if self.status(run_id) != "Failed":
            return None
        said = " ".join(self.running[run_id].said().split()[-30:])
        return {"error": {"code": "UserError", "message": f"Execution failed. The last words: {said}"}}


def add_history(app: FastAPI, jobs: Jobs) -> None:
    """Experiments, runs, their details and their end."""
    workspace, scope = jobs.workspace, jobs.workspace.scope

    @app.get(f"/history/v1.0{scope}/experiments/{{name}}")
    def experiment(name: str) -> Response:
        if (experiment_id := jobs.experiment(name)) is None:
            return refused(404, "UserError", f"Experiment {name} not found.")
        return JSONResponse({"experimentId": experiment_id, "name": name})

    def run_dto(run_id: str) -> dict[str, Any]:
        own = {"runId": run_id, "runUuid": run_id, "status": jobs.status(run_id), "createdUtc": NOW, "tags": {}}
        cancel = f"https://{HOST}/execution/v1.0{scope}/runs/{run_id}/cancel"
        return own | {
            "properties": {},
            "runType": "azureml.scriptrun",
            "cancelUri": cancel,
            "rootRunId": run_id,
            "runNumber": 1,
            "dataContainerId": f"dcid.{run_id}",
        }

    paths = [
        f"/history/v1.0{scope}/{{kind}}/{{experiment_id}}/runs/{{run_id}}",
        f"/history/v1.0{scope}/runs/{{run_id}}",
    ]
    for path in paths:

        @app.patch(path)
        @app.get(path)
        def get_run(run_id: str) -> Response:
            if run_id not in jobs.running:
                return refused(404, "UserError", f"Run {run_id} not found.")
            return JSONResponse(run_dto(run_id))

    @app.get(paths[0] + "/details")
    @app.get(paths[1] + "/details")
    def details(run_id: str) -> dict[str, Any]:
        jobs.running[run_id].wait(5)
        own = {
            "runId": run_id,
            "status": jobs.status(run_id),
            "target": jobs.targets[run_id],
        }
        files = {"user_logs/std_log.txt": log_of(run_id)}
        return own | {"properties": {}, "logFiles": files, "error": jobs.error(run_id), "startTimeUtc": NOW}

    def log_of(run_id: str) -> str:
        name = f"jobs/{run_id}/std_log.txt"
        workspace.blobs.content[name] = jobs.running[run_id].said().encode()
        return workspace.blobs.sign(name, "r")

    @app.get(f"/artifact/v2.0{scope}/artifacts/prefix/contentinfo/ExperimentRun/{{container}}/{{folder}}")
    def logs(container: str, folder: str) -> dict[str, Any]:
        if folder != "user_logs":
            return {"value": []}
        own = {"origin": "ExperimentRun", "container": container, "path": "user_logs/std_log.txt"}
        return {"value": [own | {"contentUri": log_of(container.removeprefix("dcid."))}]}

    @app.get(paths[0] + "/metricsingest/wait")
    def ingested() -> dict[str, Any]:
        return {}

    @app.post(f"/execution/v1.0{scope}/runs/{{run_id}}/cancel")
    def cancel(run_id: str) -> dict[str, Any]:
        jobs.running[run_id].cancel()
        return {}
