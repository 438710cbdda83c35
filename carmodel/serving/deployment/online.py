"""Online endpoints of Azure ML, managed or on a Kubernetes cluster: two deployments, blue and green, behind one address.

A new version goes to the colour that clients don't use. Once it has answered a photo it gets a share of the requests: a
canary. `promote` gives it all of them and keeps the other for `rollback`
(https://learn.microsoft.com/azure/machine-learning/how-to-safely-rollout-online-endpoints). The SDK v2 is used for both kinds:
azureml-mlflow's deployment client knows managed endpoints alone.
"""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from azure.core.exceptions import ResourceNotFoundError

from carmodel.errors import InputError
from carmodel.serving.deployment.failure import explained
from carmodel.serving.deployment.wanted import Deployed, DeployError, Say, Wanted

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import OnlineDeployment, OnlineEndpoint
    from azure.core.polling import LROPoller

COLOURS = ("blue", "green")
MODEL = "carmodel.model"
"""Tag of a deployment: the version that it serves."""
STABLE = "carmodel.stable"
"""Tag of an endpoint: the colour that was promoted last, where `rollback` leads from a canary."""
WORKSPACE = re.compile(r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/.*/workspaces/([^/?]+)", re.IGNORECASE)
SAY_EVERY = 15.0


def deploy(wanted: Wanted, say: Say) -> Deployed:
    """Have the wanted version run beside the one that clients use, which keeps all its requests."""
    ml = client()
    with explained(wanted, f"deploying {wanted.model_uri} to endpoint {wanted.name}"):
        endpoint = _endpoint(ml, wanted) or _create_endpoint(ml, wanted, say)
        there = _settled(ml, wanted, say)
        colour = next((c for c, d in there.items() if _serves(d, wanted) and _works(d)), "")
        if colour:
            say(f"{colour} serves {wanted.model_uri} already")
        else:
            colour = min(COLOURS, key=lambda c: (_share(endpoint, c), c in there))
            if _share(endpoint, colour):
                raise DeployError(
                    f"blue and green of {wanted.name} both get requests: promote or roll back first\n  "
                    f"{wanted.command('promote')}\n  {wanted.command('rollback')}"
                )
            _create_deployment(ml, wanted, colour, say)
        return _reach(ml, endpoint, colour)


def release(wanted: Wanted, say: Say) -> Deployed:
    """Give the wanted version its share of the requests: all, where it is the only one."""
    ml = client()
    with explained(wanted, f"sharing the requests of endpoint {wanted.name}"):
        endpoint, there = _existing(ml, wanted), _deployments(ml, wanted)
        colour = next(c for c, d in there.items() if _serves(d, wanted) and _works(d))
        old = next((c for c in there if c != colour and _share(endpoint, c)), "")
        if not old:
            _route(ml, wanted, endpoint, {colour: 100}, say)
        elif _share(endpoint, colour) < wanted.traffic:
            _route(ml, wanted, endpoint, {old: 100 - wanted.traffic, colour: wanted.traffic}, say)
            say(f"to go on: {wanted.command('promote')}\ndeploy: to go back: {wanted.command('rollback')}")
        return _seen(ml, wanted)


def promote(wanted: Wanted, say: Say) -> Deployed:
    """Give all requests to the canary; the other version stays, without requests, for `rollback`."""
    ml = client()
    with explained(wanted, f"promoting on endpoint {wanted.name}"):
        endpoint, there = _existing(ml, wanted), _deployments(ml, wanted)
        canary = next((c for c in there if c != _stable(endpoint) and _works(there[c])), "")
        if not canary:
            raise InputError(f"{wanted.name} has one version, which gets all requests; deploy another with model_uri=…")
        _route(ml, wanted, endpoint, {canary: 100}, say)
        return _seen(ml, wanted)


def rollback(wanted: Wanted, say: Say) -> Deployed:
    """Take a canary's requests away; where there is no canary, give all requests to the version before the last promotion."""
    ml = client()
    with explained(wanted, f"rolling back endpoint {wanted.name}"):
        endpoint, there = _existing(ml, wanted), _deployments(ml, wanted)
        stable = _stable(endpoint)
        if stable in there and _share(endpoint, stable) < 100:
            back = stable
        else:
            back = next((c for c in there if c != stable and _works(there[c])), "")
        if not back:
            raise InputError(f"{wanted.name} has no other version to go back to; deploy one with model_uri=…")
        _route(ml, wanted, endpoint, {back: 100}, say)
        return _seen(ml, wanted)


def status(wanted: Wanted, say: Say) -> Deployed:
    """Look at the endpoint and its deployments."""
    with explained(wanted, f"looking at endpoint {wanted.name}"):
        return _seen(client(), wanted)


def delete(wanted: Wanted, say: Say) -> None:
    """Delete the endpoint with its deployments; fine where there is none."""
    ml = client()
    with explained(wanted, f"deleting endpoint {wanted.name}"):
        if _endpoint(ml, wanted) is None:
            say(f"there is no endpoint {wanted.name}")
            return
        _wait(ml.online_endpoints.begin_delete(name=wanted.name), wanted, f"deleting endpoint {wanted.name}", say)


def client() -> "MLClient":
    """The SDK's client of the workspace that MLFLOW_TRACKING_URI names, with the identity of the environment.

    Raises:
        InputError: the tracking URI names no workspace, or the SDK is not installed.
    """
    uri = mlflow.get_tracking_uri()
    if not (found := WORKSPACE.search(uri)):
        raise InputError(
            "MLFLOW_TRACKING_URI names no Azure ML workspace (azureml://…); to get it: az ml workspace show --name WORKSPACE "
            "--resource-group GROUP --query mlflow_tracking_uri"
        )
    try:
        from azure.ai.ml import MLClient
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise InputError("online endpoints need the Azure SDK: make azure") from None
    logging.getLogger("azure").setLevel(logging.ERROR)
    return MLClient(DefaultAzureCredential(), *found.groups(), enable_telemetry=False, show_progress=False)


def _create_endpoint(ml: "MLClient", wanted: Wanted, say: Say) -> "OnlineEndpoint":
    from azure.ai.ml import load_online_endpoint

    endpoint = _read(load_online_endpoint, wanted.settings_file.with_name("endpoint.yml"), {"name": wanted.name})
    _wait(ml.online_endpoints.begin_create_or_update(endpoint), wanted, f"creating endpoint {wanted.name}", say)
    return _existing(ml, wanted)


def _create_deployment(ml: "MLClient", wanted: Wanted, colour: str, say: Say) -> None:
    from azure.ai.ml import load_online_deployment

    name, version = wanted.model
    given = {"name": colour, "endpoint_name": wanted.name, "model": f"azureml:{name}:{version}"}
    deployment = _read(load_online_deployment, wanted.settings_file, given)
    deployment.tags = {**(deployment.tags or {}), MODEL: wanted.model_uri}
    doing = f"creating deployment {colour} of {wanted.model_uri}"
    try:
        _wait(ml.online_deployments.begin_create_or_update(deployment), wanted, doing, say)
    except Exception:
        _say_its_log(ml, wanted, colour, say)
        raise
    if not _works(_deployments(ml, wanted).get(colour)):
        _say_its_log(ml, wanted, colour, say)
        raise DeployError(
            f"{doing}: it has failed and gets no requests\n  to try again, run this again; {wanted.command('delete')}"
        )


def _read(load: Callable[..., Any], file: Path, given: dict[str, str]) -> Any:
    """An endpoint or deployment from its file, with what is filled in.

    Raises:
        InputError: no such file, not YAML, or not what the published schema says.
    """
    from azure.ai.ml.exceptions import MlException
    from marshmallow import ValidationError

    try:
        return load(file, params_override=[given])
    except (MlException, ValidationError, OSError) as error:
        raise InputError(f"{file}: {' '.join(str(error).split())[:1000]}") from None


def _say_its_log(ml: "MLClient", wanted: Wanted, colour: str, say: Say) -> None:
    """Show what the container said last, where there is one."""
    try:
        say(
            f"last lines of {colour}:\n{ml.online_deployments.get_logs(name=colour, endpoint_name=wanted.name, lines=20)}"
        )
    except Exception as error:  # what led here is told, whatever happens to its log
        say(f"{colour} has left no log ({type(error).__name__})")


def _route(ml: "MLClient", wanted: Wanted, endpoint: "OnlineEndpoint", traffic: dict[str, int], say: Say) -> None:
    """Share the requests among the deployments, and remember which one is stable: the first."""
    stable = next(iter(traffic))
    if {colour: share for colour, share in (endpoint.traffic or {}).items() if share} == traffic and _stable(
        endpoint
    ) == stable:
        return
    endpoint.traffic, endpoint.tags = traffic, {**(endpoint.tags or {}), STABLE: stable}
    shares = ", ".join(f"{colour} {percent}%" for colour, percent in traffic.items())
    _wait(ml.online_endpoints.begin_create_or_update(endpoint), wanted, f"requests: {shares}", say)


def _wait(poller: "LROPoller[Any]", wanted: Wanted, doing: str, say: Say) -> Any:
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
                f"  to look at it:  {wanted.command('status')}\n  to give up:  {wanted.command('delete')}"
            )
        if now - said > SAY_EVERY:
            said = now
            say(f"{doing}: {poller.status()}, {now - began:.0f} s")
    return poller.result()


def _settled(ml: "MLClient", wanted: Wanted, say: Say) -> "dict[str, OnlineDeployment]":
    """The deployments, once no operation runs on them or their endpoint: one may be left from a run that was cut off."""
    began = time.monotonic()
    while True:
        endpoint, there = _existing(ml, wanted), _deployments(ml, wanted)
        states = {wanted.name: _state(endpoint)} | {colour: _state(d) for colour, d in there.items()}
        busy = [name for name, state in states.items() if state in ("Creating", "Updating")]
        if not busy:
            return there
        if time.monotonic() - began > wanted.timeout:
            raise DeployError(
                f"{', '.join(busy)} of {wanted.name}: still changing after timeout={wanted.timeout:g} seconds\n"
                f"  to look at it:  {wanted.command('status')}\n  to give up:  {wanted.command('delete')}"
            )
        say(f"waiting for an earlier operation on {', '.join(busy)}")
        time.sleep(5)


def _endpoint(ml: "MLClient", wanted: Wanted) -> "OnlineEndpoint | None":
    try:
        return ml.online_endpoints.get(wanted.name)
    except ResourceNotFoundError:
        return None


def _existing(ml: "MLClient", wanted: Wanted) -> "OnlineEndpoint":
    if (endpoint := _endpoint(ml, wanted)) is None:
        raise InputError(
            f"there is no endpoint {wanted.name}; make it with action=deploy and model_uri=models:/NAME/VERSION"
        )
    return endpoint


def _deployments(ml: "MLClient", wanted: Wanted) -> "dict[str, OnlineDeployment]":
    return {deployment.name: deployment for deployment in ml.online_deployments.list(endpoint_name=wanted.name)}


def _serves(deployment: "OnlineDeployment", wanted: Wanted) -> bool:
    return (deployment.tags or {}).get(MODEL) == wanted.model_uri


def _works(deployment: "OnlineDeployment | None") -> bool:
    return deployment is not None and _state(deployment) == "Succeeded"


def _state(there: "OnlineDeployment | OnlineEndpoint") -> str:
    """The service's word, a text or one of the SDK's enumerations: Creating, Updating, Succeeded, Failed …"""
    state = there.provisioning_state
    return str(getattr(state, "value", state))


def _share(endpoint: "OnlineEndpoint", colour: str) -> int:
    return int((endpoint.traffic or {}).get(colour, 0))


def _stable(endpoint: "OnlineEndpoint") -> str:
    return (endpoint.tags or {}).get(STABLE, "")


def _reach(ml: "MLClient", endpoint: "OnlineEndpoint", colour: str) -> Deployed:
    """How to reach one deployment, whatever its share of the requests; without a colour, the endpoint."""
    keys = ml.online_endpoints.get_keys(endpoint.name)
    key = getattr(keys, "primary_key", None) or getattr(keys, "access_token", "")
    headers = {"Authorization": f"Bearer {key}"} | ({"azureml-model-deployment": colour} if colour else {})
    return Deployed(_state(endpoint), str(endpoint.scoring_uri), headers, "input_data")


def _seen(ml: "MLClient", wanted: Wanted) -> Deployed:
    endpoint, there = _existing(ml, wanted), _deployments(ml, wanted)
    told = [
        f"{colour}: {(deployment.tags or {}).get(MODEL, 'another model')}, {_state(deployment)}, "
        f"{_share(endpoint, colour)}% of the requests"
        for colour, deployment in there.items()
    ]
    detail = "; ".join(told) or "no deployment yet"
    if not any(_share(endpoint, colour) for colour in there):
        return Deployed(_state(endpoint), detail=detail)
    return _reach(ml, endpoint, "")._replace(detail=detail)
