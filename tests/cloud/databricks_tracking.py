"""A stand-in of an Azure Databricks workspace's tracking: runs, logged models, artifacts and the workspace's own registry.

Runs, logged models and the registry are answered by a real `mlflow server`; here is what differs, as Databricks documents it:

- experiments are paths in the workspace (https://learn.microsoft.com/azure/databricks/mlflow/experiments);
- artifacts are read and written by the Files API (https://docs.databricks.com/api/azure/workspace/files), or, where that is
  refused, by signed addresses that the service gives (mlflow/protos/databricks_artifacts.proto);
- models in Unity Catalog have an API of their own: `tests.cloud.unity_catalog`.
"""

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import requests
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from tests.cloud.blobs import Blobs
from tests.cloud.unity_catalog import Catalog, catalog_routes

HOST = "adb-1234567890123456.7.azuredatabricks.net"
ORGANISATION = "1234567890123456"


@dataclass
class Account:
    """A workspace and who may use it.

    Attributes:
        server: URL of the `mlflow server` behind it.
        blobs: its storage.
        token: a personal access token, or one that Entra ID gave.
        signed: regular expression of the artifacts that the Files API refuses, so that they need signed addresses.
        catalog: the models in Unity Catalog.
    """

    server: str
    blobs: Blobs
    token: str = field(default_factory=lambda: f"dapi{secrets.token_hex(16)}-2")
    signed: str = r"/data/|MLmodel|contact_sheet"
    catalog: Catalog = field(default_factory=Catalog)

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request without the right token."""
        if request.headers.get("authorization") == f"Bearer {self.token}":
            return None
        return refused(403, "PERMISSION_DENIED", "Invalid access token.")

    def folder(self, path: str) -> list[dict[str, Any]]:
        """What is directly in a folder of the storage: ``path`` relative to it, ``is_dir``, ``file_size``."""
        names = [name.removeprefix(f"{path}/") for name in self.blobs.content if name.startswith(f"{path}/")]
        files = [name for name in names if "/" not in name]
        found: list[dict[str, Any]] = [
            {"path": name, "is_dir": False, "file_size": len(self.blobs.content[f"{path}/{name}"])} for name in files
        ]
        return found + [{"path": name, "is_dir": True} for name in {n.split("/")[0] for n in names if "/" in n}]


def refused(status: int, code: str, message: str) -> JSONResponse:
    """An error as the service sends it."""
    return JSONResponse({"error_code": code, "message": message}, status)


def databricks_service(account: Account) -> FastAPI:
    """Make the service of a workspace."""
    app = FastAPI()
    api = "/api/2.0/mlflow"

    def ask(method: str, path: str, **what: Any) -> requests.Response:
        return requests.request(method, f"{account.server}{path}", timeout=60, **what)

    def root(run: str) -> str:
        found = ask("GET", f"{api}/runs/get", params={"run_id": run}).json()["run"]["info"]
        return f"root/databricks/mlflow-tracking/{found['experiment_id']}/{run}/artifacts"

    def root_of_model(model: str) -> str:
        found = ask("GET", f"{api}/logged-models/{model}").json()["model"]["info"]
        return f"root/databricks/mlflow-tracking/{found['experiment_id']}/logged_models/{model}/artifacts"

    def sign(folder: str, paths: Iterable[str], permissions: str) -> list[dict[str, Any]]:
        kind = {"type": "AZURE_SAS_URI", "headers": []}
        return [{"path": p, "signed_uri": account.blobs.sign(f"{folder}/{p}", permissions), **kind} for p in paths]

    @app.post(f"{api}/artifacts/credentials-for-{{purpose}}")
    async def for_run(purpose: str, request: Request) -> Response:
        if no := account.refusal(request):
            return no
        asked = await request.json()
        folder = await run_in_threadpool(root, asked["run_id"])
        signed = sign(folder, asked["path"], "cw" if purpose == "write" else "r")
        return JSONResponse({"credential_infos": [{"run_id": asked["run_id"], **one} for one in signed]})

    @app.post(f"{api}/logged-models/{{model}}/artifacts/credentials-for-{{purpose}}")
    async def for_model(model: str, purpose: str, request: Request) -> Response:
        if no := account.refusal(request):
            return no
        folder = await run_in_threadpool(root_of_model, model)
        signed = sign(folder, (await request.json())["paths"], "cw" if purpose == "upload" else "r")
        return JSONResponse({"credentials": [{"model_id": model, "credential_info": one} for one in signed]})

    @app.get(f"{api}/artifacts/list")
    def list_run(run_id: str, request: Request, path: str = "") -> Response:
        return account.refusal(request) or _listed(account, root(run_id), path)

    @app.get(f"{api}/logged-models/{{model}}/artifacts/directories")
    def list_model(model: str, request: Request, artifact_directory_path: str = "") -> Response:
        return account.refusal(request) or _listed(account, root_of_model(model), artifact_directory_path)

    def root_of_version(name: str, version: str) -> str:
        found = ask("GET", f"{api}/model-versions/get", params={"name": name, "version": version}).json()
        return found["model_version"]["source"].replace("dbfs:/", "root/", 1)

    @app.get(f"{api}/model-versions/list-artifacts")
    def list_version(name: str, version: str, request: Request, path: str = "") -> Response:
        return account.refusal(request) or _listed(account, root_of_version(name, version), path)

    @app.get(f"{api}/model-versions/get-signed-download-uri")
    def for_version(name: str, version: str, path: str, request: Request) -> Response:
        if no := account.refusal(request):
            return no
        return JSONResponse({"signed_uri": account.blobs.sign(f"{root_of_version(name, version)}/{path}", "r")})

    @app.get("/.well-known/databricks-config")
    def config() -> dict[str, str]:
        root = f"https://{HOST}"
        return {"oidc_endpoint": f"{root}/oidc", "workspace_id": ORGANISATION, "cloud": "azure"}

    _files_routes(app, account)
    catalog_routes(app, account)

    @app.api_route(f"{api}/{{method:path}}", methods=["GET", "POST", "PATCH", "DELETE"])
    async def mlflow(method: str, request: Request) -> Response:
        if no := account.refusal(request):
            return no
        body = await request.body()
        if method == "experiments/create" and not json.loads(body)["name"].startswith("/"):
            said = "An experiment name must be an absolute path within the Databricks workspace."
            return refused(400, "INVALID_PARAMETER_VALUE", said)
        if method == "runs/create" and json.loads(body).get("experiment_id") == "0":
            return refused(404, "RESOURCE_DOES_NOT_EXIST", "No experiment was found.")
        sent = {"params": request.query_params, "data": body, "headers": {"Content-Type": "application/json"}}
        answer = await run_in_threadpool(ask, request.method, f"{api}/{method}", **sent)
        if not answer.content.startswith(b"{"):
            return refused(404, "ENDPOINT_NOT_FOUND", f"No API found for '{request.method} {request.url.path}'")
        said = answer.json()
        _with_addresses(said)
        return JSONResponse(said, answer.status_code, {"x-databricks-org-id": ORGANISATION})

    return app


def _listed(account: Account, root: str, path: str) -> Response:
    """An answer of the tracking API to what is in a folder; of a file, itself."""
    if f"{root}/{path}" in account.blobs.content:
        size = len(account.blobs.content[f"{root}/{path}"])
        return JSONResponse({"root_uri": _uri(root), "files": [{"path": path, "is_dir": False, "file_size": size}]})
    found = account.folder(f"{root}/{path}" if path else root)
    files = [one | {"path": f"{path}/{one['path']}" if path else one["path"]} for one in found]
    return JSONResponse({"root_uri": _uri(root), "files": files})


def _uri(root: str) -> str:
    return root.replace("root/", "dbfs:/", 1)


def _files_routes(app: FastAPI, account: Account) -> None:
    """Add the Files API for the internal folders in which MLflow keeps artifacts."""
    internal = re.compile(r"WorkspaceInternal/Mlflow/Artifacts/([^/]+)/(Runs|LoggedModels)/(.*)")

    def blob(path: str) -> str:
        found = internal.fullmatch(path)
        if not found:
            return f"catalog/{path}"
        folder = "logged_models/" if found[2] == "LoggedModels" else ""
        return f"root/databricks/mlflow-tracking/{found[1]}/{folder}{found[3]}"

    def refusal(request: Request, path: str) -> Response | None:
        if no := account.refusal(request):
            return no
        allowed = not re.search(account.signed, path) if internal.fullmatch(path) else path.startswith("Models/")
        return None if allowed else refused(403, "PERMISSION_DENIED", f"No permission to access /{path}")

    @app.post("/api/2.0/fs/create-{purpose}-url")
    async def address(purpose: str, request: Request) -> Response:
        # MLflow sends the path in the body, the SDK in the query.
        path = request.query_params.get("path") or (await request.json())["path"]
        if no := refusal(request, path.removeprefix("/")):
            return no
        url = account.blobs.sign(blob(path.removeprefix("/")), "cw" if purpose == "upload" else "r")
        return JSONResponse({"url": url, "headers": [{"name": "x-ms-blob-type", "value": "BlockBlob"}]})

    @app.put("/api/2.0/fs/files/{path:path}")
    async def write(path: str, request: Request) -> Response:
        if no := refusal(request, path):
            return no
        account.blobs.content[blob(path)] = await request.body()
        return Response(status_code=204)

    @app.api_route("/api/2.0/fs/files/{path:path}", methods=["GET", "HEAD"])
    def read(path: str, request: Request) -> Response:
        if no := refusal(request, path):
            return no
        if (content := account.blobs.content.get(blob(path))) is None:
            return refused(404, "NOT_FOUND", f"The file being accessed is not found: /{path}")
        return Response(content, media_type="application/octet-stream")

    @app.api_route("/api/2.0/fs/directories/{path:path}", methods=["GET", "HEAD"])
    def folder(path: str, request: Request) -> Response:
        path = path.rstrip("/")
        if no := refusal(request, path):
            return no
        found = account.folder(blob(path))
        if not found:
            return refused(404, "NOT_FOUND", f"The directory being accessed is not found: /{path}")
        contents = [
            {"path": f"/{path}/{one['path']}", "is_directory": one["is_dir"], "file_size": one.get("file_size")}
            for one in found
        ]
        return JSONResponse({"contents": contents})


def _with_addresses(said: Any) -> None:
    """Put the workspace's addresses of artifacts into an answer of the `mlflow server`."""
    for value in said.values() if isinstance(said, dict) else said if isinstance(said, list) else ():
        _with_addresses(value)
    if not isinstance(said, dict) or "experiment_id" not in said or "artifact_uri" not in said:
        return
    inside = f"logged_models/{said['model_id']}" if "model_id" in said else said["run_id"]
    said["artifact_uri"] = f"dbfs:/databricks/mlflow-tracking/{said['experiment_id']}/{inside}/artifacts"
