"""A stand-in of an Azure ML workspace's tracking: runs, registry and artifacts, as azureml-mlflow asks for them.

Runs and registry are answered by a real `mlflow server`; here is what differs, as Microsoft documents it:

- what the service has of MLflow's API: no logged models (https://github.com/Azure/azure-sdk-for-python/issues/44896) and no
  aliases (https://learn.microsoft.com/azure/machine-learning/how-to-manage-models-mlflow), and no escaped names in filters
  (https://learn.microsoft.com/azure/machine-learning/how-to-track-experiments-mlflow, the support matrix);
- batches of metrics, as autologging sends them, are logged asynchronously by a call of the service's own
  (azureml/mlflow/_protos/aml_service_pb2.py in the client);
- artifacts: records of the run history's API, which give signed addresses in Blob Storage, and can't be written twice.
"""

import json
import re
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from tests.cloud.blobs import Blobs
from tests.cloud.identity import Identity

REGION = "eastus"
HOST = f"{REGION}.api.azureml.ms"
MANAGEMENT = "https://management.azure.com"
AUDIENCES = (MANAGEMENT, "https://management.core.windows.net")
SUPPORTED = re.compile(
    r"(experiments/(create|get|get-by-name|search|update|delete|restore|set-experiment-tag)"
    r"|runs/(create|get|update|search|delete|restore|log-metric|log-parameter|log-batch|set-tag|delete-tag)"
    r"|metrics/get-history"
    r"|registered-models/(create|get|update|search|get-latest-versions|set-tag|delete-tag)"
    r"|model-versions/(create|get|update|delete|search|get-download-uri|transition-stage|set-tag|delete-tag))"
)


@dataclass
class Workspace:
    """One workspace.

    Each has its own name, because MLflow keeps one client a URI, with its credentials, as long as the process lives.

    Attributes:
        server: URL of the `mlflow server` behind it.
        identity: who may use it.
        blobs: its storage account.
        artifacts: ``{run: {path: blob}}`` of the records.
        batches: ids of the batches that were logged asynchronously.
    """

    server: str
    identity: Identity
    blobs: Blobs
    subscription: str = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
    group: str = "cars-rg"
    name: str = field(default_factory=lambda: f"cars-{secrets.token_hex(4)}")
    artifacts: dict[str, dict[str, str]] = field(default_factory=dict)
    batches: list[str] = field(default_factory=list)

    @property
    def scope(self) -> str:
        """Path of the workspace in Azure."""
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.name}"
        )

    @property
    def uri(self) -> str:
        """The tracking URI that `az ml workspace show --query mlflow_tracking_uri` prints."""
        return f"azureml://{HOST}/mlflow/v1.0{self.scope}"

    def artifact_uri(self, experiment: str, run: str) -> str:
        """Address of a run's artifacts."""
        return f"azureml://{HOST}/mlflow/v2.0{self.scope}/experiments/{experiment}/runs/{run}/artifacts"

    def record(self, run: str, path: str) -> dict[str, object]:
        """What the service says of an artifact."""
        container = f"dcid.{run}"
        place = {"origin": "ExperimentRun", "container": container, "path": path}
        return place | {"artifactId": f"ExperimentRun/{container}/{path}"}

    def refuse(self, request: Request) -> bool:
        """Return whether a request has no token for Azure Resource Manager, under its new name or the one of SDK v1."""
        sent = request.headers.get("authorization", "")
        return all(self.identity.refusal(sent, audience) for audience in AUDIENCES)


def guarded(workspace: Workspace) -> FastAPI:
    """Make a service that answers only to who has a token, but for where other services are."""
    app = FastAPI()

    @app.middleware("http")
    async def authenticate(request: Request, call_next: Callable[[Request], Any]) -> Response:
        if request.url.path in ("/discovery", "/metadata/endpoints") or not workspace.refuse(request):
            return await call_next(request)
        challenge = {"WWW-Authenticate": 'Bearer authorization_uri="https://login.microsoftonline.com"'}
        return refused(401, "UserError", "Bearer token not provided or expired.", challenge)

    return app


def refused(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as Azure's services send it."""
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def add_tracking(app: FastAPI, workspace: Workspace) -> None:
    """Add a workspace's runs, registry and artifacts to the service of its region, and 404 for all other paths."""
    history = f"/history/v1.0{workspace.scope}/experiments/{{experiment}}/runs/{{run}}/artifacts"

    @app.api_route(f"/mlflow/v2.0{workspace.scope}/api/2.0/mlflow/{{method:path}}", methods=["GET", "POST", "PATCH"])
    async def mlflow(method: str, request: Request) -> Response:
        if not SUPPORTED.fullmatch(method):
            return Response(status_code=404)
        body = await request.body()
        if method == "runs/search" and (said := _beyond_search(json.loads(body))):
            return mlflow_error(400, "INVALID_PARAMETER_VALUE", said)
        answer = await run_in_threadpool(
            requests.request,
            request.method,
            f"{workspace.server}/api/2.0/mlflow/{method}",
            params=request.query_params,
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        said = answer.json()
        if answer.ok:
            _with_addresses(said, workspace)
            return JSONResponse(said)
        return mlflow_error(answer.status_code, said["error_code"], said["message"])

    preview = f"/mlflow/v2.0{workspace.scope}/api/2.0/preview/mlflow/runs"

    @app.post(f"{preview}/log-batch-async")
    async def log_batch(request: Request) -> Response:
        answer = await mlflow("runs/log-batch", request)
        if answer.status_code != 200:
            return answer
        workspace.batches.append(tracked := str(uuid.uuid4()))
        return JSONResponse({"batch_tracking_id": tracked if json.loads(await request.body()).get("metrics") else ""})

    @app.get(f"{preview}/get-run-data-status")
    def batch_status(batch_tracking_id: str) -> Response:
        return JSONResponse({"is_complete": batch_tracking_id in workspace.batches})

    @app.post(f"{history}/batch/metadata")
    async def create_artifacts(experiment: str, run: str, request: Request) -> Response:
        records, signed, errors = {}, {}, {}
        known = workspace.artifacts.setdefault(run, {})
        for path in [item["path"] for item in (await request.json())["paths"]]:
            record = workspace.record(run, path)
            if path in known:
                said = f"Resource Conflict: ArtifactId {record['artifactId']} already exists."
                errors[path] = {"error": {"code": "UserError", "message": said}}
                continue
            known[path] = f"azureml/{record['artifactId']}"
            records[path] = record
            signed[path] = record | {"contentUri": workspace.blobs.sign(known[path], "rcw")}
        return JSONResponse({"artifacts": records, "artifactContentInformation": signed, "errors": errors})

    @app.get(history)
    def list_artifacts(experiment: str, run: str, request: Request, continuationToken: int = 0) -> Response:  # noqa: N803
        paths = sorted(workspace.artifacts.get(run, {}))
        page, rest = paths[continuationToken : continuationToken + 50], continuationToken + 50
        said: dict[str, Any] = {"value": [workspace.record(run, path) for path in page]}
        if rest < len(paths):
            said["continuationToken"] = str(rest)
            said["nextLink"] = f"https://{HOST}{request.url.path}?continuationToken={rest}"
        return JSONResponse(said)

    @app.get(f"{history}/contentinfo")
    def find_artifact(experiment: str, run: str, path: str) -> Response:
        if path not in workspace.artifacts.get(run, {}):
            return refused(404, "UserError", f"Artifact {path} not found in container dcid.{run}")
        address = workspace.blobs.sign(workspace.artifacts[run][path], "r")
        return JSONResponse(workspace.record(run, path) | {"contentUri": address})

    @app.get(f"/history/v1.0{workspace.scope}/experimentids/{{experiment}}/runs/{{run}}/token")
    def renew(experiment: str, run: str) -> Response:
        until = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + workspace.identity.lifetime))
        return JSONResponse({"token": workspace.identity.issue(MANAGEMENT), "expiryTimeUtc": until})

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    def nothing(path: str) -> Response:
        return Response(status_code=404)


def _beyond_search(asked: dict[str, Any]) -> str:
    """What of a search for runs the service does not support."""
    if "`" in asked.get("filter", "") or '"' in asked.get("filter", ""):
        return "Escaped names are not supported in filters."
    if any(not re.match(r"(attributes?\.)?\w+( (ASC|DESC))?$", order) for order in asked.get("order_by", [])):
        return "Runs can be ordered by attributes only."
    return ""


def _with_addresses(said: Any, workspace: Workspace) -> None:
    """Put the workspace's addresses of artifacts into an answer of the `mlflow server`."""
    for value in said.values() if isinstance(said, dict) else said if isinstance(said, list) else ():
        _with_addresses(value, workspace)
    if isinstance(said, dict) and {"artifact_uri", "experiment_id"} <= said.keys():
        said["artifact_uri"] = workspace.artifact_uri(said["experiment_id"], said["run_id"])


def mlflow_error(status: int, code: str, message: str) -> JSONResponse:
    """An error as the service's MLflow component sends it."""
    error = {"Code": "UserError", "Severity": None, "Message": message, "Details": [], "InnerError": None}
    said = {"Error": error, "Environment": REGION, "Location": REGION, "ComponentName": "mlflow", "statusCode": status}
    return JSONResponse(said | {"error_code": code}, status)
