"""Online endpoints of Azure ML, managed or on Kubernetes: two deployments, blue and green, behind one URL.

A new version goes to the color without requests. Once it has answered a photo, it gets a share of the requests and is a canary.
`promote` gives it all requests and keeps the other deployment for `rollback`
(https://learn.microsoft.com/azure/machine-learning/how-to-safely-rollout-online-endpoints). The tags of the endpoint record the
role of each color, so every action is idempotent.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from carmodel.cloud.azure import workspace_client
from carmodel.deploy.messages import client_errors_explained, command, next_commands, say
from carmodel.deploy.online_service import (
    MODEL_TAG,
    create_deployment,
    deletion_line,
    ensure_endpoint,
    find_endpoint,
    get_deployments,
    get_endpoint,
    is_healthy,
    is_same,
    read_settings,
    state_of,
    wait,
    wait_until_settled,
)
from carmodel.deploy.status import DeployError, Status
from carmodel.errors import InputError
from carmodel.parameters import Deploy

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import OnlineDeployment, OnlineEndpoint

COLORS = ("blue", "green")
ROLE_TAGS = ("carmodel.stable", "carmodel.other", "carmodel.role")


class Roles(NamedTuple):
    """The roles of the two deployments, as in the tags of the endpoint. Azure refuses empty tags, hence "none".

    Attributes:
        stable: the color that gets most or all requests.
        other: the other color.
        role: of the other color. "canary": has answered a photo and waits for `promote`. "previous": was stable before.
            "rejected": was taken back by `rollback`.
    """

    stable: str = "none"
    other: str = "none"
    role: str = "none"


def roles_of(endpoint: "OnlineEndpoint", deployments: "dict[str, OnlineDeployment]") -> Roles:
    """Return the roles of the deployments.

    If traffic was changed by hand, it takes precedence over the tags: the color that gets most of it is stable.
    """
    roles = Roles(*((endpoint.tags or {}).get(tag, "none") for tag in ROLE_TAGS))
    most = max(deployments, key=lambda color: traffic_share(endpoint, color), default="none")
    if traffic_share(endpoint, most) and not traffic_share(endpoint, roles.stable):
        roles = Roles(most, roles.stable, "previous" if roles.stable in deployments else "none")
    if roles.other not in deployments or roles.other == roles.stable:
        roles = Roles(roles.stable, next((color for color in deployments if color != roles.stable), "none"))
    if roles.role == "none" and traffic_share(endpoint, roles.other):
        roles = Roles(roles.stable, roles.other, "canary")
    return roles


def deploy(settings: Deploy) -> Status:
    """Deploy the version to the color without requests. The deployment that clients use keeps all its requests."""
    client = workspace_client()
    desired_endpoint, desired = read_settings(settings)
    with client_errors_explained(settings, f"deploying {settings.model_uri} to endpoint {settings.name}"):
        wait_until_settled(client, settings)
        endpoint = ensure_endpoint(client, settings, desired_endpoint)
        deployments = get_deployments(client, settings)
        if color := _color_of(deployments, desired):
            say(f"{color} already serves {settings.model_uri}")
            return _status_of_color(client, endpoint, color)
        color = _color_to_replace(endpoint, deployments)
        if traffic_share(endpoint, color):
            raise DeployError(
                f"blue and green of {settings.name} both get requests: promote or roll back first\n  "
                f"{command(settings, 'promote')}\n  {command(settings, 'rollback')}"
            )
        stable, other, role = roles_of(endpoint, deployments)
        if color == other and role != "none":
            # If this deployment fails, `promote` and `rollback` must not lead to a version that has never answered.
            say(f"replacing {_describe(deployments, color)}, {role}")
            _route(client, settings, endpoint, traffic=_traffic(endpoint), roles=Roles(stable))
        create_deployment(client, settings, desired, color)
        return _status_of_color(client, get_endpoint(client, settings), color)


def release(settings: Deploy) -> Status:
    """Give the version its share of the requests: all of them if it is the only one."""
    client = workspace_client()
    _, desired = read_settings(settings)
    with client_errors_explained(settings, f"routing the requests of endpoint {settings.name}"):
        endpoint, deployments = get_endpoint(client, settings), get_deployments(client, settings)
        color = _color_of(deployments, desired)
        stable = roles_of(endpoint, deployments).stable
        if not traffic_share(endpoint, stable):
            _route(client, settings, endpoint, traffic={color: 100}, roles=Roles(color))
        elif color != stable and settings.traffic == 100:
            _route(client, settings, endpoint, traffic={color: 100}, roles=Roles(color, stable, "previous"))
        elif color != stable:
            traffic = {stable: 100 - settings.traffic, color: settings.traffic}
            _route(client, settings, endpoint, traffic=traffic, roles=Roles(stable, color, "canary"))
            say(f"to promote it: {command(settings, 'promote')}")
            say(f"to roll back: {command(settings, 'rollback')}")
        return _status_of_endpoint(client, settings)


def promote(settings: Deploy) -> Status:
    """Give all requests to the canary. Keep the other version, without requests, for `rollback`.

    Raises:
        InputError: there is no canary, and none was promoted before.
    """
    client = workspace_client()
    with client_errors_explained(settings, f"promoting on endpoint {settings.name}"):
        wait_until_settled(client, settings)
        endpoint, deployments = get_endpoint(client, settings), get_deployments(client, settings)
        stable, other, role = roles_of(endpoint, deployments)
        if role == "canary":
            _require_healthy(settings, deployments, other)
            _route(client, settings, endpoint, traffic={other: 100}, roles=Roles(other, stable, "previous"))
        elif role == "previous":
            say(f"{_describe(deployments, stable)} is already promoted")
            _route(client, settings, endpoint, traffic={stable: 100}, roles=Roles(stable, other, role))
        else:
            raise InputError(
                f"{settings.name} has no canary; {_describe(deployments, stable)} gets all requests\n"
                f"  to deploy one: {command(settings, 'deploy')}"
            )
        return _status_of_endpoint(client, settings)


def rollback(settings: Deploy) -> Status:
    """Take the requests away from a canary. Without a canary, give all requests to the version before the last promotion.

    Raises:
        InputError: there is no canary and no previous version, and none was rolled back before.
    """
    client = workspace_client()
    with client_errors_explained(settings, f"rolling back endpoint {settings.name}"):
        wait_until_settled(client, settings)
        endpoint, deployments = get_endpoint(client, settings), get_deployments(client, settings)
        stable, other, role = roles_of(endpoint, deployments)
        if role == "none":
            raise InputError(
                f"{settings.name} has no canary and no previous version: {_describe(deployments, stable)} gets all "
                f"requests\n  to deploy another version: {command(settings, 'deploy')}"
            )
        if role == "previous":
            stable, other = other, stable
        elif role == "rejected":
            say(f"{_describe(deployments, other)} is already rolled back")
        _require_healthy(settings, deployments, stable)
        _route(client, settings, endpoint, traffic={stable: 100}, roles=Roles(stable, other, "rejected"))
        return _status_of_endpoint(client, settings)


def status(settings: Deploy) -> Status:
    """Return the status of the endpoint and its deployments."""
    with client_errors_explained(settings, f"getting endpoint {settings.name}"):
        return _status_of_endpoint(workspace_client(), settings)


def delete(settings: Deploy) -> bool:
    """Delete the endpoint with its deployments. Return whether there was one."""
    client = workspace_client()
    doing = f"deleting endpoint {settings.name}"
    with client_errors_explained(settings, doing):
        if find_endpoint(client, settings) is None:
            return False
        wait(client.online_endpoints.begin_delete(name=settings.name), settings, doing)
    return True


def traffic_share(endpoint: "OnlineEndpoint", color: str) -> int:
    """Return the percent of the requests that a color gets."""
    return _traffic(endpoint).get(color, 0)


def _traffic(endpoint: "OnlineEndpoint") -> dict[str, int]:
    return {color: int(share) for color, share in (endpoint.traffic or {}).items() if share}


def _color_of(deployments: "dict[str, OnlineDeployment]", desired: "OnlineDeployment") -> str:
    """Return the color of a healthy deployment with the desired model and settings, or an empty string."""
    same = (color for color, current in deployments.items() if is_same(current, desired) and is_healthy(current))
    return next(same, "")


def _color_to_replace(endpoint: "OnlineEndpoint", deployments: "dict[str, OnlineDeployment]") -> str:
    """Return the color with the fewest requests. Prefer one that has failed to one that a rollback could use."""
    return min(
        COLORS,
        key=lambda color: (
            traffic_share(endpoint, color), is_healthy(deployments.get(color)), color not in deployments,
        ),
    )  # fmt: skip


def _require_healthy(settings: Deploy, deployments: "dict[str, OnlineDeployment]", color: str) -> None:
    if not is_healthy(deployments.get(color)):
        raise DeployError(
            f"{_describe(deployments, color)} is not healthy: nothing was changed\n{next_commands(settings)}"
        )


def _describe(deployments: "dict[str, OnlineDeployment]", color: str) -> str:
    if color not in deployments:
        return "no version"
    return f"{color} ({(deployments[color].tags or {}).get(MODEL_TAG, 'another model')})"


def _route(
    client: "MLClient", settings: Deploy, endpoint: "OnlineEndpoint", *, traffic: dict[str, int], roles: Roles
) -> None:
    """Set the traffic and the roles of the deployments, in one request."""
    traffic = {color: share for color, share in traffic.items() if share}
    tags = (endpoint.tags or {}) | dict(zip(ROLE_TAGS, roles, strict=True))
    if _traffic(endpoint) == traffic and endpoint.tags == tags:
        return
    endpoint.traffic, endpoint.tags = traffic, tags
    shares = ", ".join(f"{color} {percent}%" for color, percent in traffic.items())
    wait(client.online_endpoints.begin_create_or_update(endpoint), settings, f"traffic: {shares or 'none'}")


def _status_of_color(client: "MLClient", endpoint: "OnlineEndpoint", color: str) -> Status:
    """Return the status, with headers that reach one deployment whatever its share of the requests."""
    reached = _reachable(client, endpoint)
    undo = "" if traffic_share(endpoint, color) else deletion_line(client, str(endpoint.name), color)
    return replace(reached, headers=reached.headers | {"azureml-model-deployment": color}, undo=undo)


def _status_of_endpoint(client: "MLClient", settings: Deploy) -> Status:
    endpoint, deployments = get_endpoint(client, settings), get_deployments(client, settings)
    stable, other, role = roles_of(endpoint, deployments)
    roles = {other: f", {role}" if role != "none" else "", stable: ", stable"}
    detail = "; ".join(
        f"{_describe(deployments, color)} {state_of(deployment)}, {traffic_share(endpoint, color)}% of the requests"
        f"{roles.get(color, '')}"
        for color, deployment in deployments.items()
    )
    if not any(traffic_share(endpoint, color) for color in deployments):
        return Status(state_of(endpoint), detail=detail or "no deployment yet")
    return replace(_reachable(client, endpoint), detail=detail)


def _reachable(client: "MLClient", endpoint: "OnlineEndpoint") -> Status:
    """Return the status with the URL and the key."""
    keys = client.online_endpoints.get_keys(endpoint.name)
    key = getattr(keys, "primary_key", None) or getattr(keys, "access_token", "")
    headers = {"Authorization": f"Bearer {key}"}
    return Status(state_of(endpoint), str(endpoint.scoring_uri), headers, "input_data")
