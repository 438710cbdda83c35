"""The entry point `deploy` through `mlflow run`: MLflow's server on this machine, and what is refused before that."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests

from carmodel.deploy import local
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from steps import deploy as step
from steps.command import run_step
from tests.project import environment
from tests.tiny import Endpoint, free_port
from tests.tracked import tracked_in


@dataclass
class Registered:
    """A folder with a registry that holds two versions of the classifier ``cars``; version 1 is its candidate."""

    folder: Path
    commands: str

    def deploy(self, fails: bool = False, **parameters: object) -> str:
        """Run the entry point, and return what it prints."""
        return self.finish(self.start(parameters), fails)

    def finish(self, started: subprocess.Popen[str], fails: bool = False) -> str:
        """Return what the entry point prints until it ends."""
        said, _ = started.communicate()
        assert (started.returncode != 0) == fails, said
        return said

    def start(self, parameters: dict[str, object]) -> subprocess.Popen[str]:
        """Start the entry point."""
        parameters = {"target": "local", "folder": self.folder / "deployed", "name": "cars"} | parameters
        given = [f"-P{name}={value}" for name, value in parameters.items()]
        command = ["mlflow", "run", ".", "-e", "deploy", "--env-manager", "local", *given]
        own = environment(self.commands, MLFLOW_TRACKING_URI=f"sqlite:///{self.folder}/mlflow.db")
        return subprocess.Popen(command, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def registered(endpoint: Endpoint, commands: str, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    folder = tmp_path_factory.mktemp("registered")
    with tracked_in(folder):
        client = mlflow.MlflowClient()
        client.create_registered_model("cars")
        for _ in range(2):
            client.create_model_version("cars", endpoint.model.as_uri())
        client.set_registered_model_alias("cars", "candidate", "1")
    return Registered(folder, commands)


@dataclass
class Server:
    """A server of version 1, and what the commands printed that were given while it started.

    Attributes:
        port: of the server.
        first: what the command that started it printed.
        same: what the same command printed that was given meanwhile.
        status: what `action=status` printed meanwhile.
    """

    port: int
    first: str
    same: str
    status: str


@pytest.fixture(scope="module")
def server(registered: Registered) -> Iterator[Server]:
    port = free_port()
    first = registered.start({"model_uri": "models:/cars@candidate", "port": port})
    try:
        while not (registered.folder / "deployed" / "local-cars" / "server.json").exists():
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
        status = registered.start({"action": "status"})
        same = registered.start({"model_uri": "models:/cars/1", "port": port})
        yield Server(port, *map(registered.finish, (first, same, status)))
    finally:
        first.kill()
        registered.deploy(action="delete")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is no photo."""
    file = tmp_path_factory.mktemp("photo") / "photo.jpg"
    file.write_text("no photo")
    return file


@pytest.fixture(scope="module")
def replaced(registered: Registered, server: Server, photo: Path) -> str:
    """What the command prints that replaces the server by version 2 and finds that it answers no photo."""
    return registered.deploy(fails=True, port=server.port, model_uri="models:/cars/2", photo=photo)


@pytest.mark.slow
def test_a_server_of_the_alias_s_version_answers_a_photo(registered: Registered, server: Server) -> None:
    assert "a photo was answered with" in server.first
    assert f"running, http://127.0.0.1:{server.port}/invocations; models:/cars/1" in server.first
    assert requests.get(f"http://127.0.0.1:{server.port}/ping", timeout=5).status_code == 200
    runs = mlflow.MlflowClient(f"sqlite:///{registered.folder}/mlflow.db").search_runs(["0"], "status = 'FINISHED'")
    assert {run.data.tags["carmodel.state"] for run in runs} == {"running", "starting"}


@pytest.mark.slow
def test_the_same_command_meanwhile_waits_for_the_server(server: Server) -> None:
    assert "serve models:/cars/1" in server.same
    assert "local cars: starting" in server.status


@pytest.mark.slow
def test_a_version_that_answers_no_photo_is_left_with_the_next_commands(
    registered: Registered, server: Server, replaced: str, photo: Path
) -> None:
    command = "mlflow run . -e deploy --env-manager local -P target=local -P name=cars -P action={} -P folder="
    command += str(registered.folder / "deployed")
    previous = f"{command.format('deploy')} -P model_uri=models:/cars/1 -P port={server.port}"
    assert "stopping the server of models:/cars/1" in replaced
    assert "answers a photo with" in replaced
    assert f"previous version:  {previous}" in replaced
    assert command.format("status") in replaced and command.format("delete") in replaced
    said = registered.deploy(action="status", photo=photo)
    assert "local cars: running" in said and "models:/cars/2" in said and "answers a photo with" in said


@pytest.mark.slow
@pytest.mark.usefixtures("replaced")
def test_delete_ends_the_server(registered: Registered, server: Server) -> None:
    assert "next:" not in registered.deploy(action="delete")
    with socket.create_server(("127.0.0.1", server.port)):
        pass
    assert "there is no server cars" in registered.deploy(fails=True, action="status")
    assert "there is no deployment of this name" in registered.deploy(action="delete")


@pytest.mark.slow
def test_an_interrupted_deployment_names_the_next_commands(registered: Registered) -> None:
    given = {"name": "trucks", "port": free_port(), "model_uri": "models:/cars/1"}
    started = registered.start(given)
    said = ""
    for line in started.stdout:
        said += line
        if "starting MLflow's server" in line:
            break
    started.send_signal(signal.SIGINT)
    said += started.communicate()[0]
    assert "deploy: interrupted: operations that were started may continue" in said, said
    assert "-P name=trucks -P action=status" in said and "-P name=trucks -P action=delete" in said
    registered.deploy(name="trucks", action="delete")
    with socket.create_server(("127.0.0.1", given["port"])):
        pass


def local_server(folder: Path) -> Deploy:
    return Deploy(target="local", name="cars", model_uri="models:/cars/1", folder=str(folder), port=free_port())


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "local-cars"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    for act in (local.deploy, local.delete):
        with pytest.raises(InputError, match="holds other files; choose another folder"):
            act(local_server(tmp_path))
    assert (folder / "thesis.txt").read_text() == "precious"
    with pytest.raises(InputError, match=r"folder=.*thesis.txt: Not a directory; choose another one"):
        local.deploy(local_server(folder / "thesis.txt"))


def test_a_record_of_a_server_that_was_cut_short_is_no_server(tmp_path: Path) -> None:
    (tmp_path / "local-cars").mkdir()
    (tmp_path / "local-cars" / "server.json").write_text("")
    with pytest.raises(InputError, match="there is no server cars"):
        local.status(local_server(tmp_path))
    assert local.delete(local_server(tmp_path)) is False
    assert not (tmp_path / "local-cars").exists()


def refused(monkeypatch: pytest.MonkeyPatch, **parameters: str) -> object:
    """Run the step in this process, and return what it exits with."""
    words = [word for name, value in parameters.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["deploy", *words])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            run_step("deploy", Deploy, step.work)
    finally:
        signal.signal(signal.SIGTERM, before)
    return ended.value.code


def test_a_password_in_the_tracking_uri_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracked_in(tmp_path):
        mlflow.set_tracking_uri(f"http://me:pass-word@127.0.0.1:{free_port()}")
        said = f"{refused(monkeypatch, model_uri='models:/cars/1')}{''.join(capsys.readouterr())}"
    assert "http://…@127.0.0.1" in said and "cannot be reached" in said
    assert "pass-word" not in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "model_uri"),
        ({"model_uri": "models:/cars/7"}, "cars"),
        ({"model_uri": "models:/cars@champion"}, "no version of cars has the alias champion"),
        ({"model_uri": "runs:/0/model"}, "deploy.model_uri='runs:/0/model'"),
        ({"model_uri": "models:/cars/1", "photo": "no.jpg"}, "photo='no.jpg'"),
        ({"action": "promote"}, "action=promote is for online and kubernetes-online"),
        ({"target": "online", "model_uri": "models:/cars/1"}, "is not the URI of an Azure ML workspace"),
        ({"target": "aci", "model_uri": "models:/cars/1"}, "MLFLOW_TRACKING_URI"),
        ({"target": "online", "settings_file": "no.yml", "model_uri": "models:/cars/1"}, "settings_file='no.yml'"),
        ({"target": "moon"}, "deploy.target='moon'"),
        ({"name": "My Cars"}, "deploy.name='My Cars': not valid; expected: name of the service"),
    ],
)
def test_invalid_parameters_are_refused(
    registered: Registered,
    given: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tracked_in(registered.folder):
        assert refused(monkeypatch, **{"target": "local"} | given) == 2
    assert words in capsys.readouterr().err
