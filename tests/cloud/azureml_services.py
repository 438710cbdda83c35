"""A stand-in of an Azure ML workspace's web services on ACI and AKS: the model management service (MMS), as azureml-mlflow's
deployment client asks for them, and the address that they answer photos at.

The settings and states: https://learn.microsoft.com/azure/machine-learning/v1/reference-azure-machine-learning-cli#inference-configuration-schema
and https://learn.microsoft.com/azure/machine-learning/v1/how-to-troubleshoot-deployment. The paths and the shapes of answers
are those of the client's own generated code (``azureml/mlflow/_restclient/mms``); no other description is published.
"""

import json
import secrets
import uuid
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import pandas as pd
import requests
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from tests.cloud.azureml_tracking import Workspace

CHANGEABLE = {
    "ACI": {"environmentImageRequest", "authEnabled", "sslEnabled", "sslCertificate", "sslKey", "cname", "kvTags"}
    | {"appInsightsEnabled", "description"},
    "AKS": {"environmentImageRequest", "authEnabled", "aadAuthEnabled", "containerResourceRequirements", "autoScaler"}
    | {"numReplicas", "maxConcurrentRequestsPerContainer", "maxQueueWaitMs", "scoringTimeoutMs", "namespace", "kvTags"}
    | {"livenessProbeRequirements", "dataCollection", "appInsightsEnabled", "description"},
}
"""What a JSON patch may replace in a service."""
CLUSTER = "cars-aks"
"""The AKS cluster that is attached to the workspace."""


@dataclass
class Services:
    """The web services of a workspace.

    Attributes:
        workspace: that they are in.
        address: ``https://HOST:PORT`` of `scoring_service`.
        kept: the services by name, as the service shows them.
        keys: by the service's name.
        pace: how many times a service that is created or updated shows ``Transitioning``.
        end: the state that comes then, and the error it comes with.
    """

    workspace: Workspace
    address: str = ""
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    operations: dict[str, str] = field(default_factory=dict)
    pace: int = 2
    end: tuple[str, dict[str, Any] | None] = ("Healthy", None)

    def reset(self) -> None:
        """Forget all services, and how operations end."""
        self.__init__(self.workspace, self.address)  # type: ignore[misc]

    def ends_as(self, state: str, code: str = "", message: str = "", detail: str = "") -> None:
        """Say how the services that are created or updated from now on end."""
        details = [{"code": "CrashLoopBackOff", "message": detail}] if detail else []
        self.end = state, {"code": code, "statusCode": 400, "message": message, "details": details} if code else None

    def begin(self, name: str, kind: str) -> Response:
        """Start an operation on a service, which ends after `pace` looks at it."""
        self.kept[name] |= {"state": "Transitioning", "error": None, "left": self.pace}
        return self.accept(name, kind)

    def accept(self, name: str, kind: str) -> Response:
        """The answer to what takes time."""
        operation = str(uuid.uuid4())
        self.operations[operation] = kind
        where = f"/api{self.workspace.scope}/operations/{operation}"
        return Response(status_code=202, headers={"Operation-Location": where, "Retry-After": "1"})

    def look(self, name: str) -> dict[str, Any]:
        """A service as it is now."""
        service = self.kept[name]
        if service["state"] == "Transitioning":
            service["left"] -= 1
            if service["left"] < 0:
                service["state"], service["error"] = crashed(service) or self.end
                if service["state"] == "Healthy":
                    service["scoringUri"] = f"{self.address}/api/v1/service/{name}/score"
        return {key: value for key, value in service.items() if key not in ("left", "keys")}


def crashed(service: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """How the container ends that can't start: server 0.6, which azureml-mlflow asks for, on Python 3.11, which Keras needs."""
    conda = service["environmentImageRequest"]["environment"]["python"]["condaDependencies"]["dependencies"]
    pip = next(one["pip"] for one in conda if isinstance(one, dict))
    if not any(one.startswith("azureml-inference-server-http~=0.6") for one in pip):
        return None
    said = "ImportError: cannot import name 'formatargspec' from 'inspect'"
    details = [{"code": "CrashLoopBackOff", "message": f"Your container application crashed. {said}"}]
    return "Failed", {"code": "DeploymentFailed", "statusCode": 400, "message": "Failed.", "details": details}


def failure(status: int, code: str, message: str, detail: tuple[str, str] | None = None) -> JSONResponse:
    """An error as the service sends it."""
    details = [{"code": detail[0], "message": detail[1]}] if detail else []
    said = {"code": code, "statusCode": status, "message": message, "details": details}
    return JSONResponse(said | {"correlation": {"RequestId": str(uuid.uuid4())}}, status)


def add_services(app: FastAPI, services: Services) -> None:
    """Add web services, and the upload of their scripts, to the service of the workspace's region."""
    workspace = services.workspace
    root = f"/modelmanagement/v1.0{workspace.scope}"

    @app.post(f"/artifact/v2.0{workspace.scope}/artifacts/LocalUpload/{{container}}/batch/metadata")
    async def make_artifacts(container: str, request: Request) -> Response:
        records, signed = {}, {}
        for path in [item["path"] for item in (await request.json())["paths"]]:
            name = f"LocalUpload/{container}/{path}"
            records[path] = {"artifactId": name, "origin": "LocalUpload", "container": container, "path": path}
            signed[path] = records[path] | {"contentUri": workspace.blobs.sign(f"azureml/{name}", "rcw")}
        return JSONResponse({"artifacts": records, "artifactContentInformation": signed, "errors": {}})

    @app.post(f"{root}/services")
    async def create(request: Request) -> Response:
        body = await request.json()
        if said := await run_in_threadpool(wrong, body, services):
            return failure(400, "BadRequest", "The request is invalid.", ("InvalidServiceRequest", said))
        name = body["name"]
        if name in services.kept:
            said = f"A service with name {name} already exists in this workspace."
            return failure(409, "Conflict", "Conflict", ("ServiceExists", said))
        keys = body.pop("keys", None) or {"primaryKey": new_key(), "secondaryKey": new_key()}
        services.keys[name] = keys
        times = {"createdTime": "2026-01-01T00:00:00Z", "updatedTime": "2026-01-01T00:00:00Z"}
        who = {"userName": "a service principal", "userTenantId": workspace.identity.tenant}
        made = {"id": name, "createdBy": who, "models": models_of(body), "scoringUri": None}
        services.kept[name] = body | times | made
        return services.begin(name, "Service")

    @app.get(f"{root}/services/{{name}}")
    def get(name: str, expand: str = "false") -> Response:
        if name not in services.kept:
            return missing(name)
        shown = services.look(name)
        return JSONResponse(shown if expand.lower() == "true" else shown | {"models": None})

    @app.patch(f"{root}/services/{{name}}")
    async def update(name: str, request: Request) -> Response:
        if name not in services.kept:
            return missing(name)
        service = services.kept[name]
        if service["state"] == "Transitioning":
            return failure(409, "Conflict", "Conflict", ("ServiceBusy", f"Service {name} is being updated."))
        patches = await request.json()
        for patch in patches:
            first, *rest = patch["path"].strip("/").split("/")
            if patch["op"] not in ("replace", "add") or first not in CHANGEABLE[service["computeType"]]:
                return failure(400, "BadRequest", f"Invalid patch of {patch['path']}")
            where = service.setdefault(first, {}) if rest else service
            where[rest[0] if rest else first] = patch["value"]
        if said := await run_in_threadpool(wrong, service, services):
            return failure(400, "BadRequest", "The request is invalid.", ("InvalidServiceRequest", said))
        service["models"] = models_of(service)
        return services.begin(name, "Service")

    @app.delete(f"{root}/services/{{name}}")
    def delete(name: str) -> Response:
        if name not in services.kept:
            return Response(status_code=204)
        compute = services.kept.pop(name)["computeType"]
        return services.accept(name, "DeleteService") if compute == "AKS" else Response(status_code=200)

    @app.get(f"{root}/operations/{{operation}}")
    def look(operation: str) -> Response:
        if operation not in services.operations:
            return failure(404, "NotFound", "The specified resource was not found.")
        return JSONResponse({"id": operation, "operationType": services.operations[operation], "state": "Succeeded"})

    @app.post(f"{root}/services/{{name}}/listkeys")
    def list_keys(name: str) -> Response:
        return JSONResponse(services.keys[name]) if name in services.keys else missing(name)


def scoring_service(services: Services, server: str) -> FastAPI:
    """Make the address of the services: the key's check, then the scoring script that the client made for the model.

    The script (``create_execution_script`` in ``azureml/mlflow/deploy/_mms/utils.py``) takes ``{"input_data": frame}`` with the
    frame in pandas' ``split`` form, and answers with a list of records. What the model itself does, a real server of it does.

    Args:
        services: whose keys and states count.
        server: URL of `mlflow models serve`.
    """
    app = FastAPI()

    @app.post("/api/v1/service/{name}/score")
    async def score(name: str, request: Request) -> Response:
        service = services.kept.get(name)
        if service is None or service["state"] != "Healthy":
            return JSONResponse({"error": "no healthy upstream"}, 503)
        accepted = {f"Bearer {key}" for key in services.keys[name].values()}
        if service["authEnabled"] and request.headers.get("authorization") not in accepted:
            return JSONResponse({"error": "Unauthorized"}, 401)
        rows = (await request.json()).get("input_data", {})
        if not {"columns", "index", "data"} <= set(rows):
            # As azureml-inference-server-http 1.5.1 answers, with the script and the classifier.
            said = "An unexpected error occurred in scoring script. Check the logs for more info."
            return JSONResponse({"message": said}, 500)
        frame = pd.read_json(StringIO(json.dumps(rows)), orient="split", dtype=False)
        answer = await run_in_threadpool(
            requests.post,
            f"{server}/invocations",
            json={"dataframe_split": frame.to_dict(orient="split")},
            timeout=60,
        )
        return JSONResponse(answer.json()["predictions"] if answer.ok else answer.text, answer.status_code)

    return app


def wrong(body: dict[str, Any], services: Services) -> str:
    """What of a service's description the service would refuse; empty where nothing."""
    asked, blobs = body.get("environmentImageRequest") or {}, services.workspace.blobs.content
    compute, needs = body.get("computeType"), body.get("containerResourceRequirements") or {}
    urls = {asset["id"]: asset["url"] for asset in asked.get("assets", [])}
    lost = [url for url in urls.values() if url.replace("aml://artifact/", "azureml/") not in blobs]
    conda = ((asked.get("environment") or {}).get("python") or {}).get("condaDependencies") or {}
    pip = next((item["pip"] for item in conda.get("dependencies", []) if isinstance(item, dict)), [])
    unknown = [model for model in asked.get("modelIds", []) if not registered(model, services.workspace)]
    checks = {
        f"computeType {compute}": compute in CHANGEABLE,
        "name": 3 <= len(body.get("name", "")) <= 32,
        f"assets {lost} were not uploaded": urls and not lost,
        "driverProgram is no asset": asked.get("driverProgram") in urls,
        f"models {unknown}": asked.get("modelIds") and not unknown,
        "the environment lacks azureml-inference-server-http": any("azureml-inference-server-http" in p for p in pip),
        "cpu and memoryInGB are required": needs.get("cpu", 0) > 0 and needs.get("memoryInGB", 0) > 0,
        f"compute {body.get('computeName')} not found": compute == "ACI" or body.get("computeName") == CLUSTER,
    }
    return "; ".join(said for said, right in checks.items() if not right)


def registered(model: str, workspace: Workspace) -> bool:
    """Whether the workspace has this ``NAME:VERSION``."""
    name, _, version = model.rpartition(":")
    asked = {"name": name, "version": version}
    return requests.get(f"{workspace.server}/api/2.0/mlflow/model-versions/get", asked, timeout=10).ok


def models_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The models of a service as its description lists them."""
    split = [model.rpartition(":") for model in body["environmentImageRequest"]["modelIds"]]
    return [
        {"id": f"{name}:{version}", "name": name, "version": int(version), "url": "aml://asset/0", "mimeType": "json"}
        for name, _, version in split
    ]


def new_key() -> str:
    return f"service-key-{secrets.token_urlsafe(24)}"


def missing(name: str) -> JSONResponse:
    said = f"Service {name} was not found."
    return failure(404, "NotFound", "The specified resource was not found.", ("NoSuchService", said))
