"""A web service of an Azure ML workspace, on Azure Container Instances (ACI) or an attached AKS cluster.

It goes through azureml-mlflow's deployment client
(https://learn.microsoft.com/azure/machine-learning/v1/how-to-deploy-mlflow-models). Azure has retired both kinds: use an online
endpoint for anything new.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import yaml
from azure.core.exceptions import ResourceNotFoundError
from azureml.mlflow.deploy import AzureMLDeploymentClient
from azureml.mlflow.deploy._mms import utils as scoring
from azureml.mlflow.deploy._mms.webservice.aci.aci import AciServiceDeploymentConfiguration
from azureml.mlflow.deploy._mms.webservice.aks.aks import AksServiceDeploymentConfiguration
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from carmodel.deploy import aks_tls
from carmodel.deploy.failure import explained
from carmodel.deploy.strip_signature import SOURCE_TAG, SUFFIX, strip_signature
from carmodel.deploy.wanted import Deployed, DeployError, Say, Wanted
from carmodel.errors import InputError
from carmodel.tracking.digests import digest_of_bytes

PARSERS = {"aci": AciServiceDeploymentConfiguration, "aks": AksServiceDeploymentConfiguration}
PAUSE = 10.0
"""Seconds between two looks at a service that is being made."""
SERVER = "azureml-inference-server-http==1.5.1"
"""What serves the model in the container. azureml-mlflow 1.62 asks for 0.6, which needs wrapt 1.12, which Python 3.11 can't
import (``inspect.formatargspec`` is gone, https://docs.python.org/3/whatsnew/3.11.html#removed), and Keras needs 3.11."""
FIXED = ("containerResourceRequirements", "computeTargetName")
"""Settings that no update changes: ACI has none for them, and azureml-mlflow 1.62 ends in an AttributeError on AKS."""
SHOWN = {"computeTargetName": "computeName", "tokenAuthEnabled": "aadAuthEnabled"}
"""Settings that the service shows under another name."""
FILES = ("sslCertificate", "sslKey")
"""Settings that name a file, of which the service shows the content, or nothing: a tag tells whether it is another one."""
NAME = r"[a-z][-a-z0-9]{1,30}[a-z0-9]"


def deploy(wanted: Wanted, say: Say) -> Deployed:
    """Create the service, or update it where its model or settings differ, and wait until it is Healthy.

    Raises:
        InputError: a name or settings that can't be; before any work.
        DeployError: a request failed, or the service is Failed, or not Healthy within `wanted.timeout`.
    """
    settings = _settings(wanted)
    tls = settings.pop("tls", None)
    asked = aks_tls.configuration(tls, wanted) if tls else None
    client = _client(wanted)
    deadline = time.monotonic() + wanted.timeout
    with explained(wanted, f"deploying web service {wanted.name}"):
        service = _find(client, wanted)
        back = "" if service is None else wanted.way_back(_served(service))
        if service and service["state"] == "Transitioning":
            say(f"{wanted.name} is being changed already")
            service = _wait(client, wanted, say, deadline, patient=True)
        if service and service["state"] == "Failed" and not service["scoringUri"]:
            say(f"{wanted.name} has Failed and never answered: deleting it")
            delete(wanted, say)
            service = None
        if asked:
            aks_tls.ensure(client, settings["computeTargetName"], asked, wanted=wanted, say=say, deadline=deadline)
        copy = strip_signature(wanted.model_uri, say)
        if service is None:
            say(f"creating {wanted.name} on {wanted.target}; this takes many minutes while Azure builds an image")
            with _file(settings) as file, _server():
                client.create_deployment(wanted.name, copy, config={"deploy-config-file": str(file)})
        elif (differing := _differing(service, settings, copy)) or service["state"] == "Failed":
            _require_changeable(wanted, differing)
            say(f"updating {wanted.name}: {', '.join(differing) or 'it has Failed'}\n{back}".rstrip())
            with _file({key: value for key, value in settings.items() if key not in FIXED}) as file, _server():
                client.update_deployment(wanted.name, copy, config={"deploy-config-file": str(file)})
        else:
            say(f"{wanted.name} serves {wanted.model_uri} already")
        try:
            service = _wait(client, wanted, say, deadline)
        except DeployError as error:
            raise DeployError(f"{error}\n{back}".rstrip()) from None
        if service["scoringUri"].startswith("http:"):
            say(f"photos and the key travel unencrypted to {wanted.name}: see TLS in {wanted.settings_file}")
        return _deployed(client, service)._replace(back=back)


def release(wanted: Wanted, say: Say) -> Deployed:
    """Look at it: clients reach a web service from its first answer, since it has but one version at a time."""
    return status(wanted, say)


def status(wanted: Wanted, say: Say) -> Deployed:
    """Look at the service.

    Raises:
        InputError: there is none.
    """
    client = _client(wanted)
    with explained(wanted, f"looking at web service {wanted.name}"):
        service = _find(client, wanted)
        if service is None:
            raise InputError(f"there is no web service {wanted.name}; create it: {wanted.command('deploy')}")
        return _deployed(client, service)


def delete(wanted: Wanted, say: Say) -> bool:
    """Delete the service and wait until it is gone; whether there was one."""
    client = _client(wanted)
    deadline = time.monotonic() + wanted.timeout
    with explained(wanted, f"deleting web service {wanted.name}"):
        if _find(client, wanted) is None:
            return False
        say(f"deleting {wanted.name}")
        # The client takes a 409, another operation that still runs, for a success.
        while client.delete_deployment(wanted.name) or _find(client, wanted):
            if time.monotonic() > deadline:
                raise DeployError(
                    f"{wanted.name} is still there after timeout={wanted.timeout:g} seconds, and may cost money: "
                    f"another operation on it may be running\n  delete it again:  {wanted.command('delete')}"
                )
            time.sleep(PAUSE)
    return True


def _settings(wanted: Wanted) -> dict[str, Any]:
    """The settings file as the client is given it, after its own parser took it."""
    if not re.fullmatch(NAME, wanted.name):
        raise InputError(f"name={wanted.name}: a web service's has 3 to 32 lower-case letters, digits and dashes")
    try:
        settings = yaml.safe_load(wanted.settings_file.read_text())
        if settings.get("computeType") != wanted.target:
            raise ValueError(f"computeType is not {wanted.target}")
        if "tls" in settings and wanted.target != "aks":
            raise ValueError("tls is for target=aks; aci has sslEnabled")
        # Keys unless the file says otherwise; and not the client's own waiting, which knows no end.
        settings = {"authEnabled": not settings.get("tokenAuthEnabled")} | settings | {"async": True}
        if certificate := settings.get("sslCertificate"):
            tags = settings.get("tags") or {}
            settings["tags"] = tags | {aks_tls.CERTIFICATE: digest_of_bytes(Path(certificate).read_bytes())}
        PARSERS[wanted.target]._create_deploy_config_from_dict(settings)
    except Exception as error:  # what the client's parser raises
        raise InputError(f"settings_file={wanted.settings_file}: {error}") from error
    return settings


@contextmanager
def _file(settings: dict[str, Any]) -> Iterator[Path]:
    """The settings as a file, the only way that the client takes them."""
    with TemporaryDirectory(prefix="carmodel-") as scratch:
        file = Path(scratch, "settings.yml")
        file.write_text(yaml.safe_dump(settings))
        yield file


@contextmanager
def _server() -> Iterator[None]:
    """Let the client put `SERVER` into the environment; it has no setting for it."""
    packages = scoring.INFERENCE_REQUIRED_PACKAGE_LIST
    before = packages[:]
    packages[:] = [SERVER]
    try:
        yield
    finally:
        packages[:] = before


def _client(wanted: Wanted) -> AzureMLDeploymentClient:
    if not (uri := mlflow.get_tracking_uri()).startswith("azureml://"):
        raise InputError(
            f"target={wanted.target} needs MLFLOW_TRACKING_URI=azureml://… of the workspace: "
            "az ml workspace show --name WORKSPACE --resource-group GROUP --query mlflow_tracking_uri -o tsv"
        )
    with explained(wanted, f"reaching {uri.split('/')[2]}"):
        return get_deploy_client(uri)


def _find(client: AzureMLDeploymentClient, wanted: Wanted) -> dict[str, Any] | None:
    """The service as it is now.

    Raises:
        InputError: the name belongs to something else, which the client would change instead.
    """
    try:
        client.get_endpoint(wanted.name)
        raise InputError(f"name={wanted.name} is an online endpoint of this workspace: choose another name")
    except ResourceNotFoundError:
        pass
    try:
        service = client.get_deployment(wanted.name)
    except MlflowException as error:
        if error.message.startswith("No deployment with name"):
            return None
        raise
    if service["computeType"].lower() != wanted.target:
        raise InputError(f"name={wanted.name} is a service on {service['computeType']}: choose another name")
    return dict(service)


def _served(service: dict[str, Any]) -> str:
    """URI of the registered version that a service's copy was made of; empty where it serves something else."""
    for model in service["modelDetails"] or []:
        name, _, version = model["id"].rpartition(":")
        if name.endswith(SUFFIX):
            return str(mlflow.MlflowClient().get_model_version(name, version).tags.get(SOURCE_TAG, ""))
    return ""


def _differing(service: dict[str, Any], settings: dict[str, Any], copy: str) -> list[str]:
    """What an update would change: settings that the service shows otherwise, and the model."""
    served = {model["id"] for model in service["modelDetails"] or []}
    model = [] if served == {copy.removeprefix("models:/").replace("/", ":")} else ["model"]
    return [*_changed(settings, service), *model]


def _changed(wanted: dict[str, Any], shown: dict[str, Any], path: str = "") -> list[str]:
    changed = []
    for key, value in wanted.items():
        there = SHOWN.get(key, key)
        if isinstance(value, dict):
            changed += _changed(value, shown.get(there) or {}, f"{path}{key}.")
        elif there in shown and key not in ("computeType", *FILES) and shown[there] != value:
            changed.append(path + key)
    return changed


def _require_changeable(wanted: Wanted, differing: list[str]) -> None:
    if fixed := [key for key in differing if key.split(".")[0] in FIXED]:
        raise InputError(
            f"settings_file={wanted.settings_file}: {', '.join(fixed)} of a service that is there can't change: "
            f"delete it first:  {wanted.command('delete')}"
        )


def _wait(
    client: AzureMLDeploymentClient, wanted: Wanted, say: Say, deadline: float, patient: bool = False
) -> dict[str, Any]:
    """Look until the service is Healthy; `patient`: until nothing goes on any more, however that ends."""
    began, before = time.monotonic(), ""
    while True:
        service = _find(client, wanted)
        if service is None:
            raise DeployError(f"web service {wanted.name} is gone; to make it: {wanted.command('deploy')}")
        state = service["state"]
        if state != before:
            say(f"{wanted.name} is {state} after {time.monotonic() - began:.0f} s")
            before = state
        if state == "Healthy" or (patient and state != "Transitioning"):
            return service
        late = time.monotonic() > deadline
        if state == "Failed" or late:
            after = f" after timeout={wanted.timeout:g} seconds" if late else ""
            raise DeployError(
                f"web service {wanted.name} is {state}{after}: {_error(service)}\n"
                f"  it is there, and may cost money\n"
                f"  its logs: az ml service get-logs --name {wanted.name} (CLI v1), or the studio, Endpoints\n"
                f"{wanted.next_commands()}"
            )
        time.sleep(PAUSE)


def _error(service: dict[str, Any]) -> str:
    """The service's own words."""
    error = service.get("error") or {}
    if not isinstance(error, dict):
        error = error.as_dict()
    details = [detail.get("message", "") for detail in error.get("details") or []]
    return " ".join(" ".join([error.get("message", ""), *details]).split()) or "the service does not say why"


def _deployed(client: AzureMLDeploymentClient, service: dict[str, Any]) -> Deployed:
    """The service, with the key that a request needs."""
    headers = {}
    if service["state"] == "Healthy":
        # The public client uses keys in `predict` alone, which can't say a failure's status or take a time limit.
        mms, name = client._mms_client, service["name"]
        if service["authEnabled"]:
            headers = {"Authorization": f"Bearer {mms.list_service_keys(name).primary_key}"}
        elif service.get("aadAuthEnabled"):
            headers = {"Authorization": f"Bearer {mms.get_service_token(name).access_token}"}
    models = ", ".join(model["id"] for model in service["modelDetails"] or [])
    detail = f"{service['computeType']}, {models}"
    if service["state"] != "Healthy":
        detail += f": {_error(service)}"
    return Deployed(service["state"], service["scoringUri"] or "", headers, "input_data", detail)
