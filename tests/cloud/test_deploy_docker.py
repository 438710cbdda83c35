"""The docker target: a build context that holds what its start command needs. Its lines are carried out here without Docker."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from carmodel.errors import InputError
from carmodel.serving.deployment import docker
from carmodel.serving.deployment.smoke import drawn_car, smoke
from carmodel.serving.deployment.wanted import Deployed, Wanted
from tests.tiny import Endpoint

IN_IMAGE = Path("/opt/ml/model")


@pytest.fixture
def wanted(endpoint: Endpoint, tmp_path: Path) -> Wanted:
    # A logged model's folder stands for a registered version: MLflow takes any address here.
    return Wanted("docker", "cars", str(endpoint.model), Path(), tmp_path / "docker-cars", 5007, 10, 60.0)


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address where no Docker engine answers, whatever this machine has."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_the_context_is_left_and_the_commands_are_told(wanted: Wanted) -> None:
    said: list[str] = []
    made = docker.deploy(wanted, said.append)
    assert (made.state, made.address) == ("context made, not built", "")
    assert f"docker build --tag cars:model --label carmodel.model={wanted.model_uri} {wanted.folder}" in made.detail
    assert "docker run --detach --name cars --publish 127.0.0.1:5007:8080" in made.detail
    assert "\nUSER serving\n" in (wanted.folder / "Dockerfile").read_text()
    before = (wanted.folder / "Dockerfile").stat().st_mtime_ns
    docker.deploy(wanted, said.append)
    assert (wanted.folder / "Dockerfile").stat().st_mtime_ns == before, (
        "a context of the same version is not made again"
    )
    assert docker.status(wanted, said.append).state == "context made, not built"
    docker.delete(wanted, said.append)
    assert list(wanted.folder.parent.glob("*docker-cars*")) == []
    with pytest.raises(InputError, match="there is no container cars"):
        docker.status(wanted, said.append)


@pytest.mark.usefixtures("no_engine")
def test_a_context_that_can_t_be_made_leaves_nothing(wanted: Wanted, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="generate-dockerfile"):
        docker.deploy(wanted._replace(model_uri=str(tmp_path / "nothing")), lambda line: None)
    assert not wanted.folder.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_engine")
@pytest.mark.skipif(
    os.geteuid() != 0 or IN_IMAGE.exists(), reason="copies the model to /opt/ml/model: wants root, and nothing there"
)
def test_the_image_s_start_command_answers_photos_in_an_environment_of_the_image_s_packages(
    wanted: Wanted, tmp_path: Path
) -> None:
    docker.deploy(wanted, lambda line: None)
    lines = (wanted.folder / "Dockerfile").read_text()
    (command,) = re.findall(r"^ENTRYPOINT (\[.*\])$", lines, re.MULTILINE)
    (mlflow,) = re.findall(r"^RUN pip install (mlflow==\S+)$", lines, re.MULTILINE)
    (folder,) = re.findall(rf"^COPY (\S+) {IN_IMAGE}$", lines, re.MULTILINE)
    model, uv = wanted.folder / folder, [sys.executable, "-m", "uv", "--quiet"]
    subprocess.run([*uv, "venv", "--python", sys.executable, str(tmp_path / "env")], check=True)
    install = [*uv, "pip", "install", "--constraint", "requirements.lock", "--python", str(tmp_path / "env/bin/python")]
    subprocess.run([*install, mlflow, "-r", str(model / "requirements.txt")], check=True)
    with copied(model), started(json.loads(command), tmp_path) as address:
        assert "was answered with" in smoke(Deployed("running", address), drawn_car())


@contextmanager
def copied(model: Path) -> Iterator[None]:
    """The model where the image has it."""
    made = not IN_IMAGE.parent.exists()
    IN_IMAGE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model, IN_IMAGE)
    try:
        yield
    finally:
        shutil.rmtree(IN_IMAGE)
        if made:
            IN_IMAGE.parent.rmdir()


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[str]:
    """Run the start command as the image does, without the proxy in front of the server (nginx); yield the server's address."""
    path = f"{folder / 'env' / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    environment = {"PATH": path, "HOME": str(folder), "DISABLE_NGINX": "true", "MLFLOW_MODELS_WORKERS": "1"}
    environment |= {"MLFLOW_DISABLE_ENV_CREATION": "True"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if requests.get("http://127.0.0.1:8000/ping", timeout=5).status_code == 200:
                    break
            except requests.ConnectionError:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.5)
        yield "http://127.0.0.1:8000/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
