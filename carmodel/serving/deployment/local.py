"""MLflow's own server on this machine, which goes on when the step has ended."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from typing import NamedTuple

import requests

from carmodel.errors import InputError
from carmodel.serving.deployment.wanted import Deployed, DeployError, Say, Wanted
from carmodel.serving.server import HOST, require_free, start


class _Kept(NamedTuple):
    """What the folder remembers of the server."""

    pid: int
    port: int
    model_uri: str


def deploy(wanted: Wanted, say: Say) -> Deployed:
    """Serve the model; a server of another version is replaced, one of this version left as it is."""
    if (kept := _kept(wanted)) and kept.model_uri == wanted.model_uri and kept.port == wanted.port and _answers(kept):
        say(f"{wanted.name} serves {wanted.model_uri} already")
        return _deployed(kept)
    back = wanted.way_back(kept.model_uri, kept.port) if kept else ""
    if kept is None or kept.port != wanted.port:
        require_free(HOST, wanted.port)
    delete(wanted, say)
    require_free(HOST, wanted.port)
    wanted.folder.mkdir(parents=True, exist_ok=True)
    log = wanted.folder / "server.log"
    say(f"starting MLflow's server; its lines go to {log}")
    with log.open("wb") as lines:
        process = start(wanted.model_uri, wanted.port, lines)
    kept = _Kept(process.pid, wanted.port, wanted.model_uri)
    # Before it answers: a server that never does can still be ended.
    (wanted.folder / "server.json").write_text(json.dumps(kept._asdict()))
    deadline = time.monotonic() + wanted.timeout
    while not _answers(kept):
        if process.poll() is not None:
            delete(wanted, lambda line: None, keep_log=True)
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise DeployError(f"MLflow's server has ended: {' '.join(last)}\n  all its lines: {log}\n{back}".rstrip())
        if time.monotonic() > deadline:
            delete(wanted, say, keep_log=True)
            said = f"MLflow's server has not answered within timeout={wanted.timeout:g} seconds: {log}\n{back}"
            raise DeployError(said.rstrip())
        time.sleep(0.25)
    return _deployed(kept)._replace(back=back)


def release(wanted: Wanted, say: Say) -> Deployed:
    """Look at it: clients reach a server from its first answer."""
    return status(wanted, say)


def status(wanted: Wanted, say: Say) -> Deployed:
    """Look whether the server answers."""
    if not (kept := _kept(wanted)):
        raise InputError(
            f"there is no server {wanted.name} in {wanted.folder.parent}; start it: {wanted.command('deploy')}"
        )
    return _deployed(kept) if _answers(kept) else Deployed("stopped", detail=f"see {wanted.folder / 'server.log'}")


def delete(wanted: Wanted, say: Say, keep_log: bool = False) -> None:
    """End the server and remove what it left."""
    if kept := _kept(wanted):
        say(f"ending the server of {kept.model_uri}")
        with suppress(ProcessLookupError):
            if _is_ours(kept):
                os.killpg(kept.pid, signal.SIGTERM)
                _wait_for_its_end(kept)
        (wanted.folder / "server.json").unlink()
    if not keep_log:
        shutil.rmtree(wanted.folder, ignore_errors=True)


def _kept(wanted: Wanted) -> _Kept | None:
    file = wanted.folder / "server.json"
    return _Kept(**json.loads(file.read_text())) if file.is_file() else None


def _deployed(kept: _Kept) -> Deployed:
    return Deployed("running", f"http://{HOST}:{kept.port}/invocations", detail=f"{kept.model_uri}, process {kept.pid}")


def _answers(kept: _Kept) -> bool:
    try:
        return _is_ours(kept) and requests.get(f"http://{HOST}:{kept.port}/ping", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def _is_ours(kept: _Kept) -> bool:
    """Whether the process is still that server, and not another one that got its number."""
    said = subprocess.run(
        ["ps", "-o", "args=", "-p", str(kept.pid)], capture_output=True, text=True, check=False
    ).stdout
    return "mlflow" in said and str(kept.port) in said


def _wait_for_its_end(kept: _Kept) -> None:
    """Wait until all of its processes are gone, and its port free; SIGKILL after 15 seconds."""
    began = time.monotonic()
    while _session(kept) and time.monotonic() < began + 20:
        if time.monotonic() > began + 15:
            os.killpg(kept.pid, signal.SIGKILL)
        time.sleep(0.1)


def _session(kept: _Kept) -> list[str]:
    """States of the processes of its session that have not ended; Z are those that nobody has asked for their end."""
    listed = subprocess.run(["ps", "-o", "stat=", "-g", str(kept.pid)], capture_output=True, text=True, check=False)
    return [state for state in listed.stdout.split() if not state.startswith("Z")]
