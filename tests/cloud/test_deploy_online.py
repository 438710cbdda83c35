"""Online endpoints, managed and on Kubernetes, through the real SDK: blue and green, canary, promotion, rollback, failures."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml import load_online_deployment, load_online_endpoint
from azure.ai.ml._restclient.arm_ml_service.models import DeploymentProvisioningState

from carmodel.deploy import online, online_service
from carmodel.deploy.online_service import CHANGING
from carmodel.deploy.smoke import drawn_car, smoke_test
from carmodel.deploy.status import Status
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from tests.cloud.azureml_cloud import Azure
from tests.cloud.azureml_online import Online, Resource, scoring_service
from tests.cloud.stand_in import Authority, Wire, serve
from tests.project import client_here
from tests.tiny import Endpoint

BACKENDS = Path(__file__).parents[2] / "backends"


@dataclass
class Client:
    """A client of the workspace.

    Attributes:
        cloud: Azure.
        capsys: captures what the client prints.
        said: what it printed last.
    """

    cloud: Azure
    capsys: pytest.CaptureFixture[str]
    said: str = ""

    @property
    def online(self) -> Online:
        return self.cloud.online

    @property
    def endpoint(self) -> Resource:
        return self.online.endpoints["cars"]

    @property
    def traffic(self) -> dict[str, int]:
        return {colour: share for colour, share in self.endpoint.traffic.items() if share}

    @property
    def arm(self) -> Wire:
        """Azure Resource Manager."""
        return self.cloud.management

    def act(self, *actions: str, version: int = 1, target: str = "online", **changed: Any) -> str:
        """Do the actions in turn, and return what they print.

        Args:
            actions: functions of `carmodel.deploy.online`, or smoke. ``deploy version=2`` changes the settings from
                then on.
            version: of the model.
            target: online or kubernetes-online.
            changed: other settings.
        """
        settings = {"target": target, "name": "cars", "model_uri": f"models:/cars/{version}", "timeout": 60} | changed
        status = Status("")
        try:
            for action, *changes in map(str.split, actions):
                for name, value in (change.split("=") for change in changes):
                    settings |= {"model_uri": f"models:/cars/{value}"} if name == "version" else {name: value}
                if action == "smoke":
                    print(smoke_test(status, drawn_car()))
                else:
                    status = getattr(online, action)(Deploy(**settings))
                    print(action, "->", status)
        except InputError as error:
            print(error)
            raise
        finally:
            self.said, identity = "".join(self.capsys.readouterr()), self.cloud.workspace.identity
            keys = [key for endpoint in self.online.endpoints.values() for key in endpoint.keys.values()]
            assert not [secret for secret in (identity.secret, *identity.tokens, *keys) if secret in self.said]
        return self.said

    def refuse(self, *actions: str, **how: Any) -> str:
        """Do the actions in turn, and return what is printed before and in the error that they end with."""
        with pytest.raises(InputError):
            self.act(*actions, **how)
        return self.said


@pytest.fixture(scope="module")
def scored(cloud: Azure, authority: Authority, endpoint: Endpoint) -> Iterator[Azure]:
    """The workspace with a real server of the model behind all endpoints."""
    with serve(scoring_service(cloud.online, endpoint.address), authority) as scoring:
        cloud.proxy.stand_ins[r".*\.inference\.ml\.azure\.com"] = scoring
        yield cloud


@pytest.fixture
def client(scored: Azure, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """This process as a client of the workspace without endpoints, which asks nobody else."""
    scored.online.reset()
    scored.management.sent.clear()
    scored.management.faults.clear()
    monkeypatch.setattr(online_service, "POLL_SECONDS", 0.05)
    with client_here(scored.environment):
        yield Client(scored, capsys)
    assert scored.proxy.refused == []


@pytest.mark.parametrize("target", ["online", "kubernetes-online"])
def test_a_version_starts_as_a_canary_and_is_promoted_or_rolled_back(client: Client, target: str) -> None:
    said = client.act("deploy", "smoke", "release", target=target)
    assert "a photo was answered with" in said
    assert client.traffic == {"blue": 100}
    (created,) = client.arm.seen("PUT", "/onlineEndpoints/cars$")[:1]
    assert json.loads(created.body)["properties"]["authMode"] == "Key"

    made = len(client.arm.seen("PUT", "/deployments/"))
    assert "already serves models:/cars/1" in client.act("deploy", "smoke", "release", target=target)
    assert len(client.arm.seen("PUT", "/deployments/")) == made, "a rerun creates nothing"

    said = client.act("deploy", "smoke", "release", "status", version=2, target=target)
    assert client.traffic == {"blue": 90, "green": 10}
    assert "green (models:/cars/2) Succeeded, 10% of the requests, canary" in said
    assert "traffic: blue 100%" in client.act("rollback", "release version=2", "promote", target=target)
    assert client.traffic == {"green": 100}
    client.act("rollback", target=target)
    assert client.traffic == {"blue": 100}

    client.act("deploy", "release", "promote", version=3, target=target)
    assert client.traffic == {"green": 100}
    assert client.endpoint.deployments["green"].body["tags"]["carmodel.model"] == "models:/cars/3"
    assert "delete -> False" in client.act("delete", "delete", target=target), "there is none any more"
    assert client.online.endpoints == {}


def test_a_repeated_command_changes_nothing(client: Client) -> None:
    assert "no canary; blue (models:/cars/1) gets all requests" in client.refuse("deploy", "release", "promote")
    client.act("deploy", "release", "release", version=2)
    assert client.traffic == {"blue": 90, "green": 10}
    assert "no canary; blue (models:/cars/1) gets all requests" in client.refuse("rollback", "promote")
    client.act("deploy", "release", version=2)
    said = client.act("promote", "promote", "deploy version=2", "release")
    assert "green (models:/cars/2) is already promoted" in said
    assert client.traffic == {"green": 100}
    assert "green (models:/cars/2) is already rolled back" in client.act("rollback", "rollback")
    assert client.traffic == {"blue": 100}


def test_a_canary_gets_the_share_that_is_asked_for(client: Client) -> None:
    client.act("deploy", "release", "deploy version=2 traffic=0", "release")
    assert client.traffic == {"blue": 100}
    client.act("deploy", "release", "deploy version=1", "release", version=2, traffic=95)
    assert client.traffic == {"blue": 5, "green": 95}
    client.act("rollback")
    assert client.traffic == {"blue": 100}, "it was not taken for the stable version"
    assert "traffic: green 100%" in client.act("deploy", "release", "rollback", version=2, traffic=100)
    assert client.traffic == {"blue": 100}


def test_a_replaced_version_cannot_be_restored(client: Client) -> None:
    client.act("deploy", "release", "deploy version=2", "release", "promote")
    client.online.broken = "out of memory"
    client.refuse("deploy", version=3)
    assert "no canary and no previous version: green (models:/cars/2)" in client.refuse("rollback")
    assert client.traffic == {"green": 100}


def test_traffic_that_was_changed_by_hand_decides_which_version_is_stable(client: Client) -> None:
    client.act("deploy", "release", "deploy version=2", "release")
    client.endpoint.traffic = {"green": 100}
    client.act("deploy", "release", version=3)
    assert client.traffic == {"green": 90, "blue": 10}
    assert client.endpoint.deployments["blue"].body["tags"]["carmodel.model"] == "models:/cars/3"

    # An endpoint of another program: two that get requests, and no tags.
    client.endpoint.body["tags"], client.endpoint.traffic = {}, {"blue": 60, "green": 40}
    assert "promote or roll back first" in client.refuse("deploy version=1")
    client.act("promote")
    assert client.traffic == {"green": 100}
    client.endpoint.traffic = {"blue": 50, "green": 50}
    assert "is already promoted" in client.act("promote")
    assert client.traffic == {"green": 100}


def test_an_endpoint_of_the_other_kind_is_left_alone(client: Client) -> None:
    client.act("deploy", "release")
    for action in ("deploy", "promote", "status", "delete"):
        assert "is an endpoint of target=online" in client.refuse(action, target="kubernetes-online")


def test_changed_settings_are_a_canary_too_and_update_the_endpoint(client: Client, tmp_path: Path) -> None:
    for name in ("endpoint.yml", "deployment.yml"):
        (tmp_path / name).write_text((BACKENDS / "online" / name).read_text())
    file = str(tmp_path / "deployment.yml")
    client.act("deploy", "release", settings_file=file)
    sent = len(client.arm.seen("PUT", ""))
    client.act("deploy", "release", settings_file=file)
    assert len(client.arm.seen("PUT", "")) == sent

    (tmp_path / "deployment.yml").write_text((tmp_path / "deployment.yml").read_text().replace("DS3_v2", "DS4_v2"))
    client.act("deploy", "release", settings_file=file)
    assert client.traffic == {"blue": 90, "green": 10}
    assert client.endpoint.deployments["green"].body["properties"]["instanceType"] == "Standard_DS4_v2"

    (tmp_path / "endpoint.yml").write_text((tmp_path / "endpoint.yml").read_text() + "description: cars\n")
    client.act("deploy", "release", settings_file=file)
    assert client.endpoint.body["properties"]["description"] == "cars"

    client.endpoint.state = "Failed"
    assert "updating endpoint cars" in client.act("deploy", "release", settings_file=file)
    assert client.endpoint.state == "Succeeded"
    assert client.traffic == {"blue": 90, "green": 10}


def test_deploy_waits_for_a_deletion_and_creates_the_endpoint_again(client: Client) -> None:
    client.act("deploy", "release")
    client.endpoint.state = "Deleting"
    client.online.start(lambda: client.online.endpoints.pop("cars") and None)
    assert "waiting for an earlier operation on cars" in client.act("deploy", "release", version=2)
    assert client.traffic == {"blue": 100}
    assert client.endpoint.deployments["blue"].body["tags"]["carmodel.model"] == "models:/cars/2"


def test_a_container_that_crashes_gets_no_requests_and_a_rerun_finishes(client: Client) -> None:
    client.act("deploy", "release")
    client.online.broken = "ModuleNotFoundError: No module named 'keras'"
    said = client.refuse("deploy", "release", version=2)
    assert "User container has crashed" in said
    assert "No module named 'keras'" in said
    assert "to delete green alone:  az ml online-deployment delete --name green --endpoint-name cars" in said
    assert "action=delete" in said
    assert client.traffic == {"blue": 100}
    client.online.broken = ""
    client.act("deploy", "smoke", "release", version=2)
    assert client.traffic == {"blue": 90, "green": 10}


def test_an_operation_that_takes_too_long_is_resumed_by_a_rerun(client: Client) -> None:
    client.online.stuck = True
    said = client.refuse("deploy", timeout=1)
    assert "still InProgress after timeout=1 seconds" in said
    assert "action=status" in said
    client.online.stuck = False
    client.act("deploy", "smoke", "release")
    assert client.traffic == {"blue": 100}


@pytest.mark.parametrize(("status", "words"), [(401, "az login"), (403, "AzureML Data Scientist"), (409, "another")])
def test_a_refusal_is_reported_with_the_service_s_message(client: Client, status: int, words: str) -> None:
    body = json.dumps({"error": {"code": "Oops", "message": "Because it is Monday."}}).encode()
    client.arm.fail("PUT", "/onlineEndpoints/cars$", status, body=body, times=9)
    said = client.refuse("deploy")
    assert f"{status}: " in said
    assert "Because it is Monday." in said
    assert words in said
    assert "-P target=online -P name=cars -P action=status" in said


def test_a_passing_fault_is_retried(client: Client) -> None:
    client.arm.fail("PUT", "/onlineEndpoints/cars$", 429, headers={"Retry-After": "1"})
    client.arm.fail("PUT", "/deployments/blue$", 500)
    client.arm.fail("GET", "/deployments$", 0)
    client.act("deploy", "smoke", "release")
    first, second = client.arm.seen("PUT", "/onlineEndpoints/cars$")[:2]
    assert first.body == second.body
    assert client.traffic == {"blue": 100}


def test_wrong_credentials_are_reported(client: Client) -> None:
    with client_here(client.cloud.environment | {"AZURE_CLIENT_SECRET": "wrong"}):
        assert "az login" in client.refuse("status")


def test_a_token_that_expires_midway_is_renewed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = client.cloud.workspace.identity
    monkeypatch.setattr(identity, "lifetime", 2)
    known = len(identity.tokens)
    client.act("deploy", "smoke", "release")
    assert len(identity.tokens) > known + 1
    assert client.traffic == {"blue": 100}


def test_every_state_of_the_sdk_is_either_changing_or_final() -> None:
    states = {state.value for state in DeploymentProvisioningState}
    assert states - set(CHANGING) == {"Succeeded", "Failed", "Canceled"}


@pytest.mark.parametrize("text", ["auth_mode: nobody\n", "gpus: 4\n", "- [\n"])
def test_invalid_settings_are_refused_with_the_name_of_their_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "endpoint.yml"
    file.write_text((BACKENDS / "online" / "endpoint.yml").read_text().replace("auth_mode: key\n", "") + text)
    with pytest.raises(InputError, match="endpoint.yml"):
        online_service.load(load_online_endpoint, file, {"name": "cars"})


def test_an_unknown_endpoint_or_version_is_named(client: Client) -> None:
    assert "there is no endpoint cars" in client.refuse("status")
    assert "models/cars/versions/9 was not found" in client.refuse("deploy", version=9)


@pytest.mark.parametrize("target", ["online", "kubernetes-online"])
def test_our_settings_match_the_published_schema(target: str) -> None:
    endpoint = load_online_endpoint(BACKENDS / target / "endpoint.yml")
    model = [{"model": "azureml:cars:1"}]
    deployment = load_online_deployment(BACKENDS / target / "deployment.yml", params_override=model)
    assert endpoint.auth_mode == "key"
    assert type(endpoint).__name__.replace("Endpoint", "") == type(deployment).__name__.replace("Deployment", "")
