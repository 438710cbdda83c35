"""The docker target: what it asks the `docker` command, and the context, whose start command is carried out without Docker."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from carmodel.deploy import docker
from carmodel.deploy.smoke import drawn_car, smoke
from carmodel.deploy.wanted import Deployed, DeployError, Wanted
from carmodel.errors import InputError
from tests.cloud import docker_cli
from tests.tiny import Endpoint, free_port

IN_IMAGE = Path("/opt/ml/model")


@pytest.fixture
def wanted(endpoint: Endpoint, tmp_path: Path) -> Wanted:
    # A logged model's folder stands for a registered version: MLflow takes any address here.
    return Wanted("docker", "cars", str(endpoint.model), Path(), tmp_path / "docker-cars", free_port(), 10, 60.0)


@pytest.fixture
def other(wanted: Wanted) -> str:
    """The same model, as another version."""
    copy = Path(wanted.model_uri).with_name("other")
    shutil.copytree(wanted.model_uri, copy, dirs_exist_ok=True)
    return str(copy)


class Engine:
    """What the stand-in of the command was asked, and what it keeps."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def asked(self, *commands: str) -> list[list[str]]:
        return [asked for asked in self._kept()["asked"] if asked[0] in commands]

    @property
    def images(self) -> set[str]:
        return set(self._kept()["images"])

    @property
    def containers(self) -> set[str]:
        return set(self._kept()["containers"])

    def change(self, **values: Any) -> None:
        self.state.write_text(json.dumps(self._kept() | values))

    def _kept(self) -> dict[str, Any]:
        return json.loads(self.state.read_text())


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A stand-in of the docker command; `tests.cloud.test_docker_engine` asks a real engine."""
    state = docker_cli.install(tmp_path / "bin", {})
    monkeypatch.setenv("PATH", f"{state.parent}{os.pathsep}{os.environ['PATH']}")
    yield Engine(state)
    for container in json.loads(state.read_text())["containers"].values():
        if container["pid"]:
            os.kill(container["pid"], signal.SIGKILL)


def image(wanted: Wanted) -> str:
    return f"cars:{Path(wanted.model_uri).name}"


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address where no Docker engine answers, whatever this machine has."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_the_context_is_left_and_the_commands_are_told(wanted: Wanted) -> None:
    made = docker.deploy(wanted, lambda line: None)
    assert (made.state, made.address) == ("context made, not built", "")
    assert "no Docker engine answers here" in made.detail
    assert f"docker build --tag {image(wanted)} {wanted.folder}" in made.detail
    assert f"docker run --detach --name cars --publish 127.0.0.1:{wanted.port}:8080 {image(wanted)}" in made.detail
    assert "\nUSER serving\n" in (wanted.folder / "Dockerfile").read_text()
    before = (wanted.folder / "Dockerfile").stat().st_mtime_ns
    docker.deploy(wanted, lambda line: None)
    assert (wanted.folder / "Dockerfile").stat().st_mtime_ns == before, "a context of this version is not made again"
    assert docker.status(wanted, lambda line: None).state == "context made, not built"
    docker.delete(wanted, lambda line: None)
    assert list(wanted.folder.parent.glob("*docker-cars*")) == []
    with pytest.raises(InputError, match="there is no cars"):
        docker.status(wanted, lambda line: None)


@pytest.mark.usefixtures("no_engine")
def test_a_context_that_can_t_be_made_leaves_nothing(wanted: Wanted, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="fetching .*nothing"):
        docker.deploy(wanted._replace(model_uri=str(tmp_path / "nothing")), lambda line: None)
    assert list(wanted.folder.parent.glob("*docker-cars*")) == []


@pytest.mark.usefixtures("no_engine")
def test_a_folder_of_somebody_else_is_left_alone(wanted: Wanted) -> None:
    wanted.folder.mkdir()
    (wanted.folder / "Dockerfile").write_text("FROM scratch\n")
    for act in (docker.deploy, docker.delete):
        with pytest.raises(InputError, match="holds something else"):
            act(wanted, lambda line: None)
    assert (wanted.folder / "Dockerfile").read_text() == "FROM scratch\n"


def test_the_same_version_again_asks_docker_for_nothing_new(wanted: Wanted, engine: Engine) -> None:
    said: list[str] = []
    made = docker.deploy(wanted, said.append)
    assert (made.state, made.address) == ("running", f"http://127.0.0.1:{wanted.port}/invocations")
    assert any(re.match(r"  Step 1/\d+ : FROM python:3", line) for line in said), "the build's steps are shown"
    before = engine.asked("build", "run", "rm", "rmi")
    assert docker.deploy(wanted, said.append) == made
    assert engine.asked("build", "run", "rm", "rmi") == before
    assert docker.status(wanted._replace(port=1, model_uri=""), said.append) == made, "the container knows its port"


def test_another_version_takes_the_place_of_the_one_before(wanted: Wanted, other: str, engine: Engine) -> None:
    docker.deploy(wanted, lambda line: None)
    newer = wanted._replace(model_uri=other)
    made = docker.deploy(newer, lambda line: None)
    assert made.detail == other and f"-P model_uri={wanted.model_uri}" in made.back
    assert engine.images == {image(wanted), image(newer)}, "the image before is kept until a photo was answered"
    assert docker.release(newer, lambda line: None).detail == other
    assert engine.images == {image(newer)}, "the image before is gone, not left without a name"
    assert f'LABEL carmodel.model="{other}"' in (wanted.folder / "Dockerfile").read_text()
    docker.delete(newer._replace(model_uri=""), lambda line: None)
    assert (engine.images, engine.containers, wanted.folder.exists()) == (set(), set(), False)
    docker.delete(newer, lambda line: None)


def test_what_somebody_else_calls_so_is_left_alone(wanted: Wanted, engine: Engine) -> None:
    engine.change(containers={"cars": {"image": "theirs", "labels": {}, "state": "running", "port": "1", "pid": 0}})
    for act in (docker.deploy, docker.status, docker.delete):
        with pytest.raises(InputError, match="this step has not made"):
            act(wanted, lambda line: None)
    assert engine.containers == {"cars"}


def test_a_build_that_fails_is_told_in_docker_s_words_and_a_rerun_goes_on(wanted: Wanted, engine: Engine) -> None:
    engine.change(faults={"build": "ERROR: No matching distribution found for tensorflow==2.18.1"})
    with pytest.raises(
        DeployError, match=r"docker build: .*No matching distribution(?s:.*)now: context made(?s:.*)action=delete"
    ):
        docker.deploy(wanted, lambda line: None)
    engine.change(faults={})
    said: list[str] = []
    assert docker.deploy(wanted, said.append).state == "running"
    assert any("already" in line for line in said), "the context is not made again"


def test_an_interrupted_build_ends_with_the_step(wanted: Wanted, engine: Engine) -> None:
    engine.change(faults={"hold": "yes"})

    def interrupt(line: str) -> None:
        if "Step 1/" in line:
            raise SystemExit(143)

    began = time.monotonic()
    with pytest.raises(SystemExit):
        docker.deploy(wanted._replace(timeout=300.0), interrupt)
    assert time.monotonic() - began < 60
    # Those of clients that earlier tests used are daemons, which no program waits for.
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.daemon]


def test_a_container_that_can_t_start_is_not_left(wanted: Wanted, engine: Engine) -> None:
    engine.change(faults={"run": "docker: Error response from daemon: no space left on device"})
    with pytest.raises(DeployError, match=r"docker run: .*no space left(?s:.*)now: built image"):
        docker.deploy(wanted, lambda line: None)
    assert engine.containers == set()


def test_a_version_that_ends_shows_its_lines_and_the_way_back(wanted: Wanted, other: str, engine: Engine) -> None:
    docker.deploy(wanted, lambda line: None)
    engine.change(faults={"logs": "ModuleNotFoundError: keras"})
    with pytest.raises(DeployError, match="ModuleNotFoundError: keras") as failed:
        docker.deploy(wanted._replace(model_uri=other), lambda line: None)
    back = f"-P folder={wanted.folder.parent} -P model_uri={wanted.model_uri} -P port={wanted.port}"
    assert f"-P action=deploy {back}" in str(failed.value)
    assert docker.status(wanted, lambda line: None).state == "exited"
    engine.change(faults={})
    builds = engine.asked("build")
    assert docker.deploy(wanted, lambda line: None).detail == wanted.model_uri
    assert engine.asked("build") == builds, "the image before was kept"


def test_a_port_that_is_taken_is_told_before_anything_is_built(wanted: Wanted, engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", wanted.port)), pytest.raises(InputError, match="choose another port"):
        docker.deploy(wanted, lambda line: None)
    assert engine.asked("build") == []


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
        if folder := os.environ.get("CARMODEL_PHOTOS"):
            real = next(Path(folder).rglob("*.jpg"))
            assert "was answered with" in smoke(Deployed("running", address), real.read_bytes())


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
