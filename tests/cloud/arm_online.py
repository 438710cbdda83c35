"""A stand-in of Azure Resource Manager for online endpoints of Azure ML, managed and on Kubernetes.

It keeps endpoints, deployments, traffic and keys, runs long operations step by step, and refuses what the published API does:
https://learn.microsoft.com/rest/api/azureml/online-endpoints, …/online-deployments. What it is sent is checked against the
required properties there; the answers have the properties that clients read.
"""

import asyncio
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.cloud.identity import Identity

SUBSCRIPTION, GROUP, WORKSPACE = "0a0a0a0a-1111-2222-3333-444444444444", "cars", "carmodel"
LOCATION = "westeurope"
INFERENCE = f"{LOCATION}.inference.ml.azure.com"
PROVIDER = "Microsoft.MachineLearningServices"
WORKSPACE_ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/{PROVIDER}/workspaces/{WORKSPACE}"
TRACKING_URI = f"azureml://{LOCATION}.api.azureml.ms/mlflow/v1.0{WORKSPACE_ID}"
ENDPOINTS = f"{WORKSPACE_ID}/onlineEndpoints"
AUDIENCE = "https://management.azure.com"
API_VERSION = re.compile(r"^20\d\d-\d\d-\d\d(-preview)?$")
AUTH_MODES = ("Key", "AMLToken", "AADToken")


class RefusedError(Exception):
    """An error of the service: status, code, message."""


@dataclass
class Resource:
    """An endpoint or a deployment: the body that it was made of, and its state."""

    body: dict[str, Any]
    state: str = "Creating"
    log: str = ""
    deployments: dict[str, "Resource"] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


@dataclass
class Workspace:
    """The state of the service.

    Attributes:
        identity: whose tokens are accepted.
        models: registered models, ``NAME:VERSION``, that deployments may name.
        polls: how often an operation is looked at before it ends.
        broken: log of the container, for deployments that are to fail.
        stuck: whether operations never end.
    """

    identity: Identity
    models: set[str] = field(default_factory=set)
    polls: int = 2
    broken: str = ""
    stuck: bool = False
    endpoints: dict[str, Resource] = field(default_factory=dict)
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)

    def start(self, after: Callable[[], object]) -> dict[str, str]:
        """Begin a long operation, and do `after` when it ends; the headers that lead to it."""
        number = f"op-{len(self.operations) + 1}"
        self.operations[number] = {"polls": self.polls, "after": after, "error": None}
        url = f"{AUDIENCE}/operations/{number}?api-version=2025-12-01"
        return {"Azure-AsyncOperation": url, "Location": url, "x-ms-retry-after-ms": "50"}

    def go_on(self) -> None:
        """Bring all operations a step further."""
        for running in () if self.stuck else self.operations.values():
            running["polls"] -= 1
            if running["polls"] < 0 and running["after"]:
                running["error"], running["after"] = running["after"](), None

    def endpoint(self, name: str) -> Resource:
        """An endpoint that is there."""
        if name not in self.endpoints:
            raise RefusedError(404, "ResourceNotFound", f"The endpoint {name} was not found in workspace {WORKSPACE}.")
        return self.endpoints[name]


def arm_service(workspace: Workspace) -> FastAPI:
    """Make the service in front of a workspace's state."""
    app = FastAPI()

    @app.exception_handler(RefusedError)
    def refuse(_: Request, error: RefusedError) -> JSONResponse:
        status, code, message = error.args
        return JSONResponse({"error": {"code": code, "message": message}}, status)

    @app.middleware("http")
    async def check(request: Request, call_next: Any) -> Any:
        if why := workspace.identity.refusal(request.headers.get("authorization", ""), AUDIENCE):
            body = {
                "error": {"code": "ExpiredAuthenticationToken", "message": f"The access token is not valid: {why}."}
            }
            return JSONResponse(
                body, 401, {"WWW-Authenticate": 'Bearer authorization_uri="https://login.microsoftonline.com"'}
            )
        if (
            not API_VERSION.match(request.query_params.get("api-version", ""))
            and "/operations/" not in request.url.path
        ):
            return JSONResponse(
                {"error": {"code": "MissingApiVersionParameter", "message": "api-version is required"}}, 400
            )
        return await call_next(request)

    @app.get("/operations/{number}")
    def operation(number: str) -> JSONResponse:
        running = workspace.operations[number]
        workspace.go_on()
        if running["after"]:
            return JSONResponse({"status": "InProgress"}, headers={"x-ms-retry-after-ms": "50"})
        if running["error"]:
            return JSONResponse({"status": "Failed", "error": running["error"]})
        return JSONResponse({"status": "Succeeded"})

    @app.get(WORKSPACE_ID)
    def get_workspace() -> dict[str, Any]:
        properties = {
            "friendlyName": WORKSPACE,
            "discoveryUrl": f"https://{LOCATION}.api.azureml.ms/discovery",
            "mlFlowTrackingUri": TRACKING_URI,
        }
        return {"id": WORKSPACE_ID, "name": WORKSPACE, "location": LOCATION, "properties": properties}

    add_endpoints(app, workspace)
    add_deployments(app, workspace)
    return app


def add_endpoints(app: FastAPI, workspace: Workspace) -> None:
    """Endpoints, their traffic and keys."""

    def told(name: str) -> dict[str, Any]:
        endpoint = workspace.endpoint(name)
        properties = endpoint.body["properties"] | {
            "provisioningState": endpoint.state,
            "scoringUri": f"https://{name}.{INFERENCE}/score",
            "traffic": endpoint.traffic,
        }
        own = {
            "id": f"{ENDPOINTS}/{name}",
            "name": name,
            "type": "Microsoft.MachineLearningServices/workspaces/onlineEndpoints",
        }
        return endpoint.body | own | {"properties": properties}

    @app.get(f"{ENDPOINTS}/{{name}}")
    def get_endpoint(name: str) -> dict[str, Any]:
        workspace.go_on()
        return told(name)

    @app.put(f"{ENDPOINTS}/{{name}}")
    async def put_endpoint(name: str, request: Request) -> JSONResponse:
        body = await request.json()
        properties = required(body, "properties", dict)
        if required(body, "location", str) != LOCATION or required(properties, "authMode", str) not in AUTH_MODES:
            raise RefusedError(400, "BadRequest", "The location or authMode is invalid.")
        there = workspace.endpoints.get(name)
        if there and there.state in ("Creating", "Updating"):
            raise RefusedError(409, "Conflict", f"The endpoint {name} is already being updated.")
        traffic = {colour: int(share) for colour, share in (properties.get("traffic") or {}).items()}
        resource = there or Resource(
            {}, keys={"primaryKey": secrets.token_hex(16), "secondaryKey": secrets.token_hex(16)}
        )
        if unknown := set(traffic) - set(resource.deployments):
            raise RefusedError(
                400, "BadArgument", f"The traffic names deployments that are not there: {sorted(unknown)}."
            )
        if sum(traffic.values()) not in (0, 100):
            raise RefusedError(400, "BadArgument", f"Traffic must add up to 0 or 100, not {sum(traffic.values())}.")
        resource.state = "Updating" if there else "Creating"
        workspace.endpoints[name] = resource
        resource.body, resource.traffic = {k: v for k, v in body.items() if k != "id"}, traffic

        def done() -> None:
            resource.state = "Succeeded"

        return JSONResponse(told(name), 200 if there else 201, workspace.start(done))

    @app.delete(f"{ENDPOINTS}/{{name}}")
    def delete_endpoint(name: str) -> JSONResponse:
        if name not in workspace.endpoints:
            return JSONResponse(None, 204)
        return JSONResponse(None, 202, workspace.start(lambda: workspace.endpoints.pop(name) and None))

    @app.post(f"{ENDPOINTS}/{{name}}/listKeys")
    def list_keys(name: str) -> dict[str, str]:
        return workspace.endpoint(name).keys


def add_deployments(app: FastAPI, workspace: Workspace) -> None:
    """Deployments of endpoints, and what their containers say."""

    def told_deployment(name: str, colour: str) -> dict[str, Any]:
        deployment = workspace.endpoint(name).deployments.get(colour)
        if deployment is None:
            raise RefusedError(404, "ResourceNotFound", f"The deployment {colour} was not found.")
        defaults = {"scaleSettings": {"scaleType": "Default"}, "appInsightsEnabled": False}
        properties = defaults | deployment.body["properties"] | {"provisioningState": deployment.state}
        return deployment.body | {
            "id": f"{ENDPOINTS}/{name}/deployments/{colour}",
            "name": colour,
            "properties": properties,
        }

    @app.get(f"{ENDPOINTS}/{{name}}/deployments")
    def list_deployments(name: str) -> dict[str, Any]:
        return {"value": [told_deployment(name, colour) for colour in workspace.endpoint(name).deployments]}

    @app.get(f"{ENDPOINTS}/{{name}}/deployments/{{colour}}")
    def get_deployment(name: str, colour: str) -> dict[str, Any]:
        return told_deployment(name, colour)

    @app.put(f"{ENDPOINTS}/{{name}}/deployments/{{colour}}")
    async def put_deployment(name: str, colour: str, request: Request) -> JSONResponse:
        body, endpoint = await request.json(), workspace.endpoint(name)
        check_deployment(body, endpoint, workspace.models)
        there = endpoint.deployments.get(colour)
        if there and there.state in ("Creating", "Updating"):
            raise RefusedError(409, "Conflict", f"The deployment {colour} is already being updated.")
        resource = endpoint.deployments[colour] = Resource(body, "Updating" if there else "Creating")

        def done() -> dict[str, str] | None:
            resource.state, resource.log = ("Failed", workspace.broken) if workspace.broken else ("Succeeded", "ready")
            failed = {
                "code": "UserContainerError",
                "message": "User container has crashed or terminated; see its logs.",
            }
            return failed if workspace.broken else None

        return JSONResponse(told_deployment(name, colour), 200 if there else 201, workspace.start(done))

    @app.post(f"{ENDPOINTS}/{{name}}/deployments/{{colour}}/getLogs")
    def get_logs(name: str, colour: str) -> dict[str, str]:
        told_deployment(name, colour)
        return {"content": workspace.endpoint(name).deployments[colour].log}

    @app.delete(f"{ENDPOINTS}/{{name}}/deployments/{{colour}}")
    def delete_deployment(name: str, colour: str) -> JSONResponse:
        endpoint = workspace.endpoint(name)
        if endpoint.traffic.get(colour):
            raise RefusedError(400, "BadRequest", f"The deployment {colour} still gets traffic.")
        return JSONResponse(None, 202, workspace.start(lambda: endpoint.deployments.pop(colour) and None))


def scoring_service(workspace: Workspace, server: str) -> FastAPI:
    """The address of all endpoints: checks key and deployment, then asks a real server of the model.

    Azure ML's server of MLflow models takes ``input_data`` and answers with the rows alone
    (https://learn.microsoft.com/azure/machine-learning/how-to-deploy-mlflow-models); MLflow's, behind it here, wraps both.
    """
    app = FastAPI()

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        endpoint = workspace.endpoints.get(request.headers["host"].partition(".")[0])
        if (
            endpoint is None
            or request.headers.get("authorization", "").removeprefix("Bearer ") not in endpoint.keys.values()
        ):
            return JSONResponse({"message": "Please check the key or token, or the endpoint."}, 401)
        colour = request.headers.get("azureml-model-deployment") or next(
            (c for c, s in endpoint.traffic.items() if s), ""
        )
        if colour not in endpoint.deployments or endpoint.deployments[colour].state != "Succeeded":
            return JSONResponse({"message": f"no deployment {colour!r} to answer"}, 404)
        body = await request.json()
        asked = {"dataframe_split": {k: v for k, v in body.pop("input_data").items() if k != "index"}} | body
        response = await asyncio.to_thread(requests.post, f"{server}/invocations", json=asked, timeout=60)
        answer = response.json()
        return JSONResponse(
            answer.get("predictions", answer), response.status_code, {"azureml-model-deployment": colour}
        )

    return app


def required(body: dict[str, Any], name: str, kind: type) -> Any:
    """A property that the API requires."""
    if not isinstance(body.get(name), kind):
        raise RefusedError(400, "BadRequest", f"The required property {name} is missing or no {kind.__name__}.")
    return body[name]


def check_deployment(body: dict[str, Any], endpoint: Resource, models: set[str]) -> None:
    """Check what is sent for a deployment: kind, model, size; and that it suits its endpoint."""
    properties = required(body, "properties", dict)
    kind = required(properties, "endpointComputeType", str)
    on_kubernetes = "compute" in endpoint.body["properties"] and endpoint.body["properties"]["compute"]
    if kind != ("Kubernetes" if on_kubernetes else "Managed"):
        raise RefusedError(400, "BadRequest", f"A {kind} deployment does not suit the endpoint.")
    model = re.fullmatch(
        rf"{re.escape(WORKSPACE_ID)}/models/([^/]+)/versions/(\d+)", required(properties, "model", str)
    )
    if not model or f"{model[1]}:{model[2]}" not in models:
        raise RefusedError(400, "BadRequest", f"The model {properties['model']} was not found.")
    if kind == "Managed":
        required(properties, "instanceType", str)
    if int(required(required(body, "sku", dict), "capacity", int)) < 1 or required(body, "location", str) != LOCATION:
        raise RefusedError(400, "BadRequest", "The sku's capacity or the location is invalid.")
