"""Call functions of `benchmarks/peer_process.py` in the peers' environment, from this process."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.given import Given

MISSING = "it is not installed; `make bench` installs it into .venv-bench"


class PeerError(RuntimeError):
    """A call failed in the peers' environment, or there is no such environment."""


class Peers:
    """A process of the peers' environment, which is idle between calls.

    Args:
        interpreter: its Python.

    Raises:
        PeerError: there is no such file.
    """

    def __init__(self, interpreter: Path) -> None:
        if not interpreter.is_file():
            raise PeerError(MISSING)
        self._process = subprocess.Popen(
            # -I: this project's directory is not on the path of the peers.
            [str(interpreter), "-I", str(Path(__file__).with_name("peer_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "NO_ALBUMENTATIONS_UPDATE": "1"},
        )

    def call(self, function: str, **arguments: object) -> Any:
        """Call a function and return its value.

        Raises:
            PeerError: it raised an exception, or the process ended.
        """
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps({"function": function, "arguments": arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"{function}: the peers' process ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{function}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def peers(given: Given) -> Iterator[Peers | None]:
    """Start the process of the peers within a ``with`` block. The value is None if they are not installed."""
    try:
        process = Peers(given.peers)
    except PeerError:
        yield None
        return
    try:
        yield process
    finally:
        process.close()
