"""A stand-in of the job submission of an Azure ML workspace as its SDK v1 asks for it (`mlflow run -b azureml`).

The SDK is out of support since 2026-06-30 and the services behind it were never published but for Azure Resource Manager's
part (https://learn.microsoft.com/en-us/rest/api/azureml/workspaces/get); what is known of the others is azureml-core's
source. What a job is, and its history, is in `tests.cloud.azureml_runs`.
"""

import hashlib
import uuid
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.cloud.azureml_runs import CLUSTERS, NOW, Jobs
from tests.cloud.azureml_tracking import HOST, MANAGEMENT, REGION, Workspace, refused


def add_management(app: FastAPI, workspace: Workspace) -> None:
    """Add what all clients ask of Azure Resource Manager: which clouds there are, the subscription and the workspace."""

    @app.get("/metadata/endpoints")
    def endpoints() -> list[dict[str, object]]:
        login = {"loginEndpoint": "https://login.microsoftonline.com/", "audiences": [f"{MANAGEMENT}/"]}
        suffixes = {"storage": "core.windows.net", "keyVaultDns": "vault.azure.net"}
        return [{"name": "AzureCloud", "authentication": login, "suffixes": suffixes, "resourceManager": MANAGEMENT}]

    @app.get("/subscriptions")
    def subscriptions() -> Response:
        own = {"subscriptionId": workspace.subscription, "tenantId": workspace.identity.tenant, "state": "Enabled"}
        return JSONResponse(
            {"value": [own | {"id": f"/subscriptions/{workspace.subscription}", "displayName": "Cars"}]}
        )

    @app.get(workspace.scope)
    def get_workspace() -> Response:
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
    """Environments, clusters, snapshots and the submission in the workspace's region."""
    workspace, scope = jobs.workspace, jobs.workspace.scope

    @app.get("/discovery")
    def discovery() -> dict[str, str]:
        names = ("api", "experimentation", "history", "hyperdrive", "modelmanagement")
        return dict.fromkeys(names, f"https://{HOST}") | {"studio": "https://ml.azure.com"}

    @app.put(f"/environment/v1.0{scope}/environments/{{name}}")
    async def register(name: str, request: Request) -> Response:
        body = await request.json()
        if body["python"]["userManagedDependencies"]:
            if "REGISTRY.azurecr.io" not in body["Docker"]["baseImage"]:
                return refused(400, "UserError", "an environment without packages")
        elif not body["python"]["condaDependencies"]["dependencies"]:
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
        names, upload = (await request.json())["FileNames"], f"snapshots/{uuid.uuid4()}"
        return {"fileNodes": [{"fullName": n, "blobUri": workspace.blobs.sign(f"{upload}/{n}", "rcw")} for n in names]}

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
        asked = body["Configuration"]
        if asked["target"] not in CLUSTERS:
            return refused(400, "UserError", f"no compute {asked['target']}")
        if asked["environment"]["name"] not in jobs.environments:
            return refused(400, "UserError", "the environment is not registered")
        if body["SnapshotId"] not in jobs.snapshots:
            return refused(400, "UserError", f"no snapshot {body['SnapshotId']}")
        if (experiment_id := jobs.experiment(experiment_name)) is None:
            return refused(404, "UserError", f"no experiment {experiment_name}")
        run_id = request.query_params["runId"]
        jobs.track(experiment_id, run_id, {})
        project = jobs.unpack(jobs.snapshots[body["SnapshotId"]], run_id)
        command = asked["command"] if isinstance(asked["command"], str) else " ".join(asked["command"])
        jobs.run(run_id, experiment_id, asked["target"], command, project)
        return JSONResponse({"runId": run_id})


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
