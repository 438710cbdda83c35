"""The authority that the cloud's stand-ins are signed by, and an `mlflow server` for those that only track."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cloud.mlflow_server import mlflow_server
from tests.cloud.stand_in import Authority, make_authority


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
