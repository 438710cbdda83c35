"""What tests of clouds share: one `mlflow server` and one certificate authority, and the clouds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from carmodel.cloud import azure as azure_jobs
from carmodel.cloud import waiting
from tests.cloud.azureml_cloud import Azure, azure
from tests.cloud.databricks_jobs import TOKEN, Workspace, make
from tests.cloud.mlflow_server import Server, mlflow_server
from tests.cloud.stand_in import Authority, Wire, make_authority, serve
from tests.project import client_here, copy_project, environment


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def server(commands: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tracking server. The interpreter of `commands` starts meanwhile."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def cloud(
    server: Server, authority: Authority, commands: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Azure]:
    """Azure with one workspace."""
    with azure(tmp_path_factory.mktemp("azure"), server, authority, commands) as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for the state of a job ten times a second at first."""
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.1)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of the project, with files that are not to be uploaded. The clients read each file of a project."""
    folder = copy_project(tmp_path_factory.mktemp("sources") / "project")
    for name in (".git/HEAD", ".venv/pyvenv.cfg", "mlruns/meta.yaml"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("not for a job")
    return folder


@pytest.fixture
def client(cloud: Azure, sources: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """This process as a client that is signed in to the workspace, asks nobody else, and submits the copy."""
    monkeypatch.setattr(azure_jobs, "ROOT", sources)
    with client_here(cloud.environment):
        yield cloud
    assert cloud.proxy.refused == []


@pytest.fixture
def databricks(authority: Authority, commands: str, tmp_path: Path) -> Iterator[tuple[Workspace, Wire]]:
    """A workspace of Databricks and its service."""
    workspace = Workspace(tmp_path / "databricks", commands)
    with serve(make(workspace), authority) as wire:
        yield workspace, wire
        for job in workspace.jobs.values():
            job.cancel()


@pytest.fixture
def databricks_environment(
    databricks: tuple[Workspace, Wire], authority: Authority, commands: str, server: Server
) -> dict[str, str]:
    """All variables of a client of that workspace which tracks to the server."""
    own = {"DATABRICKS_HOST": databricks[1].url, "DATABRICKS_TOKEN": TOKEN, "MLFLOW_TRACKING_URI": server.url}
    return environment(commands, **authority.environment, **own)
