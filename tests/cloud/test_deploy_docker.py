"""The docker target: what it asks the `docker` command, and the context, whose start command is carried out without Docker."""

import io
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
from carmodel.deploy.docker_image import write_context
from carmodel.deploy.smoke import drawn_car, smoke_test
from carmodel.deploy.status import DeployError, Status
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from tests.cloud import docker_cli
from tests.tiny import Endpoint, free_port


@pytest.fixture
def settings(endpoint: Endpoint) -> Deploy:
    return of_model(Deploy(target="docker", name="cars", port=free_port(), timeout=60), str(endpoint.model))


def of_model(settings: Deploy, folder: str) -> Deploy:
    """The settings with a logged model's folder in place of a registered version: MLflow reads both."""
    return settings.model_copy(update={"model_uri": folder})


@pytest.fixture
def other(settings: Deploy, tmp_path: Path) -> Deploy:
    """The settings with another version."""
    return of_model(settings, str(shutil.copytree(settings.model_uri, tmp_path / "other")))


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
    monkeypatch.setattr(docker, "source_of", lambda uri: f"source of {uri}")  # the folders are in no registry
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing answers there, and no proxy may be asked
    yield Engine(state)
    for container in json.loads(state.read_text())["containers"].values():
        if container["pid"]:
            os.kill(container["pid"], signal.SIGKILL)


def image(settings: Deploy) -> str:
    return f"cars:{Path(settings.model_uri).name}"


def test_without_an_engine_the_step_stops_and_names_mlflow_s_command(
    settings: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")
    for act in (docker.deploy, docker.status, docker.delete):
        with pytest.raises(InputError, match=r"none answers here: (?s:.*)mlflow models generate-dockerfile"):
            act(settings)


def test_a_model_that_does_not_exist_is_named_before_the_build(
    settings: Deploy, engine: Engine, tmp_path: Path
) -> None:
    with pytest.raises(DeployError, match="downloading .*nothing"):
        docker.deploy(of_model(settings, str(tmp_path / "nothing")))
    assert engine.asked("build") == []


def test_the_server_in_the_image_is_one_process_without_root(settings: Deploy, tmp_path: Path) -> None:
    write_context(settings.model_uri, "models:/m-1", tmp_path / "context")
    lines = (tmp_path / "context" / "Dockerfile").read_text().splitlines()
    assert {"USER serving", "ENV MLFLOW_MODELS_WORKERS=1", f'LABEL carmodel.model="{settings.model_uri}"'} <= set(lines)
    assert 'LABEL carmodel.source="models:/m-1"' in lines


def test_a_rerun_asks_docker_for_nothing_new(
    settings: Deploy, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed = docker.deploy(settings)
    assert (deployed.state, deployed.url) == ("running", f"http://127.0.0.1:{settings.port}/invocations")
    assert re.search(r"  Step 1/\d+ : FROM python:3", capsys.readouterr().out), "the steps of the build are printed"
    before = engine.asked("build", "run", "rm", "rmi")
    assert docker.deploy(settings) == deployed
    assert engine.asked("build", "run", "rm", "rmi") == before
    elsewhere = settings.model_copy(update={"port": 1, "model_uri": ""})
    assert docker.status(elsewhere) == deployed, "the container knows its port"


def test_another_version_replaces_the_previous_one(settings: Deploy, other: Deploy, engine: Engine) -> None:
    docker.deploy(settings)
    deployed = docker.deploy(other)
    assert deployed.detail == other.model_uri and f"-P model_uri={settings.model_uri}" in deployed.undo
    assert engine.images == {image(settings), image(other)}, "the previous image is kept until a photo was answered"
    assert docker.release(other).detail == other.model_uri
    assert engine.images == {image(other)}
    assert docker.delete(settings) is True
    assert (engine.images, engine.containers) == (set(), set())
    assert docker.delete(settings) is False


def test_a_version_of_another_registry_with_the_same_uri_is_built_and_served(
    settings: Deploy, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker.deploy(settings)
    monkeypatch.setattr(docker, "source_of", lambda uri: "another registry")
    docker.deploy(settings)
    assert len(engine.asked("build")) == len(engine.asked("run")) == 2


def test_an_engine_that_refuses_a_question_is_quoted(settings: Deploy, engine: Engine) -> None:
    engine.change(faults={"ps": "authorization denied by plugin"})
    for act in (docker.deploy, docker.status, docker.delete):
        with pytest.raises(DeployError, match="docker ps .*: authorization denied by plugin"):
            act(settings)


def test_an_old_image_that_cannot_be_removed_is_no_failure(
    settings: Deploy, other: Deploy, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.deploy(settings)
    docker.deploy(other)
    engine.change(faults={"rmi": "image is being used by another container"})
    assert docker.release(other).state == "running"
    assert "image is being used by another container" in capsys.readouterr().out


def test_a_container_of_another_program_is_left_alone(settings: Deploy, engine: Engine) -> None:
    engine.change(containers={"cars": {"image": "theirs", "labels": {}, "state": "running", "port": "1", "pid": 0}})
    for act in (docker.deploy, docker.status, docker.delete):
        with pytest.raises(InputError, match="another program owns the container"):
            act(settings)
    assert engine.containers == {"cars"}


def test_a_failed_build_is_reported_in_docker_s_words_and_a_rerun_goes_on(settings: Deploy, engine: Engine) -> None:
    engine.change(faults={"build": "ERROR: No matching distribution found for tensorflow==2.18.1"})
    with pytest.raises(
        DeployError, match=r"docker build: .*No matching distribution(?s:.*)status: nothing(?s:.*)action=delete"
    ):
        docker.deploy(settings)
    engine.change(faults={})
    assert docker.deploy(settings).state == "running"


def test_an_interrupted_build_ends_with_the_step(
    settings: Deploy, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.change(faults={"hold": "yes"})

    class InterruptingOutput(io.StringIO):
        def write(self, text: str) -> int:
            if "Step 1/" in text:
                raise SystemExit(143)
            return len(text)

    monkeypatch.setattr(sys, "stdout", InterruptingOutput())
    began = time.monotonic()
    with pytest.raises(SystemExit):
        docker.deploy(settings.model_copy(update={"timeout": 300.0}))
    assert time.monotonic() - began < 60
    # Clients of other tests leave daemon threads, which no program waits for.
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.daemon]


def test_a_container_that_cannot_start_is_removed(settings: Deploy, engine: Engine) -> None:
    engine.change(faults={"run": "docker: Error response from daemon: no space left on device"})
    with pytest.raises(DeployError, match=r"docker run: .*no space left(?s:.*)status: image built"):
        docker.deploy(settings)
    assert engine.containers == set()


def test_a_version_that_exits_shows_its_log_and_how_to_restore_the_previous_one(
    settings: Deploy, other: Deploy, engine: Engine
) -> None:
    docker.deploy(settings)
    engine.change(faults={"logs": "ModuleNotFoundError: keras"})
    with pytest.raises(DeployError, match="ModuleNotFoundError: keras") as failed:
        docker.deploy(other)
    assert f"-P action=deploy -P model_uri={settings.model_uri} -P port={settings.port}" in str(failed.value)
    assert docker.status(settings).state == "exited"
    engine.change(faults={})
    builds = engine.asked("build")
    assert docker.deploy(settings).detail == settings.model_uri
    assert engine.asked("build") == builds, "the previous image was kept"


def test_a_port_that_is_taken_is_reported_before_the_build(settings: Deploy, engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", settings.port)), pytest.raises(InputError, match="choose another port"):
        docker.deploy(settings)
    assert engine.asked("build") == []


@pytest.mark.slow
def test_the_image_s_start_command_answers_a_photo_with_the_image_s_packages(settings: Deploy, tmp_path: Path) -> None:
    write_context(settings.model_uri, "models:/m-1", context := tmp_path / "context")
    lines = (context / "Dockerfile").read_text()
    (command,) = re.findall(r"^ENTRYPOINT (\[.*\])$", lines, re.MULTILINE)
    (mlflow,) = re.findall(r"^RUN pip install (mlflow==\S+)$", lines, re.MULTILINE)
    (folder,) = re.findall(r"^COPY (\S+) /opt/ml/model$", lines, re.MULTILINE)
    model, uv = context / folder, [sys.executable, "-m", "uv", "--quiet"]
    subprocess.run([*uv, "venv", "--python", sys.executable, str(tmp_path / "env")], check=True)
    install = [
        *uv,
        "pip",
        "install",
        "--link-mode",
        "symlink",
        "--constraint",
        "requirements.lock",
        "--python",
        str(tmp_path / "env/bin/python"),
    ]
    subprocess.run([*install, mlflow, "-r", str(model / "requirements.txt")], check=True)
    with started(json.loads(command), model, tmp_path) as url:
        assert "was answered with" in smoke_test(Status("running", url), drawn_car())
        if photos := os.environ.get("CARMODEL_PHOTOS"):
            real = next(Path(photos).rglob("*.jpg"))
            assert "was answered with" in smoke_test(Status("running", url), real.read_bytes())


@contextmanager
def started(command: list[str], model: Path, folder: Path) -> Iterator[str]:
    """Run the start command of an image without nginx, and yield the URL that answers.

    Args:
        command: ``python -c CODE``. The code gets another folder and port than an image, which has them for itself.
        model: the folder.
        folder: with the environment.
    """
    *python, code = command
    moved = f"import mlflow.models.container as image; image.MODEL_PATH = {str(model)!r}; "
    moved += f"image.DEFAULT_INFERENCE_SERVER_PORT = {(port := free_port())}; "
    path = f"{folder / 'env' / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    environment = {"PATH": path, "HOME": str(folder), "DISABLE_NGINX": "true", "MLFLOW_MODELS_WORKERS": "1"}
    environment |= {"MLFLOW_DISABLE_ENV_CREATION": "True"}
    with (folder / "log").open("wb") as log:
        both = {"stdout": log, "stderr": log, "start_new_session": True}
        process = subprocess.Popen([*python, moved + code], env=environment, cwd=folder, **both)
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/ping"):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
