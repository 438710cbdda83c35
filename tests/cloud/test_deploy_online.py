"""Online endpoints, managed and on Kubernetes, through the real SDK: blue and green, canary, promotion, rollback, failures."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.arm_online import INFERENCE, TRACKING_URI, Workspace, arm_service, scoring_service
from tests.cloud.identity import Identity, login_service
from tests.cloud.proxy import Proxy, lead
from tests.cloud.stand_in import Authority, Wire, serve
from tests.tiny import Endpoint

# In a process of its own, since clients read the proxy and the authority from the environment when they are imported.
PROGRAM = """
import json, sys
from pathlib import Path
import mlflow
from carmodel.errors import InputError
from carmodel.serving.deployment import online
from carmodel.serving.deployment.smoke import smoke
from carmodel.serving.deployment.wanted import Wanted
from carmodel.serving.deployment.wanted import SETTINGS
from carmodel.serving.deployment.smoke import drawn_car
wanted, actions, uri = json.loads(sys.argv[1])
mlflow.set_tracking_uri(uri)
wanted = Wanted(**wanted | {"settings_file": Path(SETTINGS[wanted["target"]]).resolve(), "folder": Path()})
for action in actions:
    try:
        if action == "smoke":
            print(smoke(deployed, drawn_car()))
        else:
            deployed = getattr(online, action)(wanted, lambda line: print(line, flush=True))
            print(action, "->", deployed)
    except InputError as error:
        sys.exit(f"{action}: {error}")
"""


@dataclass
class Cloud:
    """The stand-ins, and a way to act on them."""

    workspace: Workspace
    identity: Identity
    arm: Wire
    proxy: Proxy
    environment: dict[str, str]

    def act(self, *actions: str, version: int = 1, target: str = "online", **changed: Any) -> str:
        """Do it, and return what is said."""
        done = self.run(*actions, version=version, target=target, **changed)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refuse(self, *actions: str, version: int = 1, target: str = "online", **changed: Any) -> str:
        """Do it, and return the error that it ends with."""
        done = self.run(*actions, version=version, target=target, **changed)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr + done.stdout

    def run(self, *actions: str, version: int, target: str, **changed: Any) -> subprocess.CompletedProcess[str]:
        wanted = {"target": target, "name": "cars", "model_uri": f"models:/cars/{version}", "port": 1}
        wanted |= {"traffic": 10, "timeout": 60.0} | changed
        command = [sys.executable, "-c", PROGRAM, json.dumps([wanted, actions, TRACKING_URI])]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300, check=False)
        for secret in (self.identity.secret, *self.identity.tokens, *self.keys()):
            assert secret not in done.stdout + done.stderr
        return done

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
    assert "serves models:/cars/1 already" in cloud.act("deploy", "smoke", "release", target=target)
    assert len(cloud.arm.seen("PUT", "/deployments/")) == made, "a rerun makes nothing anew"

    said = cloud.act("deploy", "smoke", "release", "status", version=2, target=target)
    assert cloud.traffic == {"blue": 90, "green": 10}
    assert "green: models:/cars/2, Succeeded, 10% of the requests" in said
    cloud.act("rollback", target=target)
    assert cloud.traffic == {"blue": 100}
    cloud.act("release", "promote", version=2, target=target)
    assert cloud.traffic == {"green": 100}
    cloud.act("rollback", target=target)
    assert cloud.traffic == {"blue": 100}

    cloud.act("deploy", "release", "promote", version=3, target=target)
    assert cloud.traffic == {"green": 100}
    assert cloud.workspace.endpoints["cars"].deployments["green"].body["tags"]["carmodel.model"] == "models:/cars/3"
    cloud.act("delete", target=target)
    assert cloud.workspace.endpoints == {}
    assert "there is no endpoint" in cloud.act("delete", target=target)
    assert set(cloud.proxy.refused) == set()


def test_a_container_that_crashes_gets_no_requests_and_shows_its_log_and_a_rerun_finishes_the_work(
    cloud: Cloud,
) -> None:
    cloud.act("deploy", "release")
    cloud.workspace.broken = "ModuleNotFoundError: No module named 'keras'"
    said = cloud.refuse("deploy", "release", version=2)
    assert "User container has crashed" in said
    assert "No module named 'keras'" in said
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
        (404, "no such workspace"),
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

    from carmodel.errors import InputError
    from carmodel.serving.deployment.online import _read

    file = tmp_path / "endpoint.yml"
    file.write_text(Path("backends/online/endpoint.yml").read_text().replace("auth_mode: key\n", "") + text)
    with pytest.raises(InputError, match="endpoint.yml"):
        _read(load_online_endpoint, file, {"name": "cars"})


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
