"""MLflow's own server as a background process of this machine."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from carmodel.deploy.messages import command, say, undo_line
from carmodel.deploy.status import DeployError, Status
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from carmodel.serving.registry import source_of
from carmodel.serving.scoring_server import HOST, answers, require_free, start_server
from carmodel.tracking.processes import identify, is_alive


@dataclass(frozen=True)
class _Server:
    """The record of a server in its folder, ``server.json``.

    Attributes:
        pid: the process, which leads its own process group.
        port: its port on this machine.
        model_uri: the version that it serves.
        source: what `source_of` returns for that version.
        process: identity of the process. Empty on a system without ``/proc``.
    """

    pid: int
    port: int
    model_uri: str
    source: str
    process: str


def deploy(settings: Deploy) -> Status:
    """Serve the model. Replace a server of another version, and keep one of this version.

    Raises:
        InputError: the port is taken, or the folder holds other files.
        DeployError: the server exits, or does not answer in time. Only its log is left.
    """
    _require_own_folder(settings)
    server, undo = _recorded(settings), ""
    if server and _is_running(server) and _serves(server, settings):
        state = "already serves" if _answers(server) else "is already starting to serve"
        say(f"{settings.name} {state} {settings.model_uri}")
    else:
        if server is None or server.port != settings.port:
            require_free(HOST, settings.port)
        if server:
            undo = undo_line(settings, server.model_uri, server.port)
            say(f"stopping the server of {server.model_uri}\n{undo}".rstrip())
            _stop(settings, server)
        require_free(HOST, settings.port)
        server = _start(settings)
    deadline = time.monotonic() + settings.timeout
    while not _answers(server):
        if not _is_running(server):
            _stop(settings, server)
            last_lines = _log(settings).read_text(errors="replace").strip().splitlines()[-3:]
            raise DeployError(
                f"MLflow's server has exited: {' '.join(last_lines)}\n  its log: {_log(settings)}\n{undo}".rstrip()
            )
        if time.monotonic() > deadline:
            _stop(settings, server)
            raise DeployError(
                f"MLflow's server has not answered within timeout={settings.timeout:g} seconds; its log: "
                f"{_log(settings)}\n{undo}".rstrip()
            )
        time.sleep(0.25)
    return replace(_status(server), undo=undo)


def release(settings: Deploy) -> Status:
    """Return the status: clients reach a local server from its first answer."""
    return status(settings)


def status(settings: Deploy) -> Status:
    """Return whether the server answers.

    Raises:
        InputError: there is no server.
    """
    server = _recorded(settings)
    if server is None:
        raise InputError(
            f"there is no server {settings.name} in {_folder(settings).parent}; start it: {command(settings, 'deploy')}"
        )
    if _answers(server):
        return _status(server)
    if _is_running(server):
        return Status("starting", detail=f"{server.model_uri} does not answer yet; its log: {_log(settings)}")
    same_port = settings.model_copy(update={"port": server.port})
    restart = command(same_port, "deploy", server.model_uri)
    return Status("stopped", detail=f"its log: {_log(settings)}; start it: {restart}")


def delete(settings: Deploy) -> bool:
    """Stop the server and remove its folder. Return whether there was a server.

    Raises:
        InputError: the folder holds other files.
    """
    _require_own_folder(settings)
    server = _recorded(settings)
    if server:
        say(f"stopping the server of {server.model_uri}")
        _stop(settings, server)
    shutil.rmtree(_folder(settings), ignore_errors=True)
    return server is not None


def _start(settings: Deploy) -> _Server:
    say(f"starting MLflow's server; its log: {_log(settings)}")
    try:
        _folder(settings).mkdir(parents=True, exist_ok=True)
        source = source_of(settings.model_uri)
        with _log(settings).open("wb") as log:
            process = start_server(settings.model_uri, settings.port, log)
    except OSError as error:
        raise InputError(f"folder={_folder(settings).parent}: {error.strerror}; choose another one") from None
    server = _Server(process.pid, settings.port, settings.model_uri, source, identify(process.pid))
    # Written before the server answers, so that one that never answers can still be stopped.
    _record(settings).write_text(json.dumps(asdict(server)))
    return server


def _serves(server: _Server, settings: Deploy) -> bool:
    """Return whether a server has the version and the port of the settings."""
    same = (server.model_uri, server.port) == (settings.model_uri, settings.port)
    return same and server.source == source_of(settings.model_uri)


def _stop(settings: Deploy, server: _Server) -> None:
    """Stop this server, but not another one that has replaced it in the meantime."""
    with suppress(ProcessLookupError):
        if _is_running(server):
            os.killpg(server.pid, signal.SIGTERM)
            _wait_until_stopped(server)
    if _recorded(settings) == server:
        _record(settings).unlink()


def _folder(settings: Deploy) -> Path:
    return Path(settings.folder).expanduser().resolve() / f"local-{settings.name}"


def _log(settings: Deploy) -> Path:
    return _folder(settings) / "server.log"


def _record(settings: Deploy) -> Path:
    return _folder(settings) / "server.json"


def _recorded(settings: Deploy) -> _Server | None:
    """Return the server that was started last, or None if there is no record or only a part of one."""
    try:
        return _Server(**json.loads(_record(settings).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _require_own_folder(settings: Deploy) -> None:
    """Check that the folder holds no files but those of a server.

    Raises:
        InputError: it does.
    """
    folder = _folder(settings)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - {"server.json", "server.log"}:
        raise InputError(f"folder={folder.parent}: {folder} holds other files; choose another folder")


def _status(server: _Server) -> Status:
    return Status("running", f"http://{HOST}:{server.port}/invocations", detail=f"{server.model_uri}, pid {server.pid}")


def _answers(server: _Server) -> bool:
    return _is_running(server) and answers(server.port)


def _is_running(server: _Server) -> bool:
    """Return whether the process is still that server, and not another process with the same id."""
    if server.process:
        return is_alive(server.process)
    ps = ["ps", "-ww", "-o", "args=", "-p", str(server.pid)]
    arguments = subprocess.run(ps, capture_output=True, text=True, check=False).stdout
    return "mlflow" in arguments and str(server.port) in arguments


def _wait_until_stopped(server: _Server) -> None:
    """Wait until all processes of the server are gone and its port is free. Send SIGKILL after 15 seconds."""
    began = time.monotonic()
    while _live_processes(server) and time.monotonic() < began + 20:
        if time.monotonic() > began + 15:
            os.killpg(server.pid, signal.SIGKILL)
        time.sleep(0.1)


def _live_processes(server: _Server) -> list[str]:
    """Return the states of the processes in the server's session, without zombies (Z)."""
    ps = ["ps", "-o", "stat=", "-g", str(server.pid)]
    states = subprocess.run(ps, capture_output=True, text=True, check=False).stdout.split()
    return [state for state in states if not state.startswith("Z")]
