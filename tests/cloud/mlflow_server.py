"""A real `mlflow server`. Tests track to it directly, or to the stand-in of a cloud that hands requests on to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import requests

from tests.tiny import free_port
from tests.tracked import new_database


class Server(NamedTuple):
    """The server's URL, and the folder with its database, artifacts and log."""

    url: str
    folder: Path


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    """Run a server, with everything it keeps in `folder`, until the context ends."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        new_database(folder, "mlflow-artifacts:/0"),
        "--artifacts-destination",
        f"{folder}/files",
    ]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while not _answers(url):
            if process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text())
            time.sleep(0.1)
        yield Server(url, folder)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=5).ok
    except requests.RequestException:
        return False
