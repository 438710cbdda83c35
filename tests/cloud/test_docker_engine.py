"""The docker target on a real Docker engine: build, answer photos, replace, delete. `make test-engine` needs a running one.

It takes some ten minutes, since each version's image gets TensorFlow.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from carmodel.deploy import docker
from carmodel.deploy.smoke import drawn_car, smoke_test
from carmodel.deploy.status import DeployError
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from tests.tiny import Endpoint, free_port
from tests.tracked import tracked_in

pytestmark = pytest.mark.engine


def asked(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def settings(endpoint: Endpoint, tmp_path: Path) -> Iterator[Deploy]:
    """Version 1 of a registered model; there is a version 2 of it, too."""
    with tracked_in(tmp_path):
        client = mlflow.MlflowClient()
        client.create_registered_model("tiny")
        for _ in range(2):
            client.create_model_version("tiny", endpoint.model.as_uri())
        settings = Deploy(target="docker", name="carmodel-test", model_uri="models:/tiny/1", port=free_port())
        yield settings
        docker.delete(settings)


def test_a_container_answers_photos_stays_is_replaced_and_is_gone(settings: Deploy) -> None:
    deployed = docker.deploy(settings)
    assert (deployed.state, deployed.detail) == ("running", "models:/tiny/1")
    print(smoke_test(deployed, drawn_car()))
    assert asked("exec", settings.name, "id", "--user", "--name").strip() == "serving", "needs no root"
    if folder := os.environ.get("CARMODEL_PHOTOS"):
        print(smoke_test(deployed, next(Path(folder).rglob("*.jpg")).read_bytes()))

    before = asked("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", settings.name)
    assert docker.deploy(settings) == deployed
    assert asked("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", settings.name) == before
    assert docker.status(settings.model_copy(update={"port": 1, "model_uri": ""})) == deployed

    asked("stop", "--time", "1", settings.name)
    assert docker.status(settings).state == "exited"
    assert docker.deploy(settings) == deployed, "from the image that is there"

    late = settings.model_copy(update={"model_uri": "models:/tiny/2", "timeout": 3.0})
    with pytest.raises(DeployError, match="not built within timeout=3 seconds(?s:.*)status: running"):
        docker.deploy(late)
    newer = late.model_copy(update={"timeout": settings.timeout})
    replaced = docker.deploy(newer)
    assert (replaced.state, replaced.detail) == ("running", "models:/tiny/2")
    print(smoke_test(replaced, drawn_car()))
    assert asked("images", "--format", "{{.Tag}}", settings.name).split() == ["2"]

    docker.delete(newer)
    assert asked("ps", "--all", "--quiet", "--filter", f"name={settings.name}") == ""
    assert asked("images", "--quiet", settings.name) == ""
    with pytest.raises(InputError, match="there is no container or image carmodel-test"):
        docker.status(newer)


def test_a_container_of_another_program_is_left_alone(settings: Deploy) -> None:
    """Any image will do: the container is never started."""
    image = asked("images", "--quiet").split()[0]
    asked("create", "--name", settings.name, image, "true")
    try:
        for act in (docker.deploy, docker.status, docker.delete):
            with pytest.raises(InputError, match="another program owns"):
                act(settings)
    finally:
        asked("rm", settings.name)
