"""A real `mlflow models serve` process on loopback."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from carmodel.serving.scoring_server import running_server
from tests.tiny import free_port


@dataclass(frozen=True)
class Server:
    """A running server: its address, and the leader of its processes."""

    address: str
    pid: int

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Post a body to /invocations, and return the status and the answer."""
        headers = {"Content-Type": "application/json"}
        response = requests.post(f"{self.address}/invocations", body, headers=headers, timeout=120)
        return response.status_code, response.content

    def predict(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of an answer, read strictly, as parsers of other languages do: NaN is not JSON."""
        status, answer = self.post(json.dumps(body).encode())
        assert status == 200, answer[:2000]
        return json.loads(answer, parse_constant=_no_json)["predictions"]

    def memory(self) -> int:
        """Return the resident bytes of all its processes."""
        leader = psutil.Process(self.pid)
        return sum(process.memory_info().rss for process in [leader, *leader.children(recursive=True)])


@contextmanager
def serve(model: str, folder: Path) -> Iterator[Server]:
    """Serve a model, with its log in `folder`, and stop the server afterwards."""
    with (folder / "log").open("wb") as log, running_server(model, free_port(), log) as (address, process):
        yield Server(address, process.pid)


def _no_json(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")
