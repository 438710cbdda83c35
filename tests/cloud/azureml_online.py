"""Azure Resource Manager's part of online endpoints of Azure ML, managed and on Kubernetes.

It keeps endpoints, deployments, traffic and keys, runs long operations step by step, and refuses what the published API does:
https://learn.microsoft.com/rest/api/azureml/online-endpoints, …/online-deployments. What it is sent is checked against the
required properties there; the answers have the properties that clients read.
"""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from tests.cloud.azureml_tracking import MANAGEMENT, REGION, refused

INFERENCE = f"{REGION}.inference.ml.azure.com"
AUTH_MODES = ("Key", "AMLToken", "AADToken")
Body = dict[str, Any]


class RefusedError(Exception):
    """An error of the service: status, code, message."""


@dataclass
class Resource:
    """An endpoint or a deployment: the body that created it, and its state."""

    body: Body
    state: str = "Creating"
    log: str = ""
    deployments: dict[str, "Resource"] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def begin(self, body: Body, exists: bool) -> None:
        """Start to create or update it.

        Raises:
            RefusedError: another operation on it still runs.
        """
        if exists and self.state in ("Creating", "Updating"):
            raise RefusedError(409, "Conflict", "It is already being updated.")
        self.body, self.state = {k: v for k, v in body.items() if k != "id"}, "Updating" if exists else "Creating"


@dataclass
class Online:
    """The endpoints of a workspace.

    Attributes:
        scope: path of the workspace.
        models: registered models, ``NAME:VERSION``, that deployments may name.
        polls: how often an operation is looked at before it ends.
        broken: log of the container, for deployments that are to fail.
        stuck: whether operations never end.
    """

    scope: str
    models: tuple[str, ...] = ("cars:1", "cars:2", "cars:3")
    polls: int = 2
    broken: str = ""
    stuck: bool = False
    endpoints: dict[str, Resource] = field(default_factory=dict)
    operations: dict[str, Body] = field(default_factory=dict)

    def reset(self) -> None:
        """Forget all endpoints, and how operations end."""
        self.__init__(self.scope)  # type: ignore[misc]

    def start(self, end: Callable[[], object]) -> dict[str, str]:
        """Begin a long operation, which calls `end`; return the headers that lead to it."""
        number = f"op-{len(self.operations) + 1}"
        self.operations[number] = {"polls": self.polls, "end": end, "error": None}
        url = f"{MANAGEMENT}/operations/{number}?api-version=2025-12-01"
        return {"Azure-AsyncOperation": url, "Location": url, "x-ms-retry-after-ms": "20"}

    def advance(self) -> None:
        """Bring all operations a step further."""
        for running in () if self.stuck else self.operations.values():
            running["polls"] -= 1
            if running["polls"] < 0 and running["end"]:
                running["error"], running["end"] = running["end"](), None

    def endpoint(self, name: str) -> Resource:
        """Return an endpoint.

        Raises:
            RefusedError: there is none.
        """
        if name not in self.endpoints:
            raise RefusedError(404, "ResourceNotFound", f"The Resource 'onlineEndpoints/{name}' was not found.")
        return self.endpoints[name]

    def shown_endpoint(self, name: str) -> Body:
        """Return an endpoint as the service shows it."""
        endpoint = self.endpoint(name)
        own = {
            "provisioningState": endpoint.state,
            "scoringUri": f"https://{name}.{INFERENCE}/score",
            "traffic": endpoint.traffic,
        }
        shown = {"id": f"{self.scope}/onlineEndpoints/{name}", "name": name, "type": "onlineEndpoints"}
        return endpoint.body | shown | {"properties": endpoint.body["properties"] | own}

    def shown_deployment(self, name: str, colour: str) -> Body:
        """Return a deployment as the service shows it."""
        deployment = self.endpoint(name).deployments.get(colour)
        if deployment is None:
            raise RefusedError(404, "ResourceNotFound", f"The deployment {colour} was not found.")
        own = {"scaleSettings": {"scaleType": "Default"}, "appInsightsEnabled": False}
        own |= deployment.body["properties"] | {"provisioningState": deployment.state}
        shown = {"id": f"{self.scope}/onlineEndpoints/{name}/deployments/{colour}", "name": colour}
        return deployment.body | shown | {"properties": own}


def add_online(app: FastAPI, online: Online) -> None:
    """Add long operations, endpoints and deployments to the service."""
    endpoints = f"{online.scope}/onlineEndpoints"

    @app.exception_handler(RefusedError)
    def refuse(_: Request, error: RefusedError) -> JSONResponse:
        return refused(*error.args)

    @app.get("/operations/{number}")
    def operation(number: str) -> JSONResponse:
        running = online.operations[number]
        online.advance()
        if running["end"]:
            return JSONResponse({"status": "InProgress"}, headers={"x-ms-retry-after-ms": "20"})
        if running["error"]:
            return JSONResponse({"status": "Failed", "error": running["error"]})
        return JSONResponse({"status": "Succeeded"})

    @app.get(f"{endpoints}/{{name}}")
    def get_endpoint(name: str) -> Body:
        online.advance()
        return online.shown_endpoint(name)

    @app.put(f"{endpoints}/{{name}}")
    async def put_endpoint(name: str, request: Request) -> JSONResponse:
        body, exists = await request.json(), name in online.endpoints
        properties = required(body, "properties", dict)
        if required(body, "location", str) != REGION or required(properties, "authMode", str) not in AUTH_MODES:
            raise RefusedError(400, "BadRequest", "The location or authMode is invalid.")
        keys = {"primaryKey": secrets.token_hex(16), "secondaryKey": secrets.token_hex(16)}
        resource = online.endpoints.get(name) or Resource(body, keys=keys)
        traffic = {colour: int(share) for colour, share in (properties.get("traffic") or {}).items()}
        if unknown := set(traffic) - set(resource.deployments):
            raise RefusedError(400, "BadArgument", f"The traffic names unknown deployments: {sorted(unknown)}.")
        if sum(traffic.values()) not in (0, 100):
            raise RefusedError(400, "BadArgument", f"Traffic must add up to 0 or 100, not {sum(traffic.values())}.")
        resource.begin(body, exists)
        online.endpoints[name], resource.traffic = resource, traffic

        def end() -> None:
            resource.state = "Succeeded"

        return JSONResponse(online.shown_endpoint(name), 200 if exists else 201, online.start(end))

    @app.delete(f"{endpoints}/{{name}}")
    def delete_endpoint(name: str) -> JSONResponse:
        if name not in online.endpoints:
            return JSONResponse(None, 204)
        return JSONResponse(None, 202, online.start(lambda: online.endpoints.pop(name) and None))

    @app.post(f"{endpoints}/{{name}}/listKeys")
    def list_keys(name: str) -> dict[str, str]:
        return online.endpoint(name).keys

    @app.get(f"{endpoints}/{{name}}/deployments")
    def list_deployments(name: str) -> Body:
        return {"value": [online.shown_deployment(name, colour) for colour in online.endpoint(name).deployments]}

    @app.get(f"{endpoints}/{{name}}/deployments/{{colour}}")
    def get_deployment(name: str, colour: str) -> Body:
        return online.shown_deployment(name, colour)

    @app.put(f"{endpoints}/{{name}}/deployments/{{colour}}")
    async def put_deployment(name: str, colour: str, request: Request) -> JSONResponse:
        body, endpoint = await request.json(), online.endpoint(name)
        check_deployment(body, endpoint, online)
        exists = colour in endpoint.deployments
        resource = endpoint.deployments.setdefault(colour, Resource(body))
        resource.begin(body, exists)

        def end() -> dict[str, str] | None:
            resource.state, resource.log = ("Failed", online.broken) if online.broken else ("Succeeded", "ready")
            said = "User container has crashed or terminated; see its logs."
            return {"code": "UserContainerError", "message": said} if online.broken else None

        return JSONResponse(online.shown_deployment(name, colour), 200 if exists else 201, online.start(end))

    @app.post(f"{endpoints}/{{name}}/deployments/{{colour}}/getLogs")
    def get_logs(name: str, colour: str) -> dict[str, str]:
        online.shown_deployment(name, colour)
        return {"content": online.endpoint(name).deployments[colour].log}

    @app.delete(f"{endpoints}/{{name}}/deployments/{{colour}}")
    def delete_deployment(name: str, colour: str) -> JSONResponse:
        endpoint = online.endpoint(name)
        if endpoint.traffic.get(colour):
            raise RefusedError(400, "BadRequest", f"The deployment {colour} still gets traffic.")
        return JSONResponse(None, 202, online.start(lambda: endpoint.deployments.pop(colour) and None))


def scoring_service(online: Online, server: str) -> FastAPI:
    """Make the address of all endpoints: it checks key and deployment, then asks a real server of the model.

    Azure ML's server of MLflow models takes ``input_data`` and answers with the rows alone
    (https://learn.microsoft.com/azure/machine-learning/how-to-deploy-mlflow-models); MLflow's, behind it here, wraps both.
    """
    app = FastAPI()

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        endpoint = online.endpoints.get(request.headers["host"].partition(".")[0])
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if endpoint is None or key not in endpoint.keys.values():
            return JSONResponse({"message": "Please check the key or token, or the endpoint."}, 401)
        shared = next((colour for colour, share in endpoint.traffic.items() if share), "")
        colour = request.headers.get("azureml-model-deployment") or shared
        if colour not in endpoint.deployments or endpoint.deployments[colour].state != "Succeeded":
            return JSONResponse({"message": f"no deployment {colour!r} to answer"}, 404)
        rows = (await request.json())["input_data"]
        asked = {"dataframe_split": {name: value for name, value in rows.items() if name != "index"}}
        response = await run_in_threadpool(requests.post, f"{server}/invocations", json=asked, timeout=60)
        answer = response.json()
        return JSONResponse(answer.get("predictions", answer), response.status_code)

    return app


def required(body: Body, name: str, kind: type) -> Any:
    """Return a property that the API requires."""
    if not isinstance(body.get(name), kind):
        raise RefusedError(400, "BadRequest", f"The required property {name} is missing or no {kind.__name__}.")
    return body[name]


def check_deployment(body: Body, endpoint: Resource, online: Online) -> None:
    """Check what is sent for a deployment: kind, model, size, and that it suits its endpoint."""
    properties = required(body, "properties", dict)
    kind = required(properties, "endpointComputeType", str)
    if kind != ("Kubernetes" if endpoint.body["properties"].get("compute") else "Managed"):
        raise RefusedError(400, "BadRequest", f"A {kind} deployment does not suit the endpoint.")
    model = re.fullmatch(rf"{online.scope}/models/([^/]+)/versions/(\d+)", required(properties, "model", str))
    if not model or f"{model[1]}:{model[2]}" not in online.models:
        raise RefusedError(400, "BadRequest", f"The model {properties['model']} was not found.")
    if kind == "Managed":
        required(properties, "instanceType", str)
    if int(required(required(body, "sku", dict), "capacity", int)) < 1 or required(body, "location", str) != REGION:
        raise RefusedError(400, "BadRequest", "The sku's capacity or the location is invalid.")
