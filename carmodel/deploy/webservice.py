"""Deploy to a web service of an Azure ML workspace, on Azure Container Instances (ACI) or on an attached AKS cluster.

It uses azureml-mlflow's deployment client (https://learn.microsoft.com/azure/machine-learning/v1/how-to-deploy-mlflow-models).
Azure has retired both kinds: use an online endpoint for anything new.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import yaml
from azure.core.exceptions import ResourceNotFoundError
from azureml.mlflow.deploy import AzureMLDeploymentClient
from mlflow.deployments import get_deploy_client

from carmodel.cloud.azure import parse_workspace
from carmodel.cloud.azureml_private import inference_server, parse_webservice_settings, webservice_headers
from carmodel.deploy.messages import client_errors_explained, command, next_commands, say, undo_line
from carmodel.deploy.status import DeployError, Status
from carmodel.deploy.strip_signature import original_of, strip_signature
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from carmodel.service_errors import is_missing_deployment
from carmodel.tracking.digests import digest_of_bytes

POLL_SECONDS = 10.0
SERVER = "azureml-inference-server-http==1.5.1"
"""The server in the container. azureml-mlflow 1.62 asks for version 0.6, which needs wrapt 1.12. Keras needs Python 3.11, which
cannot import wrapt 1.12 (``inspect.formatargspec`` was removed, https://docs.python.org/3/whatsnew/3.11.html#removed)."""
FIXED_SETTINGS = ("containerResourceRequirements", "computeTargetName")
"""Settings that cannot be updated. ACI rejects the update, and azureml-mlflow 1.62 raises an AttributeError on AKS."""
SERVICE_NAMES = {"computeTargetName": "computeName", "tokenAuthEnabled": "aadAuthEnabled"}
"""Settings that have another name in the service's answer."""
FILE_SETTINGS = ("sslCertificate", "sslKey")
"""Settings that name a file. The service returns the content of the file or nothing, so the two cannot be compared. The tag
`CERTIFICATE_TAG` has the digest of the certificate instead."""
CERTIFICATE_TAG = "carmodel.certificate"


def deploy(settings: Deploy) -> Status:
    """Create the service, or update it if its model or settings differ. Wait until it is Healthy.

    Raises:
        InputError: a name or a setting is invalid. Nothing has been sent.
        DeployError: a request failed, or the service is Failed, or not Healthy within ``settings.timeout``.
    """
    config = _read_settings(settings)
    client = _client(settings)
    deadline = time.monotonic() + settings.timeout
    with client_errors_explained(settings, f"deploying web service {settings.name}"):
        service = _find(client, settings)
        undo = "" if service is None else undo_line(settings, _deployed_version(service))
        if service and service["state"] == "Transitioning":
            say(f"waiting for an earlier operation on {settings.name}")
            service = _wait(client, settings, deadline, until_settled=True)
        if service and service["state"] == "Failed" and not service["scoringUri"]:
            say(f"{settings.name} has failed before its first answer: deleting it")
            delete(settings)
            service = None
        model = strip_signature(settings.model_uri)
        if service is None:
            say(f"creating {settings.name} on {settings.target}; this takes many minutes while Azure builds an image")
            with _config_file(config) as file, inference_server(SERVER):
                client.create_deployment(settings.name, model, config={"deploy-config-file": str(file)})
        elif (differences := _differences(service, config, model)) or service["state"] == "Failed":
            _require_updatable(settings, differences)
            say(f"updating {settings.name}: {', '.join(differences) or 'it has failed'}\n{undo}".rstrip())
            updatable = {key: value for key, value in config.items() if key not in FIXED_SETTINGS}
            with _config_file(updatable) as file, inference_server(SERVER):
                client.update_deployment(settings.name, model, config={"deploy-config-file": str(file)})
        else:
            say(f"{settings.name} already serves {settings.model_uri}")
        try:
            service = _wait(client, settings, deadline)
        except DeployError as error:
            raise DeployError(f"{error}\n{undo}".rstrip()) from None
        if service["scoringUri"].startswith("http:"):
            say(f"{settings.name} has no TLS: photos and the key are sent unencrypted (see {settings.settings_path})")
        return replace(_status(client, service), undo=undo)


def release(settings: Deploy) -> Status:
    """Return the status. A web service serves one version at a time, so there is nothing to release."""
    return status(settings)


def status(settings: Deploy) -> Status:
    """Return the status of the service.

    Raises:
        InputError: there is no such service.
    """
    client = _client(settings)
    with client_errors_explained(settings, f"getting web service {settings.name}"):
        service = _find(client, settings)
        if service is None:
            raise InputError(f"there is no web service {settings.name}; create it: {command(settings, 'deploy')}")
        return _status(client, service)


def delete(settings: Deploy) -> bool:
    """Delete the service and wait until it is gone. Return whether there was one."""
    client = _client(settings)
    deadline = time.monotonic() + settings.timeout
    with client_errors_explained(settings, f"deleting web service {settings.name}"):
        if _find(client, settings) is None:
            return False
        say(f"deleting {settings.name}")
        # azureml-mlflow reports success for a 409, which means that another operation is still running.
        while client.delete_deployment(settings.name) or _find(client, settings):
            if time.monotonic() > deadline:
                raise DeployError(
                    f"{settings.name} still exists after timeout={settings.timeout:g} seconds, and may cost money: "
                    f"another operation on it may be running\n  to delete it:  {command(settings, 'delete')}"
                )
            time.sleep(POLL_SECONDS)
    return True


def _read_settings(settings: Deploy) -> dict[str, Any]:
    """Return the settings in the form that the client takes, after the client's own parser has accepted them."""
    file = settings.settings_path
    try:
        config = yaml.safe_load(file.read_text())
        if config.get("computeType") != settings.target:
            raise ValueError(f"computeType is not {settings.target}")
        # Require a key unless the file says otherwise. Without "async", the client would wait without a time limit.
        config = {"authEnabled": not config.get("tokenAuthEnabled")} | config | {"async": True}
        if certificate := config.get("sslCertificate"):
            tags = config.get("tags") or {}
            config["tags"] = tags | {CERTIFICATE_TAG: digest_of_bytes(Path(certificate).read_bytes())}
        parse_webservice_settings(settings.target, config)
    except Exception as error:  # the client's parser raises exceptions of any type
        raise InputError(f"settings_file={file}: {error}") from error
    return config


@contextmanager
def _config_file(config: dict[str, Any]) -> Iterator[Path]:
    """Write the settings to a temporary file, because the client takes only a file."""
    with TemporaryDirectory(prefix="carmodel-") as scratch:
        file = Path(scratch, "settings.yml")
        file.write_text(yaml.safe_dump(config))
        yield file


def _client(settings: Deploy) -> AzureMLDeploymentClient:
    uri = mlflow.get_tracking_uri()
    parse_workspace(uri)
    with client_errors_explained(settings, f"connecting to {uri.split('/')[2]}"):
        return get_deploy_client(uri)


def _find(client: AzureMLDeploymentClient, settings: Deploy) -> dict[str, Any] | None:
    """Return the service, or None if there is none.

    Raises:
        InputError: the name belongs to an endpoint or to a service on another target, which the client would change
            instead.
    """
    try:
        client.get_endpoint(settings.name)
        raise InputError(f"name={settings.name} is an online endpoint of this workspace: choose another name")
    except ResourceNotFoundError:
        pass
    try:
        service = client.get_deployment(settings.name)
    except mlflow.MlflowException as error:
        if is_missing_deployment(error):
            return None
        raise
    if service["computeType"].lower() != settings.target:
        raise InputError(f"name={settings.name} is a service on {service['computeType']}: choose another name")
    return dict(service)


def _deployed_version(service: dict[str, Any]) -> str:
    """Return the URI of the registered version that the service's copy was made from, or empty for another model."""
    uris = (original_of(*model["id"].rpartition(":")[::2]) for model in service["modelDetails"] or [])
    return next(filter(None, uris), "")


def _differences(service: dict[str, Any], config: dict[str, Any], model: str) -> list[str]:
    """Return what an update would change: settings with another value in the service, and the model."""
    deployed = {details["id"] for details in service["modelDetails"] or []}
    same_model = deployed == {model.removeprefix("models:/").replace("/", ":")}
    return [*_changed_settings(config, service), *([] if same_model else ["model"])]


def _changed_settings(config: dict[str, Any], service: dict[str, Any], prefix: str = "") -> list[str]:
    changed = []
    for key, value in config.items():
        name = SERVICE_NAMES.get(key, key)
        # The service lists all settings, but only the tags and properties that it has.
        listed = name in service or prefix in ("tags.", "properties.")
        if isinstance(value, dict):
            changed += _changed_settings(value, service.get(name) or {}, f"{prefix}{key}.")
        elif listed and key not in ("computeType", *FILE_SETTINGS) and service.get(name) != value:
            changed.append(prefix + key)
    return changed


def _require_updatable(settings: Deploy, differences: list[str]) -> None:
    if fixed := [key for key in differences if key.split(".")[0] in FIXED_SETTINGS]:
        raise InputError(
            f"settings_file={settings.settings_path}: {', '.join(fixed)} of an existing service cannot change: "
            f"delete it first:  {command(settings, 'delete')}"
        )


def _wait(
    client: AzureMLDeploymentClient, settings: Deploy, deadline: float, until_settled: bool = False
) -> dict[str, Any]:
    """Wait until the service is Healthy, or with `until_settled` until no operation runs, whatever its result."""
    began, previous = time.monotonic(), ""
    while True:
        service = _find(client, settings)
        if service is None:
            raise DeployError(f"web service {settings.name} was deleted; to create it: {command(settings, 'deploy')}")
        state = service["state"]
        if state != previous:
            say(f"{settings.name} is {state} after {time.monotonic() - began:.0f} s")
            previous = state
        if state == "Healthy" or (until_settled and state != "Transitioning"):
            return service
        late = time.monotonic() > deadline
        if state == "Failed" or late:
            after = f" after timeout={settings.timeout:g} seconds" if late else ""
            raise DeployError(
                f"web service {settings.name} is {state}{after}: {_error(service)}\n"
                f"  the service still exists, and may cost money\n"
                f"  its log: az ml service get-logs --name {settings.name} (CLI v1), or Endpoints in the studio\n"
                f"{next_commands(settings)}"
            )
        time.sleep(POLL_SECONDS)


def _error(service: dict[str, Any]) -> str:
    """Return the service's own message."""
    error = service.get("error") or {}
    if not isinstance(error, dict):
        error = error.as_dict()
    details = [detail.get("message", "") for detail in error.get("details") or []]
    return " ".join(" ".join([error.get("message", ""), *details]).split()) or "the service gives no reason"


def _status(client: AzureMLDeploymentClient, service: dict[str, Any]) -> Status:
    models = ", ".join(model["id"] for model in service["modelDetails"] or [])
    detail = f"{service['computeType']}, {models}"
    if service["state"] != "Healthy":
        return Status(service["state"], service["scoringUri"] or "", detail=f"{detail}: {_error(service)}")
    headers = webservice_headers(client, service)
    return Status(service["state"], service["scoringUri"] or "", headers, "input_data", detail)
