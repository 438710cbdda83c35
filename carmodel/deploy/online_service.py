"""Requests to Azure ML's online endpoints and deployments through SDK v2: read their settings, create, inspect, wait.

SDK v2 serves both kinds of endpoints. azureml-mlflow's deployment client knows only managed ones.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from carmodel.deploy.messages import command, next_commands, say
from carmodel.deploy.status import DeployError
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from carmodel.tracking.digests import digest_of_bytes

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import OnlineDeployment, OnlineEndpoint
    from azure.core.polling import LROPoller

MODEL_TAG = "carmodel.model"
"""Tag of a deployment: the URI of the version that it serves."""
SETTINGS_TAG = "carmodel.recipe"
"""Tag of an endpoint or a deployment: digest of its settings file."""
PROGRESS_SECONDS = 15.0
"""Time between two lines of progress."""
POLL_SECONDS = 5.0
CHANGING = ("Creating", "Updating", "Scaling", "Deleting")


def read_settings(settings: Deploy) -> "tuple[OnlineEndpoint, OnlineDeployment]":
    """Return the endpoint and the deployment of the settings files, tagged with the digests of the files and the model.

    Raises:
        InputError: no such file, invalid YAML, or a violation of the published schema.
    """
    from azure.ai.ml import load_online_deployment, load_online_endpoint

    name, version = settings.model_version
    file = settings.settings_path
    endpoint = load(load_online_endpoint, file.with_name("endpoint.yml"), {"name": settings.name})
    overrides = {"name": "blue", "endpoint_name": settings.name, "model": f"azureml:{name}:{version}"}
    deployment = load(load_online_deployment, file, overrides)
    deployment.tags |= {MODEL_TAG: settings.model_uri}
    return endpoint, deployment


def load(loader: Callable[..., Any], file: Path, overrides: dict[str, str]) -> Any:
    """Return an endpoint or deployment from its file, with a tag that holds the file's digest.

    The digest does not include other files that the file names, such as the file of an environment.

    Args:
        loader: function of the SDK.
        file: YAML.
        overrides: values that replace those in the file.

    Raises:
        InputError: no such file, invalid YAML, or a violation of the published schema.
    """
    from azure.ai.ml.exceptions import MlException
    from marshmallow import ValidationError

    try:
        loaded = loader(file, params_override=[overrides])
    except (MlException, ValidationError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: {' '.join(str(error).split())[:1000]}") from None
    content = json.dumps(yaml.safe_load(file.read_text()), sort_keys=True, default=str)
    loaded.tags = (loaded.tags or {}) | {SETTINGS_TAG: digest_of_bytes(content.encode())}
    return loaded


def ensure_endpoint(client: "MLClient", settings: Deploy, desired: "OnlineEndpoint") -> "OnlineEndpoint":
    """Return the endpoint. Create it if there is none, and update it if it has failed or its file has changed.

    An endpoint that was not created by this program keeps its settings.
    """
    existing = find_endpoint(client, settings)
    if existing is not None:
        old_tags, new_tags = existing.tags or {}, desired.tags or {}
        if state_of(existing) != "Failed" and old_tags.get(SETTINGS_TAG) in (None, new_tags[SETTINGS_TAG]):
            return existing
        desired.traffic, desired.tags = existing.traffic, old_tags | new_tags
    doing = f"{'creating' if existing is None else 'updating'} endpoint {settings.name}"
    wait(client.online_endpoints.begin_create_or_update(desired), settings, doing)
    return get_endpoint(client, settings)


def create_deployment(client: "MLClient", settings: Deploy, desired: "OnlineDeployment", color: str) -> None:
    """Create the deployment under a color, or replace the deployment of that color.

    Raises:
        DeployError: it has failed. Its log was printed.
    """
    desired.name = color
    doing = f"creating deployment {color} of {settings.model_uri}"
    try:
        wait(client.online_deployments.begin_create_or_update(desired), settings, doing)
    except Exception:
        _print_log(client, settings, color)
        raise
    if not is_healthy(get_deployments(client, settings).get(color)):
        _print_log(client, settings, color)
        raise DeployError(f"{doing}: it has failed\n{next_commands(settings)}")


def deletion_line(client: "MLClient", endpoint: str, color: str) -> str:
    """Return a line with the command that deletes one deployment and nothing else."""
    workspace = f"--resource-group {client.resource_group_name} --workspace-name {client.workspace_name}"
    delete = f"az ml online-deployment delete --name {color} --endpoint-name {endpoint} {workspace}"
    return f"  to delete {color} alone:  {delete}\n"


def wait(poller: "LROPoller[Any]", settings: Deploy, doing: str) -> Any:
    """Wait for a long operation, and print now and then that it is still running.

    Raises:
        DeployError: it takes longer than ``settings.timeout``. It continues in the service.
    """
    say(doing)
    began = printed = time.monotonic()
    while not poller.done():
        poller.wait(0.2)
        now = time.monotonic()
        if now - began > settings.timeout:
            raise DeployError(
                f"{doing}: still {poller.status()} after timeout={settings.timeout:g} seconds; it continues in Azure\n"
                f"{next_commands(settings)}"
            )
        if now - printed > PROGRESS_SECONDS:
            printed = now
            say(f"{doing}: {poller.status()}, {now - began:.0f} s")
    return poller.result()


def wait_until_settled(client: "MLClient", settings: Deploy) -> None:
    """Wait until no operation runs on the endpoint or its deployments. An interrupted run may have left one.

    Raises:
        DeployError: it takes longer than ``settings.timeout``.
    """
    began = time.monotonic()
    while (endpoint := find_endpoint(client, settings)) is not None:
        states = {settings.name: state_of(endpoint)}
        if states[settings.name] != "Deleting":  # its deployments may be gone already
            states |= {name: state_of(deployment) for name, deployment in get_deployments(client, settings).items()}
        changing = ", ".join(name for name, state in states.items() if state in CHANGING)
        if not changing:
            return
        if time.monotonic() - began > settings.timeout:
            raise DeployError(
                f"{changing} of {settings.name}: still changing after timeout={settings.timeout:g} seconds\n"
                f"{next_commands(settings)}"
            )
        say(f"waiting for an earlier operation on {changing}")
        time.sleep(POLL_SECONDS)


def find_endpoint(client: "MLClient", settings: Deploy) -> "OnlineEndpoint | None":
    """Return the endpoint, or None if there is none.

    Raises:
        InputError: it is of the other kind.
    """
    from azure.ai.ml.entities import KubernetesOnlineEndpoint
    from azure.core.exceptions import ResourceNotFoundError

    try:
        endpoint = client.online_endpoints.get(settings.name)
    except ResourceNotFoundError:
        return None
    target = "kubernetes-online" if isinstance(endpoint, KubernetesOnlineEndpoint) else "online"
    if target != settings.target:
        raise InputError(f"name={settings.name} is an endpoint of target={target}: use that target, or another name")
    return endpoint


def get_endpoint(client: "MLClient", settings: Deploy) -> "OnlineEndpoint":
    """Return the endpoint.

    Raises:
        InputError: there is none.
    """
    endpoint = find_endpoint(client, settings)
    if endpoint is None:
        raise InputError(f"there is no endpoint {settings.name}; create it: {command(settings, 'deploy')}")
    return endpoint


def get_deployments(client: "MLClient", settings: Deploy) -> "dict[str, OnlineDeployment]":
    """Return the endpoint's deployments by name."""
    deployments = client.online_deployments.list(endpoint_name=settings.name)
    return {deployment.name: deployment for deployment in deployments}


def is_same(deployment: "OnlineDeployment", desired: "OnlineDeployment") -> bool:
    """Return whether a deployment has the desired model and settings."""
    tags, desired_tags = deployment.tags or {}, desired.tags or {}
    return all(tags.get(name) == desired_tags[name] for name in (MODEL_TAG, SETTINGS_TAG))


def is_healthy(deployment: "OnlineDeployment | None") -> bool:
    """Return whether a deployment exists and can answer."""
    return deployment is not None and state_of(deployment) == "Succeeded"


def state_of(resource: "OnlineDeployment | OnlineEndpoint") -> str:
    """Return the state as the service names it: Creating, Updating, Succeeded, Failed …"""
    state = resource.provisioning_state  # text, or an enumeration of the SDK
    return str(getattr(state, "value", state))


def _print_log(client: "MLClient", settings: Deploy, color: str) -> None:
    """Print the container's last lines, if there is a container, and how to delete the deployment."""
    try:
        log = client.online_deployments.get_logs(name=color, endpoint_name=settings.name, lines=20)
        say(f"last lines of {color}:\n{log}")
    except Exception as error:  # the failure before this one is the one to report
        say(f"{color} has no log ({type(error).__name__})")
    say(f"{color} gets no requests, and may cost money\n{deletion_line(client, settings.name, color)}".rstrip())
