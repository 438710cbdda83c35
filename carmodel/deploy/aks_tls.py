"""TLS of the web services on an AKS cluster: a setting of the cluster, not of a service.

https://learn.microsoft.com/azure/machine-learning/v1/how-to-secure-web-service: with a leaf domain label Azure gives the
cluster a name and keeps its certificate; else name, certificate and key are yours. The cluster is changed through Azure
Resource Manager (https://learn.microsoft.com/rest/api/azureml/compute/create-or-update).
"""

import time
from pathlib import Path
from typing import Any

from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy
from azure.core.rest import HttpRequest
from azure.mgmt.core import ARMPipelineClient
from azureml.mlflow.deploy import AzureMLDeploymentClient

from carmodel.deploy.wanted import DeployError, Say, Wanted
from carmodel.errors import InputError
from carmodel.tracking.digests import digest_of_bytes

MANAGEMENT = "https://management.azure.com"
VERSION = {"api-version": "2023-04-01"}
KEYS = ({"leafDomainLabel"}, {"cname", "cert", "key"})
CERTIFICATE = "carmodel.certificate"
"""Tag of a cluster, or of a service on ACI: digest of the certificate that it was given."""
ENDED = ("Failed", "Canceled")
PAUSE = 10.0


def configuration(tls: dict[str, str], wanted: Wanted) -> dict[str, Any]:
    """The cluster's ``sslConfiguration`` that the section ``tls`` of the settings asks for.

    Raises:
        InputError: neither ``leafDomainLabel`` alone, nor ``cname``, ``cert`` and ``key``; or a file that is not there.
    """
    if set(tls) not in KEYS:
        raise InputError(
            f"settings_file={wanted.settings_file}: tls is leafDomainLabel, or cname with the files cert and key"
        )
    if "leafDomainLabel" in tls:
        return {"status": "Auto", "leafDomainLabel": tls["leafDomainLabel"], "overwriteExistingDomain": False}
    try:
        return {"status": "Enabled", "cname": tls["cname"]} | {
            name: Path(tls[name]).expanduser().read_text() for name in ("cert", "key")
        }
    except OSError as error:
        raise InputError(f"settings_file={wanted.settings_file}: tls: {error.filename}: {error.strerror}") from None


def ensure(
    client: AzureMLDeploymentClient, compute: str, asked: dict[str, Any], *, wanted: Wanted, say: Say, deadline: float
) -> None:
    """Have the cluster use TLS as asked; nothing is sent where it does.

    Raises:
        DeployError: the cluster can't, or has not within the time.
    """
    context = client.service_context
    scope = (
        f"{MANAGEMENT}/subscriptions/{context.subscription_id}/resourceGroups/{context.resource_group_name}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{context.workspace_name}"
    )
    token = BearerTokenCredentialPolicy(context.auth, f"{MANAGEMENT}/.default")
    with ARMPipelineClient(base_url=MANAGEMENT, policies=[RetryPolicy(), token]) as arm:  # type: ignore[var-annotated]

        def send(method: str, **body: Any) -> dict[str, Any]:
            response = arm.send_request(HttpRequest(method, f"{scope}/computes/{compute}", params=VERSION, **body))
            response.raise_for_status()
            return dict(response.json())

        cluster = send("GET")
        there = cluster["properties"]["properties"].get("sslConfiguration") or {}
        # Azure shows neither certificate nor key: a tag tells whether the certificate is another one.
        tags = {CERTIFICATE: digest_of_bytes(asked["cert"].encode())} if "cert" in asked else {}
        same = all(there.get(key) == asked[key] for key in ("status", "leafDomainLabel", "cname") if key in asked)
        same = same and tags.items() <= (cluster.get("tags") or {}).items()
        state = cluster["properties"].get("provisioningState")
        if same and state == "Succeeded":
            return
        if same and state not in ENDED:
            say(f"cluster {compute} is being changed already")
        else:
            say(f"turning TLS on for cluster {compute}")
            cluster["properties"]["properties"]["sslConfiguration"] = asked
            cluster["tags"] = (cluster.get("tags") or {}) | tags
            send("PUT", json={key: cluster[key] for key in ("location", "tags", "properties") if key in cluster})
        while (properties := send("GET")["properties"])["provisioningState"] != "Succeeded":
            if properties["provisioningState"] in ENDED or time.monotonic() > deadline:
                errors = [
                    one.get("error", one).get("message", "") for one in properties.get("provisioningErrors") or []
                ]
                raise DeployError(
                    f"TLS for cluster {compute}: {properties['provisioningState']} {' '.join(errors)}".rstrip()
                    + f"\n  no service was made; look at the cluster: az ml compute show --name {compute}\n"
                    "  to go on, run this again"
                )
            time.sleep(PAUSE)
