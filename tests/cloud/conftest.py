"""The authority that the cloud's stand-ins are signed by, and the clouds that several tests share."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cloud.azureml_cloud import Azure, azure
from tests.cloud.databricks_jobs import TOKEN, Workspace, make
from tests.cloud.mlflow_server import mlflow_server
from tests.cloud.plain_server import plain_server
from tests.cloud.stand_in import Authority, Wire, make_authority, serve


class Server(NamedTuple):
    """A running `mlflow server`: its address, and the folder of its state and log."""

    url: str
    folder: Path


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder) as url:
        yield Server(url, folder)


@pytest.fixture(scope="session")
def tracking(tmp_path_factory) -> Iterator[str]:
    """URL of a tracking server that hands out artifacts."""
    with plain_server(tmp_path_factory.mktemp("tracking")) as url:
        yield url


@pytest.fixture(scope="session")
def cloud(authority: Authority, tmp_path_factory) -> Iterator[Azure]:
    """Azure with one workspace."""
    with azure(tmp_path_factory.mktemp("azure"), authority) as running:
        yield running


@pytest.fixture
def databricks(authority: Authority, tmp_path) -> Iterator[tuple[Workspace, Wire]]:
    """A workspace of Databricks and its service."""
    workspace = Workspace(tmp_path / "databricks", {})
    with serve(make(workspace), authority) as wire:
        yield workspace, wire
        for job in workspace.jobs.values():
            job.cancel()


@pytest.fixture
def databricks_environment(databricks: tuple[Workspace, Wire], authority: Authority) -> dict[str, str]:
    """Variables of a client of that workspace."""
    own = {"DATABRICKS_HOST": databricks[1].url, "DATABRICKS_TOKEN": TOKEN, "MLFLOW_DISABLE_TELEMETRY": "true"}
    return authority.environment | own
