"""A real `mlflow models serve` process on loopback, for as long as a test wants it."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carmodel.serving.scoring_server import running_server
from tests.tiny import free_port


@dataclass(frozen=True)
class Server:
    """A running server: its address, the seconds it took to answer, and the leader of its processes."""

    address: str
    start_seconds: float
    pid: int

    def post(self, body: bytes, content_type: str = "application/json") -> tuple[int, bytes]:
        """Post a body to /invocations: the status and the answer, whatever the status."""
        request = urllib.request.Request(f"{self.address}/invocations", body, {"Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def predict(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of an answer, read strictly, as other languages' parsers do: NaN is not JSON."""
        status, answer = self.post(json.dumps(body).encode())
        assert status == 200, answer[:2000]
        return json.loads(answer, parse_constant=_no_json)["predictions"]

    def memory(self) -> int:
        """Resident bytes of all its processes."""
        return sum(_resident(folder) for folder in Path("/proc").iterdir() if _group(folder) == self.pid)


@contextmanager
def serve(model: str, folder: Path) -> Iterator[Server]:
    """Serve the model in a folder, with its log in `folder`, and end the server afterwards."""
    began = time.perf_counter()
    with (folder / "log").open("wb") as log, running_server(model, free_port(), log) as (address, process):
        yield Server(address, time.perf_counter() - began, process.pid)


def _group(process: Path) -> int | None:
    try:
        # What follows the program's name in parentheses: state, parent, process group.
        return int((process / "stat").read_text().rpartition(")")[2].split()[2]) if process.name.isdigit() else None
    except OSError:
        return None


def _resident(process: Path) -> int:
    try:
        return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _no_json(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")
