"""Azure ML's online endpoints and deployments through its SDK v2: read from their files, made, looked at, waited for.

The SDK v2 is used for both kinds of endpoints: azureml-mlflow's deployment client knows managed ones alone.
"""

import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import yaml
from azure.core.exceptions import ResourceNotFoundError

from carmodel.deploy.wanted import DeployError, Say, Wanted
from carmodel.errors import InputError
from carmodel.tracking.digests import digest_of_bytes

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import OnlineDeployment, OnlineEndpoint
    from azure.core.polling import LROPoller

MODEL = "carmodel.model"
"""Tag of a deployment: the version that it serves."""
SETTINGS = "carmodel.recipe"
"""Tag of an endpoint or a deployment: digest of the file that it was made of."""
WORKSPACE = re.compile(r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/.*/workspaces/([^/?]+)", re.IGNORECASE)
SAY_EVERY = 15.0
CHANGING = ("Creating", "Updating", "Deleting")


def client() -> "MLClient":
    """The SDK's client of the workspace that MLFLOW_TRACKING_URI names, with the identity of the environment.

    Raises:
        InputError: the tracking URI names no workspace, or the SDK is not installed.
    """
    uri = mlflow.get_tracking_uri()
    if not (found := WORKSPACE.search(uri)):
        raise InputError(
            "MLFLOW_TRACKING_URI names no Azure ML workspace (azureml://…); to get it: az ml workspace show --name WORKSPACE "
            "--resource-group GROUP --query mlflow_tracking_uri -o tsv"
        )
    try:
        from azure.ai.ml import MLClient
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise InputError("online endpoints need the Azure SDK: make azure") from None
    logging.getLogger("azure").setLevel(logging.ERROR)
    return MLClient(DefaultAzureCredential(), *found.groups(), enable_telemetry=False, show_progress=False)


def settings_of(wanted: Wanted) -> "tuple[OnlineEndpoint, OnlineDeployment]":
    """The endpoint and the deployment that the settings files ask for, with tags that say which files and which model.

    Raises:
        InputError: no such file, not YAML, or not what the published schema says.
    """
    from azure.ai.ml import load_online_deployment, load_online_endpoint

    name, version = wanted.model
    endpoint = read(load_online_endpoint, wanted.settings_file.with_name("endpoint.yml"), {"name": wanted.name})
    given = {"name": "blue", "endpoint_name": wanted.name, "model": f"azureml:{name}:{version}"}
    deployment = read(load_online_deployment, wanted.settings_file, given)
    deployment.tags |= {MODEL: wanted.model_uri}
    return endpoint, deployment


def read(load: Callable[..., Any], file: Path, given: dict[str, str]) -> Any:
    """An endpoint or deployment from its file, with what is filled in and a tag with the file's digest.

    Files that it names in turn, such as an environment's, are not looked into.

    Raises:
        InputError: no such file, not YAML, or not what the published schema says.
    """
    from azure.ai.ml.exceptions import MlException
    from marshmallow import ValidationError

    try:
        made = load(file, params_override=[given])
    except (MlException, ValidationError, OSError) as error:
        raise InputError(f"{file}: {' '.join(str(error).split())[:1000]}") from None
    content = json.dumps(yaml.safe_load(file.read_text()), sort_keys=True, default=str)
    made.tags = (made.tags or {}) | {SETTINGS: digest_of_bytes(content.encode())}
    return made


def ensure_endpoint(ml: "MLClient", wanted: Wanted, asked: "OnlineEndpoint", say: Say) -> "OnlineEndpoint":
    """The endpoint, made where there is none, and again where it has failed or its file has changed since.

    One that was made by hand keeps its settings.
    """
    there = endpoint_called(ml, wanted)
    if there is not None:
        before, now = there.tags or {}, asked.tags or {}
        if state_of(there) != "Failed" and before.get(SETTINGS) in (None, now[SETTINGS]):
            return there
        asked.traffic, asked.tags = there.traffic, before | now
    doing = f"{'creating' if there is None else 'updating'} endpoint {wanted.name}"
    wait(ml.online_endpoints.begin_create_or_update(asked), wanted, doing, say)
    return existing(ml, wanted)


def make_deployment(ml: "MLClient", wanted: Wanted, asked: "OnlineDeployment", colour: str, say: Say) -> None:
    """Have the deployment made under a colour, in the place of what is there.

    Raises:
        DeployError: it has failed; its log was shown.
    """
    asked.name = colour
    doing = f"creating deployment {colour} of {wanted.model_uri}"
    try:
        wait(ml.online_deployments.begin_create_or_update(asked), wanted, doing, say)
    except Exception:
        _say_its_log(ml, wanted, colour, say)
        raise
    if not works(deployments(ml, wanted).get(colour)):
        _say_its_log(ml, wanted, colour, say)
        raise DeployError(f"{doing}: it has failed\n{wanted.next_commands()}")


def to_delete(ml: "MLClient", endpoint: str, colour: str) -> str:
    """A line of an error: how to delete one deployment, which gets no requests, and nothing else."""
    where = f"--resource-group {ml.resource_group_name} --workspace-name {ml.workspace_name}"
    return f"  to delete {colour} alone:  az ml online-deployment delete --name {colour} --endpoint-name {endpoint} {where}\n"


def _say_its_log(ml: "MLClient", wanted: Wanted, colour: str, say: Say) -> None:
    """Show what the container said last, where there is one, and how to delete it."""
    try:
        said = ml.online_deployments.get_logs(name=colour, endpoint_name=wanted.name, lines=20)
        say(f"last lines of {colour}:\n{said}")
    except Exception as error:  # what led here is told, whatever happens to its log
        say(f"{colour} has left no log ({type(error).__name__})")
    say(f"{colour} gets no requests, and may cost money\n{to_delete(ml, wanted.name, colour)}".rstrip())


def wait(poller: "LROPoller[Any]", wanted: Wanted, doing: str, say: Say) -> Any:
    """Wait for a long operation, and say now and then that it goes on.

    Raises:
        DeployError: it takes longer than the user allows; it goes on in the service.
    """
    say(doing)
    began = said = time.monotonic()
    while not poller.done():
        poller.wait(0.2)
        now = time.monotonic()
        if now - began > wanted.timeout:
            raise DeployError(
                f"{doing}: still {poller.status()} after timeout={wanted.timeout:g} seconds; it goes on in Azure\n"
                f"{wanted.next_commands()}"
            )
        if now - said > SAY_EVERY:
            said = now
            say(f"{doing}: {poller.status()}, {now - began:.0f} s")
    return poller.result()


def settled(ml: "MLClient", wanted: Wanted, say: Say) -> None:
    """Wait until no operation runs on the endpoint or a deployment: one may be left from a run that was cut off.

    Raises:
        DeployError: it takes longer than the user allows.
    """
    began = time.monotonic()
    while (endpoint := endpoint_called(ml, wanted)) is not None:
        states = {wanted.name: state_of(endpoint)}
        if states[wanted.name] != "Deleting":  # its deployments may be gone already
            states |= {colour: state_of(deployment) for colour, deployment in deployments(ml, wanted).items()}
        busy = [name for name, state in states.items() if state in CHANGING]
        if not busy:
            return
        if time.monotonic() - began > wanted.timeout:
            raise DeployError(
                f"{', '.join(busy)} of {wanted.name}: still changing after timeout={wanted.timeout:g} seconds\n"
                f"{wanted.next_commands()}"
            )
        say(f"waiting for an earlier operation on {', '.join(busy)}")
        time.sleep(5)


def endpoint_called(ml: "MLClient", wanted: Wanted) -> "OnlineEndpoint | None":
    """The endpoint as it is now, if there is one.

    Raises:
        InputError: it is of the other kind.
    """
    from azure.ai.ml.entities import KubernetesOnlineEndpoint

    try:
        endpoint = ml.online_endpoints.get(wanted.name)
    except ResourceNotFoundError:
        return None
    kind = "kubernetes-online" if isinstance(endpoint, KubernetesOnlineEndpoint) else "online"
    if kind != wanted.target:
        raise InputError(f"name={wanted.name} is an endpoint of target={kind}: give that target, or another name")
    return endpoint


def existing(ml: "MLClient", wanted: Wanted) -> "OnlineEndpoint":
    """The endpoint as it is now.

    Raises:
        InputError: there is none.
    """
    if (endpoint := endpoint_called(ml, wanted)) is None:
        raise InputError(f"there is no endpoint {wanted.name}; make it: {wanted.command('deploy')}")
    return endpoint


def deployments(ml: "MLClient", wanted: Wanted) -> "dict[str, OnlineDeployment]":
    """The endpoint's deployments by name."""
    return {deployment.name: deployment for deployment in ml.online_deployments.list(endpoint_name=wanted.name)}


def serves(deployment: "OnlineDeployment", asked: "OnlineDeployment") -> bool:
    """Whether it serves the model and was made of the settings that are asked for."""
    tags, wanted = deployment.tags or {}, asked.tags or {}
    return all(tags.get(name) == wanted[name] for name in (MODEL, SETTINGS))


def works(deployment: "OnlineDeployment | None") -> bool:
    """Whether it is there and can answer."""
    return deployment is not None and state_of(deployment) == "Succeeded"


def state_of(there: "OnlineDeployment | OnlineEndpoint") -> str:
    """The service's word, a text or one of the SDK's enumerations: Creating, Updating, Succeeded, Failed …"""
    state = there.provisioning_state
    return str(getattr(state, "value", state))
