"""Online endpoints of Azure ML, managed or on a Kubernetes cluster: two deployments, blue and green, behind one address.

A new version goes to the colour that clients don't use. Once it has answered a photo it gets a share of the requests: a
canary. `promote` gives it all of them and keeps the other for `rollback`
(https://learn.microsoft.com/azure/machine-learning/how-to-safely-rollout-online-endpoints). Which colour is what is kept in the
endpoint's tags, so that a command that is given twice does the same once.
"""

from typing import TYPE_CHECKING, NamedTuple

from carmodel.deploy.failure import explained
from carmodel.deploy.online_service import (
    MODEL,
    client,
    deployments,
    endpoint_called,
    ensure_endpoint,
    existing,
    make_deployment,
    serves,
    settings_of,
    settled,
    state_of,
    to_delete,
    wait,
    works,
)
from carmodel.deploy.wanted import Deployed, DeployError, Say, Wanted
from carmodel.errors import InputError

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import OnlineDeployment, OnlineEndpoint

COLOURS = ("blue", "green")
TAGS = ("carmodel.stable", "carmodel.other", "carmodel.role")


class Roles(NamedTuple):
    """Which deployment is what, in the tags of an endpoint; Azure takes no empty ones.

    Attributes:
        stable: gets the requests, or most of them.
        other: the other one.
        role: of the other one. It has answered a photo and waits for `promote`: canary; was stable before that: previous; was
            taken back by `rollback`: rejected.
    """

    stable: str = "none"
    other: str = "none"
    role: str = "none"


def roles_of(endpoint: "OnlineEndpoint", there: "dict[str, OnlineDeployment]") -> Roles:
    """The roles; where traffic was changed by hand, what gets most of it is stable, and another that gets some is a canary."""
    roles = Roles(*((endpoint.tags or {}).get(tag, "none") for tag in TAGS))
    most = max(there, key=lambda colour: share_of(endpoint, colour), default="none")
    if share_of(endpoint, most) and not share_of(endpoint, roles.stable):
        roles = Roles(most, roles.stable, "previous" if roles.stable in there else "none")
    if roles.other not in there or roles.other == roles.stable:
        roles = Roles(roles.stable, next((colour for colour in there if colour != roles.stable), "none"))
    if roles.role == "none" and share_of(endpoint, roles.other):
        roles = roles._replace(role="canary")
    return roles


def deploy(wanted: Wanted, say: Say) -> Deployed:
    """Have the wanted version run beside the one that clients use, which keeps all its requests."""
    ml = client()
    endpoint_asked, asked = settings_of(wanted)
    with explained(wanted, f"deploying {wanted.model_uri} to endpoint {wanted.name}"):
        settled(ml, wanted, say)
        endpoint = ensure_endpoint(ml, wanted, endpoint_asked, say)
        there = deployments(ml, wanted)
        colour = next((c for c, d in there.items() if serves(d, asked) and works(d)), "")
        if colour:
            say(f"{colour} serves {wanted.model_uri} already")
            return _reach(ml, endpoint, colour)
        # The one without requests; one that has failed before one that works, which could be gone back to.
        colour = min(COLOURS, key=lambda c: (share_of(endpoint, c), c in there and works(there[c]), c not in there))
        if share_of(endpoint, colour):
            raise DeployError(
                f"blue and green of {wanted.name} both get requests: promote or roll back first\n  "
                f"{wanted.command('promote')}\n  {wanted.command('rollback')}"
            )
        stable, other, role = roles_of(endpoint, there)
        if colour == other and role != "none":
            # Else a rollback or promotion, if this goes wrong, would lead to what has never answered.
            say(f"{_named(there, colour)}, {role}, makes room")
            _route(ml, wanted, endpoint, say, traffic=_traffic(endpoint), roles=Roles(stable))
        make_deployment(ml, wanted, asked, colour, say)
        return _reach(ml, existing(ml, wanted), colour)


def release(wanted: Wanted, say: Say) -> Deployed:
    """Give the wanted version its share of the requests: all, where it is the only one."""
    ml = client()
    _, asked = settings_of(wanted)
    with explained(wanted, f"sharing the requests of endpoint {wanted.name}"):
        endpoint, there = existing(ml, wanted), deployments(ml, wanted)
        colour = next(c for c, d in there.items() if serves(d, asked) and works(d))
        stable = roles_of(endpoint, there).stable
        if not share_of(endpoint, stable):
            _route(ml, wanted, endpoint, say, traffic={colour: 100}, roles=Roles(colour))
        elif colour != stable and wanted.traffic == 100:
            _route(ml, wanted, endpoint, say, traffic={colour: 100}, roles=Roles(colour, stable, "previous"))
        elif colour != stable:
            traffic = {stable: 100 - wanted.traffic, colour: wanted.traffic}
            _route(ml, wanted, endpoint, say, traffic=traffic, roles=Roles(stable, colour, "canary"))
            say(f"to go on: {wanted.command('promote')}\ndeploy: to go back: {wanted.command('rollback')}")
        return _seen(ml, wanted)


def promote(wanted: Wanted, say: Say) -> Deployed:
    """Give all requests to the canary; the other version stays, without requests, for `rollback`.

    Raises:
        InputError: there is no canary, nor was one promoted before.
    """
    ml = client()
    with explained(wanted, f"promoting on endpoint {wanted.name}"):
        settled(ml, wanted, say)
        endpoint, there = existing(ml, wanted), deployments(ml, wanted)
        stable, other, role = roles_of(endpoint, there)
        if role == "canary":
            _require_works(wanted, there, other)
            _route(ml, wanted, endpoint, say, traffic={other: 100}, roles=Roles(other, stable, "previous"))
        elif role == "previous":
            say(f"{_named(there, stable)} was promoted already")
            _route(ml, wanted, endpoint, say, traffic={stable: 100}, roles=Roles(stable, other, role))
        else:
            raise InputError(
                f"{wanted.name} has no canary; {_named(there, stable)} gets all requests\n"
                f"  to have one: {wanted.command('deploy')}"
            )
        return _seen(ml, wanted)


def rollback(wanted: Wanted, say: Say) -> Deployed:
    """Take a canary's requests away; where there is no canary, give all requests to the version before the last promotion.

    Raises:
        InputError: there is neither, nor was one rolled back before.
    """
    ml = client()
    with explained(wanted, f"rolling back endpoint {wanted.name}"):
        settled(ml, wanted, say)
        endpoint, there = existing(ml, wanted), deployments(ml, wanted)
        stable, other, role = roles_of(endpoint, there)
        if role == "none":
            raise InputError(
                f"{wanted.name} has neither a canary nor a version before: {_named(there, stable)} gets all requests\n"
                f"  for another version: {wanted.command('deploy')}"
            )
        if role == "previous":
            stable, other = other, stable
        elif role == "rejected":
            say(f"{_named(there, other)} was rolled back already")
        _require_works(wanted, there, stable)
        _route(ml, wanted, endpoint, say, traffic={stable: 100}, roles=Roles(stable, other, "rejected"))
        return _seen(ml, wanted)


def status(wanted: Wanted, say: Say) -> Deployed:
    """Look at the endpoint and its deployments."""
    with explained(wanted, f"looking at endpoint {wanted.name}"):
        return _seen(client(), wanted)


def delete(wanted: Wanted, say: Say) -> bool:
    """Delete the endpoint with its deployments; whether there was one."""
    ml = client()
    with explained(wanted, f"deleting endpoint {wanted.name}"):
        if endpoint_called(ml, wanted) is None:
            return False
        wait(ml.online_endpoints.begin_delete(name=wanted.name), wanted, f"deleting endpoint {wanted.name}", say)
    return True


def share_of(endpoint: "OnlineEndpoint", colour: str) -> int:
    """Percent of the requests that a colour gets."""
    return _traffic(endpoint).get(colour, 0)


def _traffic(endpoint: "OnlineEndpoint") -> dict[str, int]:
    return {colour: int(share) for colour, share in (endpoint.traffic or {}).items() if share}


def _require_works(wanted: Wanted, there: "dict[str, OnlineDeployment]", colour: str) -> None:
    if not works(there.get(colour)):
        raise DeployError(f"{_named(there, colour)} does not work: all stays as it is\n{wanted.next_commands()}")


def _named(there: "dict[str, OnlineDeployment]", colour: str) -> str:
    return f"{colour} ({(there[colour].tags or {}).get(MODEL, 'another model')})" if colour in there else "no version"


def _route(
    ml: "MLClient", wanted: Wanted, endpoint: "OnlineEndpoint", say: Say, *, traffic: dict[str, int], roles: Roles
) -> None:
    """Share the requests among the deployments and remember what they are, in one request."""
    traffic = {colour: share for colour, share in traffic.items() if share}
    tags = (endpoint.tags or {}) | dict(zip(TAGS, roles, strict=True))
    if _traffic(endpoint) == traffic and endpoint.tags == tags:
        return
    endpoint.traffic, endpoint.tags = traffic, tags
    shares = ", ".join(f"{colour} {percent}%" for colour, percent in traffic.items())
    wait(ml.online_endpoints.begin_create_or_update(endpoint), wanted, f"requests: {shares or 'none'}", say)


def _reach(ml: "MLClient", endpoint: "OnlineEndpoint", colour: str) -> Deployed:
    """How to reach one deployment, whatever its share of the requests; without a colour, the endpoint."""
    keys = ml.online_endpoints.get_keys(endpoint.name)
    key = getattr(keys, "primary_key", None) or getattr(keys, "access_token", "")
    headers = {"Authorization": f"Bearer {key}"} | ({"azureml-model-deployment": colour} if colour else {})
    back = "" if not colour or share_of(endpoint, colour) else to_delete(ml, str(endpoint.name), colour)
    return Deployed(state_of(endpoint), str(endpoint.scoring_uri), headers, "input_data", back=back)


def _seen(ml: "MLClient", wanted: Wanted) -> Deployed:
    endpoint, there = existing(ml, wanted), deployments(ml, wanted)
    stable, other, role = roles_of(endpoint, there)
    told = [
        f"{_named(there, colour)} {state_of(deployment)}, {share_of(endpoint, colour)}% of the requests"
        f"{', stable' if colour == stable else f', {role}' if colour == other and role != 'none' else ''}"
        for colour, deployment in there.items()
    ]
    detail = "; ".join(told) or "no deployment yet"
    if not any(share_of(endpoint, colour) for colour in there):
        return Deployed(state_of(endpoint), detail=detail)
    return _reach(ml, endpoint, "")._replace(detail=detail)
