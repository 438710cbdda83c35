"""The entry point `deploy` through `mlflow run`: MLflow's server on this machine, and what is refused before that."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests

from carmodel.deploy import local
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from tests.tiny import free_port, log_tiny, tiny_network
from tests.tracked import tracked_in

MLFLOW = Path(sys.executable).with_name("mlflow")


@dataclass
class Registered:
    """A folder with a registry that holds two versions of the classifier ``cars``; version 1 is its candidate."""

    folder: Path

    def deploy(self, fails: bool = False, **parameters: object) -> str:
        """Run the entry point, and return what it says."""
        started = self.start(parameters)
        said, _ = started.communicate(timeout=300)
        assert (started.returncode != 0) == fails, said
        return said

    def start(self, parameters: dict[str, object]) -> subprocess.Popen[str]:
        """Start the entry point."""
        parameters = {"folder": self.folder / "deployed", "name": "cars"} | parameters
        given = [f"-P{name}={value}" for name, value in parameters.items()]
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}
        command = [str(MLFLOW), "run", ".", "-e", "deploy", "--env-manager", "local", *given]
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=environment, text=True, **both)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    folder = tmp_path_factory.mktemp("registered")
    with tracked_in(folder):
        experiment = mlflow.create_experiment("Default-1", artifact_location=(folder / "artifacts").as_uri())
        with mlflow.start_run(experiment_id=experiment):
            uri = log_tiny(tiny_network())
        for _ in range(2):
            mlflow.register_model(uri, "cars")
        mlflow.MlflowClient().set_registered_model_alias("cars", "candidate", "1")
    return Registered(folder)


@pytest.mark.slow
def test_a_local_server_is_started_left_replaced_and_ended(registered: Registered) -> None:
    port = free_port()
    said = registered.deploy(target="local", model_uri="models:/cars@candidate", port=port)
    assert "a photo was answered with" in said
    assert f"running, http://127.0.0.1:{port}/invocations; models:/cars/1" in said
    assert requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).status_code == 200
    said = registered.deploy(target="local", model_uri="models:/cars/1", port=port)
    assert "cars already serves models:/cars/1" in said
    said = registered.deploy(target="local", model_uri="models:/cars/2", port=port)
    assert "stopping the server of models:/cars/1" in said
    assert "models:/cars/2" in registered.deploy(target="local", action="status")
    registered.deploy(target="local", action="delete")
    with socket.create_server(("127.0.0.1", port)):
        pass
    assert "there is no server cars" in registered.deploy(fails=True, target="local", action="status")
    assert "there is no deployment of this name" in registered.deploy(target="local", action="delete")
    runs = mlflow.MlflowClient(f"sqlite:///{registered.folder}/mlflow.db").search_runs(["0"], "status = 'FINISHED'")
    assert {run.data.tags.get("carmodel.state") for run in runs} == {"running", None}


@pytest.mark.slow
def test_one_that_answers_no_photo_is_said_to_be_there_with_the_ways_on_and_back(
    registered: Registered, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "photo.jpg").write_text("no photo")
    given = {"target": "local", "port": port, "name": "vans"}
    registered.deploy(**given, model_uri="models:/cars/1")
    command = "mlflow run . -e deploy --env-manager local -P target=local -P name=vans -P action={}"
    folder = f"-P folder={registered.folder}/deployed"
    try:
        said = registered.deploy(fails=True, **given, model_uri="models:/cars/2", photo=tmp_path / "photo.jpg")
        assert "answers a photo with" in said
        assert (
            f"previous version:  {command.format('deploy')} {folder} -P model_uri=models:/cars/1 -P port={port}" in said
        )
        assert f"{command.format('status')} {folder}" in said and f"{command.format('delete')} {folder}" in said
        said = registered.deploy(**given, action="status", photo=tmp_path / "photo.jpg")
        assert "local vans: running" in said and "answers a photo with" in said
    finally:
        assert "next:" not in registered.deploy(**given, action="delete")


@pytest.mark.slow
def test_the_same_command_beside_itself_waits_for_the_server_that_is_starting(registered: Registered) -> None:
    given = {"target": "local", "name": "twins", "port": free_port(), "model_uri": "models:/cars/1"}
    first = registered.start(given)
    try:
        while not (registered.folder / "deployed" / "local-twins" / "server.json").exists():
            assert first.poll() is None
            time.sleep(0.05)
        assert "local twins: starting" in registered.deploy(target="local", name="twins", action="status")
        assert "serve models:/cars/1" in registered.deploy(**given)
        said, _ = first.communicate(timeout=120)
        assert first.returncode == 0, said
    finally:
        registered.deploy(target="local", name="twins", action="delete")


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


@pytest.mark.slow
def test_an_interrupted_deployment_says_what_is_there_and_how_to_end_it(registered: Registered) -> None:
    given = {"target": "local", "name": "trucks", "port": free_port(), "model_uri": "models:/cars/1"}
    started = registered.start(given)
    lines = []
    for line in started.stdout:
        lines.append(line)
        if "starting MLflow's server" in line:
            break
    started.send_signal(signal.SIGINT)
    rest, _ = started.communicate(timeout=60)
    assert "deploy: interrupted: operations that were started may continue" in rest, "".join(lines) + rest
    assert "-P name=trucks -P action=status" in rest and "-P name=trucks -P action=delete" in rest
    registered.deploy(target="local", name="trucks", action="delete")
    with socket.create_server(("127.0.0.1", given["port"])):
        pass


def test_a_password_in_the_tracking_uri_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from steps import deploy
    from steps.command import run_step

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sys, "argv", ["deploy", "--model_uri", "models:/cars/1"])
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"http://me:pass-word@127.0.0.1:{free_port()}")
    try:
        with pytest.raises(SystemExit) as ended:
            run_step("deploy", deploy.Deploy, deploy.work)
    finally:
        mlflow.set_tracking_uri(before)
    said = f"{ended.value.code}{''.join(capsys.readouterr())}"
    assert "http://…@127.0.0.1" in said and "cannot be reached" in said
    assert "pass-word" not in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"target": "local"}, "model_uri"),
        ({"target": "local", "model_uri": "models:/cars/7"}, "cars"),
        ({"target": "local", "model_uri": "models:/cars@champion"}, "no version of cars has the alias champion"),
        ({"target": "local", "model_uri": "runs:/0/model"}, "deploy.model_uri='runs:/0/model'"),
        ({"target": "local", "model_uri": "models:/cars/1", "photo": "no.jpg"}, "photo='no.jpg'"),
        ({"target": "local", "action": "promote"}, "action=promote is for online and kubernetes-online"),
        ({"target": "online", "model_uri": "models:/cars/1"}, "names no Azure ML workspace"),
        ({"target": "aci", "model_uri": "models:/cars/1"}, "MLFLOW_TRACKING_URI"),
        ({"target": "online", "settings_file": "no.yml", "model_uri": "models:/cars/1"}, "settings_file='no.yml'"),
        ({"target": "moon"}, "deploy.target='moon'"),
        (
            {"target": "local", "name": "My Cars"},
            "deploy.name='My Cars': invalid format; name is the name of the service",
        ),
    ],
)
def test_what_can_t_be_done_is_said_before_anything_is(
    registered: Registered,
    given: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from steps import deploy
    from steps.command import run_step

    monkeypatch.setattr(
        sys, "argv", ["deploy", *(part for name, value in given.items() for part in (f"--{name}", value))]
    )
    with tracked_in(registered.folder), pytest.raises(SystemExit) as ended:
        run_step("deploy", deploy.Deploy, deploy.work)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
