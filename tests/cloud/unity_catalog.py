"""A stand-in of Unity Catalog's model registry, as MLflow's client speaks to it.

The calls: mlflow/protos/databricks_uc_registry_service.proto. Files of a version are written and read by signed addresses
(default storage), which the Files API gives. What it asks of models:
https://learn.microsoft.com/azure/databricks/machine-learning/manage-model-lifecycle/
"""

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

if TYPE_CHECKING:
    from tests.cloud.databricks_tracking import Account


@dataclass
class Catalog:
    """Registered models by full name: ``{"aliases", "tags", "versions"}``."""

    models: dict[str, dict[str, Any]] = field(default_factory=dict)

    def model(self, name: str) -> dict[str, Any]:
        """A registered model as the service describes it."""
        known = self.models[name]
        aliases = [{"alias": alias, "version": version} for alias, version in known["aliases"].items()]
        return {"name": name, "creation_timestamp": known["created"], "aliases": aliases, "tags": []}

    def version(self, name: str, version: str) -> dict[str, Any]:
        """A version as the service describes it."""
        known = self.models[name]
        aliases = [{"alias": alias, "version": v} for alias, v in known["aliases"].items() if v == version]
        return known["versions"][version] | {"aliases": aliases}


def catalog_routes(app: FastAPI, account: "Account") -> None:
    """Add the registry's calls to a workspace's service."""
    catalog, api = account.catalog, "/api/2.0/mlflow/unity-catalog"

    @app.get(f"{api}/registered-models:is-databricks-sdk-models-artifact-repository-enabled")
    def files_by_sdk() -> dict[str, bool]:
        return {"is_databricks_sdk_models_artifact_repository_enabled": False}

    @app.api_route(f"{api}/{{call:path}}", methods=["GET", "POST", "PATCH", "DELETE"])
    async def call(call: str, request: Request) -> Response:
        if no := account.refusal(request):
            return no
        asked = dict(request.query_params) | (await request.json() if await request.body() else {})
        return JSONResponse(**_answer(catalog, request.method, call, asked))


def _answer(catalog: Catalog, method: str, call: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Status and content of the answer to a call."""
    name = asked.get("name", "")
    if name and not re.fullmatch(r"[^./ ]+\.[^./ ]+\.[^./ ]+", name):
        said = f"Registered model name must be of the form catalog.schema.model, not {name!r}"
        return _refused(400, "INVALID_PARAMETER_VALUE", said)
    if (method, call) == ("POST", "registered-models/create"):
        return _create_model(catalog, name)
    if name and name not in catalog.models:
        return _refused(404, "RESOURCE_DOES_NOT_EXIST", f"Registered model {name} does not exist")
    kind, _, what = call.partition("/")
    if kind == "registered-models":
        return _of_model(catalog, method, what, asked)
    if what == "search":
        named = re.fullmatch(r"name ?= ?'([^']+)'", asked["filter"])
        assert named, asked
        versions = catalog.models[named[1]]["versions"]
        return _given("model_versions", [catalog.version(named[1], version) for version in versions])
    return _create_version(catalog, asked) if what == "create" else _of_version(catalog, what, asked)


def _create_model(catalog: Catalog, name: str) -> dict[str, Any]:
    if name in catalog.models:
        return _refused(400, "RESOURCE_ALREADY_EXISTS", f"Registered model {name} already exists")
    catalog.models[name] = {"aliases": {}, "versions": {}, "created": int(time.time() * 1000)}
    return _given("registered_model", catalog.model(name))


def _of_model(catalog: Catalog, method: str, what: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The calls that name a model, or search for all."""
    if what == "search":
        return _given("registered_models", [catalog.model(known) for known in catalog.models])
    if what == "get":
        return _given("registered_model", catalog.model(asked["name"]))
    aliases = catalog.models[asked["name"]]["aliases"]
    if method == "POST":
        aliases[asked["alias"]] = str(asked["version"])
        return {"content": {}}
    if asked["alias"] not in aliases:
        return _refused(404, "RESOURCE_DOES_NOT_EXIST", f"Alias {asked['alias']} does not exist")
    return _given("model_version", catalog.version(asked["name"], aliases[asked["alias"]]))


def _create_version(catalog: Catalog, asked: dict[str, Any]) -> dict[str, Any]:
    versions = catalog.models[asked["name"]]["versions"]
    number = str(len(versions) + 1)
    given = ("name", "source", "run_id", "tags", "model_id", "run_tracking_server_id")
    kept = {key: asked[key] for key in given if key in asked}
    place = f"abfss://catalog@carmodelstore.dfs.core.windows.net/{asked['name']}/{number}"
    state = {"version": number, "status": "PENDING_REGISTRATION", "storage_location": place}
    versions[number] = kept | state | {"creation_timestamp": int(time.time() * 1000)}
    return _given("model_version", catalog.version(asked["name"], number))


def _of_version(catalog: Catalog, what: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The calls that name a version."""
    name, number = asked["name"], str(asked["version"])
    if number not in catalog.models[name]["versions"]:
        return _refused(404, "RESOURCE_DOES_NOT_EXIST", f"Version {number} of {name} does not exist")
    known = catalog.models[name]["versions"][number]
    if what == "generate-temporary-credentials":
        return _given("credentials", {"storage_mode": "DEFAULT_STORAGE"})
    if what == "get-download-uri":
        return _given("artifact_uri", known["storage_location"])
    if what == "finalize":
        known["status"] = "READY"
    elif what != "get":
        return _refused(404, "ENDPOINT_NOT_FOUND", f"No API found for model-versions/{what}")
    return _given("model_version", catalog.version(name, number))


def _given(what: str, value: Any) -> dict[str, Any]:
    return {"content": {what: value}}


def _refused(status: int, code: str, message: str) -> dict[str, Any]:
    return {"content": {"error_code": code, "message": message}, "status_code": status}
