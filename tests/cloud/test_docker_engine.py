"""The docker target on a real Docker engine: build, answer photos, replace, delete. `make test-engine`; wants one that answers.

It takes some ten minutes, since each version's image gets TensorFlow.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from carmodel.deploy import docker
from carmodel.deploy.smoke import drawn_car, smoke
from carmodel.deploy.wanted import DeployError, Wanted
from carmodel.errors import InputError
from tests.tiny import Endpoint, free_port
from tests.tracked import tracked_in

pytestmark = pytest.mark.engine


def asked(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def wanted(endpoint: Endpoint, tmp_path: Path) -> Iterator[Wanted]:
    """Version 1 of a registered model; there is a version 2 of it, too."""
    with tracked_in(tmp_path):
        client = mlflow.MlflowClient()
        client.create_registered_model("tiny")
        for _ in range(2):
            client.create_model_version("tiny", endpoint.model.as_uri())
        folder, port = tmp_path / "docker-carmodel-test", free_port()
        wanted = Wanted("docker", "carmodel-test", "models:/tiny/1", Path(), folder, port, 10, 1800.0)
        yield wanted
        docker.delete(wanted, print)


def test_a_container_answers_photos_stays_is_replaced_and_is_gone(wanted: Wanted) -> None:
    deployed = docker.deploy(wanted, print)
    assert (deployed.state, deployed.detail) == ("running", "models:/tiny/1")
    print(smoke(deployed, drawn_car()))
    assert asked("exec", wanted.name, "id", "--user", "--name").strip() == "serving", "needs no root"
    if folder := os.environ.get("CARMODEL_PHOTOS"):
        print(smoke(deployed, next(Path(folder).rglob("*.jpg")).read_bytes()))

    before = asked("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", wanted.name)
    assert docker.deploy(wanted, print) == deployed
    assert asked("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", wanted.name) == before
    assert docker.status(wanted._replace(port=1, model_uri=""), print) == deployed

    asked("stop", "--time", "1", wanted.name)
    assert docker.status(wanted, print).state == "exited"
    assert docker.deploy(wanted, print) == deployed, "from the image that is there"

    late = wanted._replace(model_uri="models:/tiny/2", timeout=3.0)
    with pytest.raises(DeployError, match="not built within timeout=3 seconds(?s:.*)now: running"):
        docker.deploy(late, print)
    newer = late._replace(timeout=wanted.timeout)
    replaced = docker.deploy(newer, print)
    assert (replaced.state, replaced.detail) == ("running", "models:/tiny/2")
    print(smoke(replaced, drawn_car()))
    assert asked("images", "--format", "{{.Tag}}", wanted.name).split() == ["2"]

    docker.delete(newer, print)
    assert asked("ps", "--all", "--quiet", "--filter", f"name={wanted.name}") == ""
    assert asked("images", "--quiet", wanted.name) == ""
    with pytest.raises(InputError, match="there is no carmodel-test"):
        docker.status(newer, print)


def test_a_container_of_somebody_else_is_left_alone(wanted: Wanted) -> None:
    """Any image will do: the container is never started."""
    image = asked("images", "--quiet").split()[0]
    asked("create", "--name", wanted.name, image, "true")
    try:
        for act in (docker.deploy, docker.status, docker.delete):
            with pytest.raises(InputError, match="this step has not made"):
                act(wanted, print)
    finally:
        asked("rm", wanted.name)
