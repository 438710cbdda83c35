"""A stand-in of the job submission of an Azure ML workspace as its SDK v1 asks for it (`mlflow run -b azureml`).

The SDK is out of support since 2026-06-30 and the services behind it were never published but for Azure Resource Manager's part
(https://learn.microsoft.com/en-us/rest/api/azureml/workspaces/get); what is known of the others is azureml-core's source. Tracking,
identity and storage are those of `tests.cloud.azureml_tracking`.
"""

import hashlib
import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.cloud.azureml_tracking import HOST, MANAGEMENT, REGION, Workspace
from tests.cloud.remote_machine import Job, start

NOW = "2026-07-01T00:00:00.0000000+00:00"
CLUSTERS = {"cpu-cluster": "STANDARD_D16DS_V5", "gpu-cluster": "STANDARD_NC24ADS_A100_V4"}


@dataclass
class Jobs:
    """Jobs of a workspace.

    Attributes:
        workspace: whose jobs they are.
        database: SQLite file of the `mlflow server` behind the workspace.
        folder: where they run.
        environment: what their machines have in their environment beside what Azure ML puts there.
        running: run id to the running job.
        definitions: run id to what was submitted.
        snapshots: snapshot id to the files of the project, ``{path: bytes}``.
        environments: those that were registered, by name.
    """

    workspace: Workspace
    database: Path
    folder: Path
    environment: dict[str, str]
    running: dict[str, Job] = field(default_factory=dict)
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    snapshots: dict[str, dict[str, bytes]] = field(default_factory=dict)
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)

    def unpack(self, files: dict[str, bytes], name: str) -> Path:
        """Write the files of a project into a new folder."""
        project = self.folder / name
        for path, content in files.items():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_bytes(content)
        return project

    def track(self, experiment: str, run_id: str) -> None:
        """Make the run that a job logs into: under the job's name, as the service does and `mlflow server` does not."""
        body = {"experiment_id": experiment, "run_name": run_id, "start_time": int(time.time() * 1000)}
        answer = requests.post(f"{self.workspace.server}/api/2.0/mlflow/runs/create", json=body, timeout=30)
        made = answer.json()["run"]["info"]["run_id"]
        with closing(sqlite3.connect(self.database)) as database, database:
            for table in ("runs", "tags"):
                database.execute(f"UPDATE {table} SET run_uuid = ? WHERE run_uuid = ?", (run_id, made))

    def run(self, run_id: str, experiment: str, command: str, project: Path, **own: str) -> None:
        """Start a job's command in its project, in the environment that Azure ML gives a job."""
        tracking = {
            "MLFLOW_TRACKING_URI": self.workspace.uri,
            "MLFLOW_TRACKING_TOKEN": self.workspace.identity.issue(MANAGEMENT),
            "MLFLOW_RUN_ID": run_id,
            "MLFLOW_EXPERIMENT_ID": experiment,
        }
        log = self.folder / f"{run_id}.log"
        self.running[run_id] = start(["bash", "-c", command], project, log, self.environment | tracking | own)

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


def denied(jobs: Jobs, request: Request) -> bool:
    """Whether a caller has no token for Azure Resource Manager, under its new or, as SDK v1 says it, its old name."""
    sent = request.headers.get("authorization", "")
    audiences = (MANAGEMENT, "https://management.core.windows.net")
    return all(jobs.workspace.identity.refusal(sent, audience) for audience in audiences)


def refused(status: int, code: str, message: str) -> JSONResponse:
    """An error as Azure's services send it."""
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def add_management(app: FastAPI, jobs: Jobs) -> None:
    """What SDK v1 asks of Azure Resource Manager."""
    workspace = jobs.workspace

    @app.get("/subscriptions")
    def subscriptions(request: Request) -> Response:
        if denied(jobs, request):
            return refused(401, "AuthenticationFailed", "Authentication failed.")
        own = {"subscriptionId": workspace.subscription, "tenantId": workspace.identity.tenant, "state": "Enabled"}
        return JSONResponse({"value": [own | {"id": f"/subscriptions/{workspace.subscription}", "displayName": "Cars"}]})

    @app.get(workspace.scope)
    def get_workspace(request: Request) -> Response:
        if denied(jobs, request):
            return refused(401, "AuthenticationFailed", "Authentication failed.")
        group = workspace.scope.partition("/providers/")[0]
        properties = {
            "workspaceId": "99999999-0000-4444-8888-000000000009",
            "discoveryUrl": f"https://{HOST}/discovery",
            "storageAccount": f"{group}/providers/Microsoft.Storage/storageAccounts/{workspace.blobs.account}",
            "mlFlowTrackingUri": workspace.uri,
            "provisioningState": "Succeeded",
        }
        kind = "Microsoft.MachineLearningServices/workspaces"
        own = {"id": workspace.scope, "name": workspace.name, "type": kind, "location": REGION}
        return JSONResponse(own | {"sku": {"name": "Basic", "tier": "Basic"}, "properties": properties})


def add_jobs(app: FastAPI, jobs: Jobs) -> None:
    """Experiments, environments, clusters, snapshots and runs of the workspace's region."""
    workspace, scope = jobs.workspace, jobs.workspace.scope

    @app.middleware("http")
    async def authenticate(request: Request, call_next):
        if not request.url.path.startswith("/discovery") and denied(jobs, request):
            return refused(401, "UserError", "Bearer token not provided or expired.")
        return await call_next(request)

    @app.get("/discovery")
    def discovery() -> dict[str, str]:
        names = ("api", "experimentation", "history", "hyperdrive", "modelmanagement")
        return {name: f"https://{HOST}" for name in names} | {"studio": "https://ml.azure.com"}

    @app.get(f"/history/v1.0{scope}/experiments/{{name}}")
    def experiment(name: str) -> Response:
        where = f"{workspace.server}/api/2.0/mlflow/experiments/get-by-name"
        answer = requests.get(where, params={"experiment_name": name}, timeout=30)
        if not answer.ok:
            return refused(404, "UserError", f"Experiment {name} not found.")
        return JSONResponse({"experimentId": answer.json()["experiment"]["experiment_id"], "name": name})

    @app.put(f"/environment/v1.0{scope}/environments/{{name}}")
    async def register(name: str, request: Request) -> Response:
        body = await request.json()
        if not body["python"]["condaDependencies"]["dependencies"]:
            return refused(400, "UserError", "an environment without packages")
        version = str(len(jobs.environments) + 1)
        jobs.environments[name] = {"name": name, "version": version} | {
            "python": body["python"], "docker": body["Docker"], "spark": body["Spark"],
            "environmentVariables": body["EnvironmentVariables"], "inferencingStackVersion": None, "r": None,
        }  # fmt: skip
        return JSONResponse(jobs.environments[name])

    @app.get(f"/rp/workspaces{scope}/computes/{{name}}")
    def compute(name: str) -> Response:
        if name not in CLUSTERS:
            return refused(404, "ResourceNotFound", f"The compute {name} was not found in workspace {workspace.name}.")
        own = {
            "computeType": "AmlCompute", "isAttachedCompute": False, "provisioningState": "Succeeded",
            "computeLocation": REGION, "createdOn": NOW, "modifiedOn": NOW, "description": None, "resourceId": None,
            "provisioningErrors": None, "disableLocalAuth": True,
            "properties": {"vmSize": CLUSTERS[name], "vmPriority": "Dedicated", "subnet": None,
                           "scaleSettings": {"minNodeCount": 0, "maxNodeCount": 4,
                                             "nodeIdleTimeBeforeScaleDown": "PT120S"}},
        }  # fmt: skip
        said = {"id": f"{scope}/computes/{name}", "name": name, "location": REGION, "tags": None, "properties": own}
        return JSONResponse(said)

    @app.get(f"/content/v1.0{scope}/snapshots/latest/metadata")
    def latest() -> dict[str, Any]:
        return {"id": "00000000-0000-0000-0000-000000000000", "root": {}}

    @app.post(f"/content/v2.0{scope}/snapshots/getblob")
    async def get_blobs(request: Request) -> dict[str, Any]:
        names = (await request.json())["FileNames"]
        return {"fileNodes": [{"fullName": n, "blobUri": workspace.blobs.sign(f"snapshots/{n}", "rcw")} for n in names]}

    @app.post(f"/content/v2.0{scope}/snapshots/{{snapshot}}")
    async def create_snapshot(snapshot: str, request: Request) -> Response:
        body = await request.json()
        sent = {node["FullName"]: node for node in body["FileRevisionList"]["FileNodes"]}
        known = jobs.snapshots.get(body["ParentSnapshotId"], {})
        files = {}
        for path, digest in leaves(body["DirTreeNode"]):
            content = blob_of(workspace, sent[path]["BlobUri"]) if path in sent else known.get(path)
            name = path.rpartition("/")[2]
            if content is None or hashlib.sha512(content + name.encode() + b"File").hexdigest() != digest:
                return refused(400, "UserError", f"{path} was not uploaded whole")
            files[path] = content
        jobs.snapshots[snapshot] = files
        return JSONResponse({"id": snapshot})

    @app.post(f"/execution/v1.0{scope}/experiments/{{experiment_name}}/snapshotrun")
    async def submit(experiment_name: str, request: Request) -> Response:
        body = await request.json()
        wanted = body["Configuration"]
        if wanted["target"] not in CLUSTERS:
            return refused(400, "UserError", f"no compute {wanted['target']}")
        if wanted["environment"]["name"] not in jobs.environments:
            return refused(400, "UserError", "the environment is not registered")
        if body["SnapshotId"] not in jobs.snapshots:
            return refused(400, "UserError", f"no snapshot {body['SnapshotId']}")
        experiment_id = json.loads(experiment(experiment_name).body)["experimentId"]
        run_id = request.query_params["runId"]
        jobs.track(experiment_id, run_id)
        jobs.definitions[run_id] = body
        project = jobs.unpack(jobs.snapshots[body["SnapshotId"]], run_id)
        command = wanted["command"]
        jobs.run(run_id, experiment_id, command if isinstance(command, str) else " ".join(command), project)
        return JSONResponse({"runId": run_id})

    def run_dto(run_id: str) -> dict[str, Any]:
        own = {"runId": run_id, "runUuid": run_id, "status": jobs.status(run_id), "createdUtc": NOW, "tags": {}}
        cancel = f"https://{HOST}/execution/v1.0{scope}/runs/{run_id}/cancel"
        return own | {"properties": {}, "runType": "azureml.scriptrun", "cancelUri": cancel, "rootRunId": run_id, "runNumber": 1}

    paths = [f"/history/v1.0{scope}/{{kind}}/{{experiment_id}}/runs/{{run_id}}", f"/history/v1.0{scope}/runs/{{run_id}}"]
    for path in paths:

        @app.patch(path)
        @app.get(path)
        def get_run(run_id: str) -> Response:
            if run_id not in jobs.running:
                return refused(404, "UserError", f"Run {run_id} not found.")
            return JSONResponse(run_dto(run_id))

    @app.get(paths[0] + "/details")
    def details(run_id: str) -> dict[str, Any]:
        jobs.running[run_id].wait(5)
        own = {"runId": run_id, "status": jobs.status(run_id), "target": jobs.definitions[run_id]["Configuration"]["target"]}
        log = f"jobs/{run_id}/std_log.txt"
        workspace.blobs.content[log] = jobs.running[run_id].said().encode()
        files = {"user_logs/std_log.txt": workspace.blobs.sign(log, "r")}
        return own | {"properties": {}, "logFiles": files, "error": jobs.error(run_id), "startTimeUtc": NOW}

    @app.post(f"/execution/v1.0{scope}/runs/{{run_id}}/cancel")
    def cancel(run_id: str) -> dict[str, Any]:
        jobs.running[run_id].cancel()
        return {}


def leaves(node: dict[str, Any], parent: str = "") -> list[tuple[str, str]]:
    """Paths and digests of the files in a tree as SDK v1 sends it."""
    found = []
    for name, child in node["children"].items():
        path = f"{parent}{name}"
        found += [(path, child["hash"])] if child["type"] == "File" else leaves(child, f"{path}/")
    return found


def blob_of(workspace: Workspace, uri: str) -> bytes | None:
    """What was uploaded to a signed address."""
    parts = urlsplit(uri)
    name = parts.path.lstrip("/")
    signature = parse_qs(parts.query)["sig"][0]
    return workspace.blobs.content.get(name) if workspace.blobs.grants[signature][0] == name else None
