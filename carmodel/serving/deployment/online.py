"""Online endpoints of Azure ML, managed or on a Kubernetes cluster: two deployments, blue and green, behind one address.

A new version goes to the colour that clients don't use. Once it has answered a photo it gets a share of the requests: a
canary. `promote` gives it all of them and keeps the other for `rollback`
(https://learn.microsoft.com/azure/machine-learning/how-to-safely-rollout-online-endpoints). Which colour is what is kept in the
endpoint's tags, so that a command that is given twice does the same once.
"""

from typing import TYPE_CHECKING, NamedTuple

from carmodel.errors import InputError
from carmodel.serving.deployment.failure import explained
from carmodel.serving.deployment.online_service import (
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
    wait,
    works,
)
from carmodel.serving.deployment.wanted import Deployed, DeployError, Say, Wanted

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import OnlineDeployment, OnlineEndpoint

COLOURS = ("blue", "green")
STABLE, CANARY, PREVIOUS = "carmodel.stable", "carmodel.canary", "carmodel.previous"


class Roles(NamedTuple):
    """Which colour is what, from the tags of an endpoint; empty: none is.

    Attributes:
        stable: gets the requests, or most of them.
        canary: has answered a photo, and waits to be promoted.
        previous: was stable before the last promotion.
    """

    stable: str = ""
    canary: str = ""
    previous: str = ""

    @property
    def tags(self) -> dict[str, str]:
        """As they are kept; Azure takes no empty values."""
        return {name: colour or "none" for name, colour in zip((STABLE, CANARY, PREVIOUS), self, strict=True)}


def roles_of(endpoint: "OnlineEndpoint", there: "dict[str, OnlineDeployment]") -> Roles:
    """The roles; where the traffic was changed by hand, whichever gets most of the requests is the stable one."""
    tags = endpoint.tags or {}
    stable, canary, previous = (
        colour if (colour := tags.get(name)) in there else "" for name in (STABLE, CANARY, PREVIOUS)
    )
    if not stable or not share_of(endpoint, stable):
        stable = max(there, key=lambda colour: share_of(endpoint, colour), default="")
        stable = stable if stable and share_of(endpoint, stable) else ""
    return Roles(stable, canary if canary != stable else "", previous if previous != stable else "")


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
        roles = roles_of(endpoint, there)
        if colour in (roles.canary, roles.previous):
            # Else a rollback or promotion, if this goes wrong, would lead to what has never answered.
            say(f"{_named(there, colour)} makes room")
            _route(ml, wanted, endpoint, say, traffic=_traffic(endpoint), roles=Roles(roles.stable))
        make_deployment(ml, wanted, asked, colour, say)
        return _reach(ml, existing(ml, wanted), colour)


def release(wanted: Wanted, say: Say) -> Deployed:
    """Give the wanted version its share of the requests: all, where it is the only one."""
    ml = client()
    _, asked = settings_of(wanted)
    with explained(wanted, f"sharing the requests of endpoint {wanted.name}"):
        endpoint, there = existing(ml, wanted), deployments(ml, wanted)
        colour = next(c for c, d in there.items() if serves(d, asked) and works(d))
        stable, _, previous = roles_of(endpoint, there)
        if stable in ("", colour):
            if not share_of(endpoint, colour):
                _route(ml, wanted, endpoint, say, traffic={colour: 100}, roles=Roles(colour))
        elif wanted.traffic == 100:
            _route(ml, wanted, endpoint, say, traffic={colour: 100}, roles=Roles(colour, previous=stable))
        else:
            traffic = {stable: 100 - wanted.traffic, colour: wanted.traffic}
            roles = Roles(stable, colour, previous if previous != colour else "")
            _route(ml, wanted, endpoint, say, traffic=traffic, roles=roles)
            say(f"to go on: {wanted.command('promote')}\ndeploy: to go back: {wanted.command('rollback')}")
        return _seen(ml, wanted)


def promote(wanted: Wanted, say: Say) -> Deployed:
    """Give all requests to the canary; the other version stays, without requests, for `rollback`.

    Raises:
        InputError: there is no canary, nor was one promoted before.
    """
    ml = client()
    with explained(wanted, f"promoting on endpoint {wanted.name}"):
        endpoint, there = existing(ml, wanted), deployments(ml, wanted)
        roles = roles_of(endpoint, there)
        if roles.canary:
            if not works(there[roles.canary]):
                raise DeployError(f"{_named(there, roles.canary)} does not work\n{wanted.next_commands()}")
            _route(
                ml, wanted, endpoint, say, traffic={roles.canary: 100}, roles=Roles(roles.canary, previous=roles.stable)
            )
        elif roles.previous:
            say(f"{_named(there, roles.stable)} was promoted already")
        else:
            raise InputError(
                f"{wanted.name} has no canary; {_named(there, roles.stable)} gets all requests\n"
                f"  to have one: {wanted.command('deploy')}"
            )
        return _seen(ml, wanted)


def rollback(wanted: Wanted, say: Say) -> Deployed:
    """Take a canary's requests away; where there is no canary, give all requests to the version before the last promotion.

    Raises:
        InputError: there is neither.
    """
    ml = client()
    with explained(wanted, f"rolling back endpoint {wanted.name}"):
        endpoint, there = existing(ml, wanted), deployments(ml, wanted)
        stable, canary, previous = roles_of(endpoint, there)
        if canary:
            _route(ml, wanted, endpoint, say, traffic={stable: 100}, roles=Roles(stable, previous=previous))
        elif previous and works(there[previous]):
            _route(ml, wanted, endpoint, say, traffic={previous: 100}, roles=Roles(previous))
        else:
            raise InputError(
                f"{wanted.name} has neither a canary nor a version before: {_named(there, stable)} gets all requests\n"
                f"  for another version: {wanted.command('deploy')}"
            )
        return _seen(ml, wanted)


def status(wanted: Wanted, say: Say) -> Deployed:
    """Look at the endpoint and its deployments."""
    with explained(wanted, f"looking at endpoint {wanted.name}"):
        return _seen(client(), wanted)


def delete(wanted: Wanted, say: Say) -> None:
    """Delete the endpoint with its deployments; fine where there is none."""
    ml = client()
    with explained(wanted, f"deleting endpoint {wanted.name}"):
        if endpoint_called(ml, wanted) is None:
            say(f"there is no endpoint {wanted.name}")
            return
        wait(ml.online_endpoints.begin_delete(name=wanted.name), wanted, f"deleting endpoint {wanted.name}", say)


def share_of(endpoint: "OnlineEndpoint", colour: str) -> int:
    """Percent of the requests that a colour gets."""
    return _traffic(endpoint).get(colour, 0)


def _traffic(endpoint: "OnlineEndpoint") -> dict[str, int]:
    return {colour: int(share) for colour, share in (endpoint.traffic or {}).items() if share}


def _named(there: "dict[str, OnlineDeployment]", colour: str) -> str:
    return f"{colour} ({(there[colour].tags or {}).get(MODEL, 'another model')})" if colour in there else "no version"


def _route(
    ml: "MLClient", wanted: Wanted, endpoint: "OnlineEndpoint", say: Say, *, traffic: dict[str, int], roles: Roles
) -> None:
    """Share the requests among the deployments and remember what they are, in one request."""
    traffic = {colour: share for colour, share in traffic.items() if share}
    tags = (endpoint.tags or {}) | roles.tags
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
    return Deployed(state_of(endpoint), str(endpoint.scoring_uri), headers, "input_data")


def _seen(ml: "MLClient", wanted: Wanted) -> Deployed:
    endpoint, there = existing(ml, wanted), deployments(ml, wanted)
    roles = roles_of(endpoint, there)._asdict()
    told = []
    for colour, deployment in there.items():
        role = "".join(f", {role}" for role, of in roles.items() if of == colour)
        told.append(
            f"{colour}: {(deployment.tags or {}).get(MODEL, 'another model')}, {state_of(deployment)}, "
            f"{share_of(endpoint, colour)}% of the requests{role}"
        )
    detail = "; ".join(told) or "no deployment yet"
    if not any(share_of(endpoint, colour) for colour in there):
        return Deployed(state_of(endpoint), detail=detail)
    return _reach(ml, endpoint, "")._replace(detail=detail)
