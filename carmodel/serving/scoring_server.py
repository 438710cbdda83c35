"""Run MLflow's scoring server as a child process within a ``with`` block."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from urllib3 import PoolManager
from urllib3.exceptions import HTTPError

from carmodel.errors import InputError

HOST = "127.0.0.1"
_PATIENCE = 300.0
"""Seconds that a model may take to load."""


@contextmanager
def running_server(
    model_uri: str, port: int, log: IO[bytes] | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve a model with ``mlflow models serve`` on the loopback address, and stop the server at the end of the block.

    Args:
        model_uri: any URI that MLflow can serve.
        port: port of the endpoint.
        log: file for the server's output; None: the terminal.

    Yields:
        the URL of the endpoint, once it answers, and the process, which leads its own process group.

    Raises:
        InputError: the port is in use, or the server ends or does not answer. Its output explains why.
    """
    require_free(HOST, port)
    process = start_server(model_uri, port, log)
    address = f"http://{HOST}:{port}"
    try:
        _wait_until_up(port, process)
        yield address, process
    finally:
        stop_server(process)


def start_server(model_uri: str, port: int, log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start ``mlflow models serve`` on the loopback address, as the leader of a new process group."""
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model_uri, "--env-manager", "local"]
    # MLflow starts uvicorn by name. It is in the directory of this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    if log is None:  # on a terminal, a line per request would hide what matters
        quiet["UVICORN_LOG_LEVEL"] = "warning"
    return subprocess.Popen(
        [*command, "--host", HOST, "--port", str(port), "--workers", "1"],
        env=quiet | os.environ | {"PATH": path},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def stop_server(process: subprocess.Popen[bytes], how: int = signal.SIGTERM) -> None:
    """Stop a server's process group and wait until it has ended. Send SIGKILL after ten seconds."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            process.poll()  # a group lasts until its leader is reaped
            os.killpg(process.pid, 0)  # raises once none of the group is left
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    """Return whether a server of this machine answers at a port. A proxy for HTTP is not asked."""
    with PoolManager(retries=False, timeout=5.0) as http:
        try:
            return http.request("GET", f"http://{HOST}:{port}/ping").status == 200
        except HTTPError:
            return False


def require_free(host: str, port: int) -> None:
    """Check that a server can listen on a port.

    Raises:
        InputError: the port is in use, or the host is not an address of this machine.
    """
    try:
        socket.create_server((host, port)).close()
    except socket.gaierror as error:
        raise InputError(f"{host} is no address of this machine ({error.strerror})") from None
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise InputError(f"{host}:{port} cannot be used ({reason}); choose another port") from None


def _wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise InputError("MLflow's server ended before it answered; see its output")
        if answers(port):
            return
        time.sleep(0.25)
    raise InputError(f"MLflow's server did not answer within {_PATIENCE:.0f} seconds; see its output")
