"""A stand-in for a Databricks workspace as MLflow's project backend uses it: DBFS, one-time job runs, a driver that runs them.

The requests are those of https://docs.databricks.com/api/workspace/jobs/submit, /getrun and /cancelrun, and of
https://docs.databricks.com/api/workspace/dbfs/getstatus. `shell_command_task` and the upload to ``/dbfs/…`` are used by MLflow
alone and published nowhere: what is known of them is in MLflow's source (mlflow/projects/databricks.py).
"""

import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from databricks.sdk.service.compute import ClusterSpec, Library
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.cloud.remote_machine import Job, start

TOKEN = "dapi-of-a-stand-in"
# MLflow adds these to the cluster's specification; the service leaves out what it doesn't know.
FROM_MLFLOW = {"ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR", "build_image", "docker_auth"}


class RefusedError(Exception):
    """An answer other than 200: status, the service's code and message."""


@dataclass
class Workspace:
    """State of the workspace.

    Attributes:
        folder: where its files are: ``dbfs/`` and a folder for each job's driver.
        commands: folder of the `python` and `mlflow` of its drivers.
        environment: variables of its drivers.
        jobs: run id to the running job.
        requests: run id to the body that submitted it.
    """

    folder: Path
    commands: str
    environment: dict[str, str] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    requests: dict[int, dict[str, Any]] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    patience: float = 20.0
    """Seconds for which a question after a running job waits for its end."""

    def on_driver(self, text: str, driver: Path) -> str:
        """A text whose paths are those of a driver: its own disk, and DBFS, which all share."""
        return text.replace("/databricks/mlflow", f"{driver}/mlflow").replace("/dbfs/", f"{self.folder}/dbfs/")

    def project(self) -> set[str]:
        """Names of the files in the newest uploaded project."""
        newest = max((self.folder / "dbfs").rglob("*.tar.gz"), key=lambda path: path.stat().st_mtime)
        with tarfile.open(newest) as tar:
            return {member.name.removeprefix("mlflow-project/") for member in tar if member.isfile()}


def check_cluster(spec: dict[str, Any]) -> None:
    """Refuse a cluster that the client's own model of the API does not know, or that could not start."""
    known = {name: value for name, value in spec.items() if name not in FROM_MLFLOW}
    if ClusterSpec.from_dict(known).as_dict() != known:
        raise RefusedError(400, "INVALID_PARAMETER_VALUE", f"unknown fields in new_cluster: {sorted(known)}")
    for name in ("spark_version", "node_type_id"):
        if not known.get(name):
            raise RefusedError(400, "INVALID_PARAMETER_VALUE", f"Missing required field: new_cluster.{name}")


def make(workspace: Workspace) -> FastAPI:
    """The service."""
    app = FastAPI()
    bin_ = workspace.folder / "bin"
    bin_.mkdir(parents=True)
    # The driver has rsync; MLflow calls it as `rsync -a -v --ignore-existing FILE FOLDER`.
    (bin_ / "rsync").write_text('#!/bin/sh\nexec cp -n "$4" "$5"\n')
    (bin_ / "rsync").chmod(0o755)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        status, code, message = error.args
        return JSONResponse({"error_code": code, "message": message}, status)

    @app.middleware("http")
    async def authenticate(request: Request, call_next):
        if request.url.path.startswith("/.well-known/"):
            return await call_next(request)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error_code": "PERMISSION_DENIED", "message": "Invalid access token."}, 403)
        return await call_next(request)

    @app.get("/.well-known/databricks-config")
    async def config(request: Request) -> dict[str, str]:
        return {"oidc_endpoint": f"{request.base_url}oidc"}

    @app.get("/api/2.0/dbfs/get-status")
    async def get_status(request: Request) -> dict[str, Any]:
        path = request.query_params.get("path") or (await request.json())["path"]
        file = workspace.folder / "dbfs" / path.lstrip("/")
        if not file.is_file():
            raise RefusedError(404, "RESOURCE_DOES_NOT_EXIST", f"No file or directory exists on path {path}.")
        return {"path": path, "is_dir": False, "file_size": file.stat().st_size}

    @app.post("/dbfs/{path:path}")
    async def upload(path: str, request: Request) -> dict[str, Any]:
        file = workspace.folder / "dbfs" / path
        if file.exists():
            raise RefusedError(409, "RESOURCE_ALREADY_EXISTS", "File already exists")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(await request.body())
        return {}

    @app.post("/api/2.0/jobs/runs/submit")
    async def submit(request: Request) -> dict[str, int]:
        body = await request.json()
        if missing := {"run_name", "new_cluster"} - set(body):
            raise RefusedError(400, "INVALID_PARAMETER_VALUE", f"Missing {missing}")
        check_cluster(body["new_cluster"])
        for library in body.get("libraries", []):
            if not library or Library.from_dict(library).as_dict() != library:
                raise RefusedError(400, "INVALID_PARAMETER_VALUE", f"Invalid library {library}")
        run_id = 7000 + len(workspace.jobs)
        workspace.requests[run_id] = body
        workspace.jobs[run_id] = run(workspace, run_id, body)
        return {"run_id": run_id}

    @app.get("/api/2.0/jobs/runs/get")
    def get(run_id: int) -> dict[str, Any]:
        if run_id not in workspace.jobs:
            raise RefusedError(400, "INVALID_PARAMETER_VALUE", f"Run {run_id} does not exist.")
        first, job = run_id not in workspace.asked, workspace.jobs[run_id]
        workspace.asked.add(run_id)
        code = job.wait(0 if first else workspace.patience)
        state: dict[str, Any] = {"life_cycle_state": "PENDING" if first else "RUNNING", "state_message": "In run"}
        if code is not None and not first:
            message = "" if code == 0 else f"Command exited with code {code}: {' '.join(job.said().split()[-30:])}"
            state = {"life_cycle_state": "TERMINATED", "result_state": "SUCCESS" if code == 0 else "FAILED"}
            state["state_message"] = message
            if job.cancelled:
                state |= {"result_state": "CANCELED", "state_message": "Run cancelled."}
        page = f"https://adb-1.2.azuredatabricks.net/?o=1#job/{run_id + 1000}/run/1"
        return {"job_id": run_id + 1000, "run_id": run_id, "run_page_url": page, "state": state}

    @app.post("/api/2.0/jobs/runs/cancel")
    async def cancel(request: Request) -> dict[str, Any]:
        workspace.jobs[(await request.json())["run_id"]].cancel()
        return {}

    return app


def run(workspace: Workspace, run_id: int, body: dict[str, Any]) -> Job:
    """Start what was submitted on the driver."""
    driver = workspace.folder / f"driver-{run_id}"
    driver.mkdir()
    environment = dict(workspace.environment) | {"DB_HOME": "/databricks"}
    if "shell_command_task" in body:
        task = body["shell_command_task"]
        command = [workspace.on_driver(word, driver) for word in task["command"]]
        environment |= {name: str(value) for name, value in task["env_vars"].items()}
    elif "spark_python_task" in body:
        task = body["spark_python_task"]
        file = workspace.folder / "dbfs" / task["python_file"].removeprefix("dbfs:/")
        (driver / "job.py").write_text(workspace.on_driver(file.read_text(), driver))
        command = ["python", "job.py", *task["parameters"]]
    else:
        raise RefusedError(400, "INVALID_PARAMETER_VALUE", f"no task in {json.dumps(body)[:200]}")
    # The driver's programs come first, though a job sets PATH itself.
    shell = ["bash", "-c", 'PATH="$0:$PATH" exec "$@"', str(workspace.folder / "bin")]
    return start([*shell, *command], driver, driver / "log", environment, workspace.commands)
