"""Online endpoints, managed and on Kubernetes, through the real SDK: blue and green, canary, promotion, rollback, failures."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cloud import online_client
from tests.cloud.arm_online import INFERENCE, TRACKING_URI, Workspace, arm_service, scoring_service
from tests.cloud.identity import Identity, login_service
from tests.cloud.proxy import Proxy, lead
from tests.cloud.stand_in import Authority, Wire, serve
from tests.tiny import Endpoint


@dataclass
class Cloud:
    """The stand-ins, and a way to act on them."""

    workspace: Workspace
    identity: Identity
    arm: Wire
    proxy: Proxy
    environment: dict[str, str]

    def act(self, *actions: str, version: int = 1, target: str = "online", **changed: Any) -> str:
        """Do it, and return what is said; an action may change what is wanted from then on: ``deploy version=2``."""
        code, said = self.run(*actions, version=version, target=target, **changed)
        assert code == 0, said
        return said

    def refuse(self, *actions: str, version: int = 1, target: str = "online", **changed: Any) -> str:
        """Do it, and return the error that it ends with."""
        code, said = self.run(*actions, version=version, target=target, **changed)
        assert code == 1 and "Traceback" not in said, said
        return said

    def run(self, *actions: str, version: int, target: str, **changed: Any) -> tuple[int, str]:
        settings = {"target": target, "name": "cars", "model_uri": f"models:/cars/{version}", "timeout": 60} | changed
        code, said = online_client.run(settings, actions, TRACKING_URI, self.environment)
        for secret in (self.identity.secret, *self.identity.tokens, *self.keys()):
            assert secret not in said
        return code, said

    def keys(self) -> list[str]:
        return [key for endpoint in self.workspace.endpoints.values() for key in endpoint.keys.values()]

    @property
    def traffic(self) -> dict[str, int]:
        return {colour: share for colour, share in self.workspace.endpoints["cars"].traffic.items() if share}


@pytest.fixture
def cloud(authority: Authority, endpoint: Endpoint) -> Iterator[Cloud]:
    identity = Identity()
    workspace = Workspace(identity, models={"cars:1", "cars:2", "cars:3"})
    with ExitStack() as stack:
        arm, login, scoring = (
            stack.enter_context(serve(app, authority))
            for app in (arm_service(workspace), login_service(identity), scoring_service(workspace, endpoint.address))
        )
        hosts = {
            r"management\.azure\.com": arm,
            r"login\.microsoftonline\.com": login,
            r".*\.inference\.ml\.azure\.com": scoring,
        }
        proxy = stack.enter_context(lead(hosts))
        own = {k: v for k, v in os.environ.items() if not k.startswith(("AZURE_", "MLFLOW_"))}
        environment = own | proxy.environment | authority.environment | identity.environment
        yield Cloud(workspace, identity, arm, proxy, environment)


@pytest.mark.parametrize("target", ["online", "kubernetes-online"])
def test_versions_come_as_canaries_and_are_promoted_or_taken_back(cloud: Cloud, target: str) -> None:
    said = cloud.act("deploy", "smoke", "release", target=target)
    assert "a photo was answered with" in said
    assert cloud.traffic == {"blue": 100}
    (created,) = cloud.arm.seen("PUT", "/onlineEndpoints/cars$")[:1]
    assert json.loads(created.body)["properties"]["authMode"] == "Key"

    made = len(cloud.arm.seen("PUT", "/deployments/"))
    assert "already serves models:/cars/1" in cloud.act("deploy", "smoke", "release", target=target)
    assert len(cloud.arm.seen("PUT", "/deployments/")) == made, "a rerun makes nothing anew"

    said = cloud.act("deploy", "smoke", "release", "status", version=2, target=target)
    assert cloud.traffic == {"blue": 90, "green": 10}
    assert "green (models:/cars/2) Succeeded, 10% of the requests, canary" in said
    assert "traffic: blue 100%" in cloud.act("rollback", "release version=2", "promote", target=target)
    assert cloud.traffic == {"green": 100}
    cloud.act("rollback", target=target)
    assert cloud.traffic == {"blue": 100}

    cloud.act("deploy", "release", "promote", version=3, target=target)
    assert cloud.traffic == {"green": 100}
    assert cloud.workspace.endpoints["cars"].deployments["green"].body["tags"]["carmodel.model"] == "models:/cars/3"
    assert "delete -> False" in cloud.act("delete", "delete", target=target), "there is none any more"
    assert cloud.workspace.endpoints == {}
    assert set(cloud.proxy.refused) == set()


def test_a_command_given_twice_does_the_same_once(cloud: Cloud) -> None:
    assert "no canary; blue (models:/cars/1) gets all requests" in cloud.refuse("deploy", "release", "promote")
    cloud.act("deploy", "release", "release", version=2)
    assert cloud.traffic == {"blue": 90, "green": 10}
    assert "no canary; blue (models:/cars/1) gets all requests" in cloud.refuse("rollback", "promote")
    cloud.act("deploy", "release", version=2)
    said = cloud.act("promote", "promote", "deploy version=2", "release")
    assert "green (models:/cars/2) is already promoted" in said
    assert cloud.traffic == {"green": 100}, "the stable version stays what it is"
    assert "green (models:/cars/2) is already rolled back" in cloud.act("rollback", "rollback")
    assert cloud.traffic == {"blue": 100}


def test_the_share_of_a_canary_is_what_is_asked_for_and_it_is_never_taken_for_the_stable_one(cloud: Cloud) -> None:
    cloud.act("deploy", "release", "deploy version=2 traffic=0", "release")
    assert cloud.traffic == {"blue": 100}
    cloud.act("deploy", "release", "deploy version=1", "release", version=2, traffic=95)
    assert cloud.traffic == {"blue": 5, "green": 95}
    cloud.act("rollback")
    assert cloud.traffic == {"blue": 100}
    assert "traffic: green 100%" in cloud.act("deploy", "release", "rollback", version=2, traffic=100)
    assert cloud.traffic == {"blue": 100}


def test_nothing_leads_back_to_a_version_that_was_replaced(cloud: Cloud) -> None:
    cloud.act("deploy", "release", "deploy version=2", "release", "promote")
    cloud.workspace.broken = "out of memory"
    cloud.refuse("deploy", version=3)
    assert "no canary and no previous version: green (models:/cars/2)" in cloud.refuse("rollback")
    assert cloud.traffic == {"green": 100}


def test_traffic_that_was_changed_by_hand_says_which_version_is_stable(cloud: Cloud) -> None:
    cloud.act("deploy", "release", "deploy version=2", "release")
    cloud.workspace.endpoints["cars"].traffic = {"green": 100}
    cloud.act("deploy", "release", version=3)
    endpoint = cloud.workspace.endpoints["cars"]
    assert cloud.traffic == {"green": 90, "blue": 10}
    assert endpoint.deployments["blue"].body["tags"]["carmodel.model"] == "models:/cars/3"

    # An endpoint of another program: two that get requests, and no tags.
    endpoint.body["tags"], endpoint.traffic = {}, {"blue": 60, "green": 40}
    assert "promote or roll back first" in cloud.refuse("deploy version=1")
    cloud.act("promote")
    assert cloud.traffic == {"green": 100}
    endpoint.traffic = {"blue": 50, "green": 50}
    assert "is already promoted" in cloud.act("promote")
    assert cloud.traffic == {"green": 100}


def test_an_endpoint_of_the_other_kind_is_left_alone(cloud: Cloud) -> None:
    cloud.act("deploy", "release")
    for action in ("deploy", "promote", "status", "delete"):
        assert "is an endpoint of target=online" in cloud.refuse(action, target="kubernetes-online")


def test_changed_settings_are_a_canary_too_and_a_changed_or_failed_endpoint_is_put_right(
    cloud: Cloud, tmp_path: Path
) -> None:
    for name in ("endpoint.yml", "deployment.yml"):
        (tmp_path / name).write_text(Path("backends/online", name).read_text())
    file = str(tmp_path / "deployment.yml")
    cloud.act("deploy", "release", settings_file=file)
    sent = len(cloud.arm.seen("PUT", ""))
    cloud.act("deploy", "release", settings_file=file)
    assert len(cloud.arm.seen("PUT", "")) == sent

    (tmp_path / "deployment.yml").write_text((tmp_path / "deployment.yml").read_text().replace("DS3_v2", "DS4_v2"))
    cloud.act("deploy", "release", settings_file=file)
    assert cloud.traffic == {"blue": 90, "green": 10}
    endpoint = cloud.workspace.endpoints["cars"]
    assert endpoint.deployments["green"].body["properties"]["instanceType"] == "Standard_DS4_v2"

    (tmp_path / "endpoint.yml").write_text((tmp_path / "endpoint.yml").read_text() + "description: cars\n")
    cloud.act("deploy", "release", settings_file=file)
    assert endpoint.body["properties"]["description"] == "cars"
    assert cloud.traffic == {"blue": 90, "green": 10}

    endpoint.state = "Failed"
    assert "updating endpoint cars" in cloud.act("deploy", "release", settings_file=file)
    assert endpoint.state == "Succeeded"
    assert cloud.traffic == {"blue": 90, "green": 10}


def test_an_endpoint_that_is_being_deleted_is_waited_for_and_made_anew(cloud: Cloud) -> None:
    cloud.act("deploy", "release")
    cloud.workspace.endpoints["cars"].state = "Deleting"
    cloud.workspace.start(lambda: cloud.workspace.endpoints.pop("cars") and None)
    said = cloud.act("deploy", "release", version=2)
    assert "waiting for an earlier operation on cars" in said
    assert cloud.traffic == {"blue": 100}
    assert cloud.workspace.endpoints["cars"].deployments["blue"].body["tags"]["carmodel.model"] == "models:/cars/2"


def test_a_container_that_crashes_gets_no_requests_and_shows_its_log_and_a_rerun_finishes_the_work(
    cloud: Cloud,
) -> None:
    cloud.act("deploy", "release")
    cloud.workspace.broken = "ModuleNotFoundError: No module named 'keras'"
    said = cloud.refuse("deploy", "release", version=2)
    assert "User container has crashed" in said
    assert "No module named 'keras'" in said
    assert "to delete green alone:  az ml online-deployment delete --name green --endpoint-name cars" in said
    assert "action=delete" in said
    assert cloud.traffic == {"blue": 100}
    cloud.workspace.broken = ""
    cloud.act("deploy", "smoke", "release", version=2)
    assert cloud.traffic == {"blue": 90, "green": 10}


def test_an_operation_that_takes_too_long_is_said_to_go_on(cloud: Cloud) -> None:
    cloud.workspace.stuck = True
    said = cloud.refuse("deploy", timeout=3)
    assert "still InProgress after timeout=3 seconds" in said
    assert "action=status" in said
    cloud.workspace.stuck = False
    cloud.act("deploy", "smoke", "release")
    assert cloud.traffic == {"blue": 100}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "az login"),
        (403, "AzureML Data Scientist"),
        (404, "there is no such workspace"),
        (409, "another operation"),
        (400, "refuses"),
    ],
)
def test_a_refusal_is_told_in_the_service_s_words_and_with_the_next_command(
    cloud: Cloud, status: int, words: str
) -> None:
    body = json.dumps({"error": {"code": "Oops", "message": "Because it is Monday."}}).encode()
    cloud.arm.fail("PUT", "/onlineEndpoints/cars$", status, body=body, times=9)
    said = cloud.refuse("deploy")
    assert f"{status}: " in said
    assert "Because it is Monday." in said
    assert words in said
    assert "-P target=online -P name=cars -P action=status" in said


def test_what_passes_is_tried_again(cloud: Cloud) -> None:
    cloud.arm.fail("PUT", "/onlineEndpoints/cars$", 429, headers={"Retry-After": "1"})
    cloud.arm.fail("PUT", "/deployments/blue$", 500)
    cloud.arm.fail("GET", "/deployments$", 0)
    cloud.act("deploy", "smoke", "release")
    first, second = cloud.arm.seen("PUT", "/onlineEndpoints/cars$")[:2]
    assert first.body == second.body
    assert cloud.traffic == {"blue": 100}


def test_wrong_credentials_are_said_to_be_wrong(cloud: Cloud) -> None:
    cloud.environment["AZURE_CLIENT_SECRET"] = "wrong"
    assert "az login" in cloud.refuse("status")


def test_a_token_that_expires_midway_is_asked_for_again(cloud: Cloud) -> None:
    cloud.identity.lifetime = 2
    cloud.act("deploy", "smoke", "release")
    assert len(cloud.identity.tokens) > 1
    assert cloud.traffic == {"blue": 100}


@pytest.mark.parametrize("text", ["auth_mode: nobody\n", "gpus: 4\n", "- [\n"])
def test_settings_that_the_service_would_not_take_are_refused_with_their_file(text: str, tmp_path: Path) -> None:
    from azure.ai.ml import load_online_endpoint

    from carmodel.deploy.online_service import load
    from carmodel.errors import InputError

    file = tmp_path / "endpoint.yml"
    file.write_text(Path("backends/online/endpoint.yml").read_text().replace("auth_mode: key\n", "") + text)
    with pytest.raises(InputError, match="endpoint.yml"):
        load(load_online_endpoint, file, {"name": "cars"})


def test_what_is_not_there_is_named(cloud: Cloud) -> None:
    assert "there is no endpoint cars" in cloud.refuse("status")
    assert "models/cars/versions/9 was not found" in cloud.refuse("deploy", version=9)


@pytest.mark.parametrize("target", ["online", "kubernetes-online"])
def test_the_settings_are_what_the_published_schema_says(target: str) -> None:
    from azure.ai.ml import load_online_deployment, load_online_endpoint

    folder = Path("backends", target)
    endpoint = load_online_endpoint(folder / "endpoint.yml")
    deployment = load_online_deployment(folder / "deployment.yml", params_override=[{"model": "azureml:cars:1"}])
    assert endpoint.auth_mode == "key"
    assert type(endpoint).__name__.replace("Endpoint", "") == type(deployment).__name__.replace("Deployment", "")
    assert INFERENCE.endswith("azure.com")
