"""A stand-in of Azure Resource Manager's part of Azure ML for command jobs (SDK and CLI v2).

The operations: https://learn.microsoft.com/en-us/rest/api/azureml/jobs/create-or-update, /jobs/get, /jobs/cancel,
/code-versions/create-or-get-start-pending-upload, /code-versions/create-or-update, /environment-versions/create-or-update.
Bodies are checked by reading them into the client's own models, which are generated from the published specification.
"""

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.cloud.azureml_runs import CLUSTERS, Jobs
from tests.cloud.azureml_tracking import HOST, refused

VERSION = re.compile(r"20\d\d-\d\d-\d\d(-preview)?")


@dataclass
class Resources:
    """What was created, by its path within the workspace.

    Attributes:
        jobs: of the workspace.
        kept: ``{path: body}``.
        mounts: ``{uri: folder}``: what a cluster mounts for a data input.
    """

    jobs: Jobs
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    mounts: dict[str, str] = field(default_factory=dict)

    def command_of(self, job: dict[str, Any]) -> str:
        """A job's command, its inputs put into it as the service does."""

        def value(match: re.Match) -> str:
            given = job["inputs"][match[1]]
            return given["value"] if given["jobInputType"] == "literal" else shlex.quote(self.mounts[given["uri"]])

        return re.sub(r"\$\{\{inputs\.(\w+)\}\}", value, job["command"])

    def project_of(self, code: str) -> dict[str, bytes]:
        """Return the files of an uploaded project, by path."""
        return self.files_at(self.kept[code]["properties"]["codeUri"])

    def files_at(self, uri: str) -> dict[str, bytes]:
        """Return the files that were uploaded to an address, by path."""
        folder = uri.partition("core.windows.net/")[2] + "/"
        files = self.jobs.workspace.blobs.content.items()
        return {name.removeprefix(folder): content for name, content in files if name.startswith(folder)}


def add_resources(app: FastAPI, resources: Resources) -> None:
    """Code, environments and jobs of a workspace."""
    jobs = resources.jobs
    scope = jobs.workspace.scope

    @app.middleware("http")
    async def check(request: Request, call_next):
        versioned = VERSION.fullmatch(request.query_params.get("api-version", ""))
        if request.url.path.startswith(f"{scope}/") and not versioned:
            return refused(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
        return await call_next(request)

    @app.get(f"{scope}/codes/{{name}}/versions")
    def versions(name: str, hash: str = "") -> dict[str, Any]:
        found = []
        for path, body in resources.kept.items():
            if body["properties"].get("properties", {}).get("hash_sha256") == hash:
                found.append(body | {"id": path, "name": path.rpartition("/")[2]})
        return {"value": found}

    @app.post(f"{scope}/codes/{{name}}/versions/{{version}}/startPendingUpload")
    def start_upload(name: str, version: str) -> dict[str, Any]:
        container = f"code-{name}-{version}"
        account = jobs.workspace.blobs.account
        reference = {
            "blobUri": f"https://{account}.blob.core.windows.net/{container}",
            "storageAccountArmId": f"{scope.partition('/providers/')[0]}/providers/Microsoft.Storage/storageAccounts/{account}",
            "credential": {"credentialType": "SAS", "sasUri": jobs.workspace.blobs.sign(container, "rcwl")},
        }
        return {"pendingUploadType": "TemporaryBlobReference", "blobReferenceForConsumption": reference}

    @app.api_route(f"{scope}/{{kind}}/{{name}}/versions/{{version}}", methods=["GET", "PUT"])
    async def version(kind: str, name: str, version: str, request: Request) -> Response:
        path = f"{scope}/{kind}/{name}/versions/{version}"
        if request.method == "PUT":
            model = {"codes": "CodeVersion", "environments": "EnvironmentVersion"}[kind]
            body = await request.json()
            if unknown := unread(model, body):
                return refused(400, "ValidationError", f"{kind}: unknown {unknown}")
            if kind == "codes" and "MLproject" not in resources.files_at(body["properties"]["codeUri"]):
                return refused(400, "UserError", "no project was uploaded")
            resources.kept[path] = body
        if path not in resources.kept:
            return refused(404, "UserError", f"{kind} {name}:{version} not found")
        own = {"id": path, "name": version, "type": f"Microsoft.MachineLearningServices/workspaces/{kind}/versions"}
        return JSONResponse(resources.kept[path] | own, 201 if request.method == "PUT" else 200)

    @app.api_route(f"{scope}/jobs/{{name}}", methods=["GET", "PUT"])
    async def job(name: str, request: Request) -> Response:
        path = f"{scope}/jobs/{name}"
        if request.method == "PUT":
            body = await request.json()
            own = body["properties"]
            if unknown := unread("JobBase", body):
                return refused(400, "ValidationError", f"job: unknown {unknown}")
            if own["computeId"].rpartition("/")[2] not in CLUSTERS:
                return refused(400, "UserError", f"The specified compute {own['computeId']} is not found.")
            if missing := [own[key] for key in ("codeId", "environmentId") if own[key] not in resources.kept]:
                return refused(400, "UserError", f"not found: {missing}")
            resources.kept[path] = body
            project = jobs.unpack(resources.project_of(own["codeId"]), name)
            experiment = jobs.experiment(own["experimentName"]) or jobs.make_experiment(own["experimentName"])
            jobs.track(experiment, name, own.get("tags", {}))
            target = own["computeId"].rpartition("/")[2]
            variables = own.get("environmentVariables", {})
            jobs.run(name, experiment, target, resources.command_of(own), project, **variables)
        if path not in resources.kept:
            return refused(404, "UserError", f"Job {name} not found.")
        studio = f"https://ml.azure.com/runs/{name}?wsid={scope}"
        services = {
            "Studio": {"jobServiceType": "Studio", "endpoint": studio},
            "Tracking": {"jobServiceType": "Tracking", "endpoint": f"azureml://{HOST}/mlflow/v1.0{scope}"},
        }
        kept = resources.kept[path]["properties"]
        said = kept | {"status": jobs.status(name), "services": services}
        kind = "Microsoft.MachineLearningServices/workspaces/jobs"
        system = {"createdAt": "2026-07-01T00:00:00+00:00", "createdBy": "Cars", "createdByType": "Application"}
        return JSONResponse({"id": path, "name": name, "type": kind, "properties": said, "systemData": system})

    @app.post(f"{scope}/jobs/{{name}}/cancel")
    def cancel(name: str) -> Response:
        jobs.running[name].cancel()
        return Response(status_code=200)


def unread(model: str, body: dict[str, Any]) -> set[str]:
    """Return the properties that the client's model of a resource does not know."""
    from azure.ai.ml._restclient.arm_ml_service import models  # takes seconds

    read = getattr(models, model)(body).properties
    known = {field._rest_name for field in type(read)._attr_to_rest_field.values()}
    return set(body["properties"]) - known
