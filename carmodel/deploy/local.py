"""MLflow's own server on this machine, which goes on when the step has ended."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import requests

from carmodel.deploy.wanted import Deployed, DeployError, Say, Wanted
from carmodel.errors import InputError
from carmodel.serving.server import HOST, require_free, start


class _Kept(NamedTuple):
    """What the folder remembers of the server."""

    pid: int
    port: int
    model_uri: str


def deploy(wanted: Wanted, say: Say) -> Deployed:
    """Serve the model; a server of another version is replaced, one of this version left as it is.

    Raises:
        InputError: the port is taken, or the folder is somebody else's.
        DeployError: the server ends, or does not answer in time; nothing is left but its log.
    """
    _require_ours(wanted)
    kept, back = _kept(wanted), ""
    if kept and (kept.model_uri, kept.port) == (wanted.model_uri, wanted.port) and _is_ours(kept):
        say(f"{wanted.name} {'serves' if _answers(kept) else 'starts to serve'} {wanted.model_uri} already")
    else:
        if kept is None or kept.port != wanted.port:
            require_free(HOST, wanted.port)
        if kept:
            back = wanted.way_back(kept.model_uri, kept.port)
            say(f"ending the server of {kept.model_uri}\n{back}".rstrip())
            _end(wanted, kept)
        require_free(HOST, wanted.port)
        kept = _start(wanted, say)
    deadline = time.monotonic() + wanted.timeout
    while not _answers(kept):
        if not _is_ours(kept):
            _end(wanted, kept)
            last = _log(wanted).read_text(errors="replace").strip().splitlines()[-3:]
            said = f"MLflow's server has ended: {' '.join(last)}\n  all its lines: {_log(wanted)}\n{back}"
            raise DeployError(said.rstrip())
        if time.monotonic() > deadline:
            _end(wanted, kept)
            said = f"MLflow's server has not answered within timeout={wanted.timeout:g} seconds: {_log(wanted)}\n{back}"
            raise DeployError(said.rstrip())
        time.sleep(0.25)
    return _deployed(kept)._replace(back=back)


def release(wanted: Wanted, say: Say) -> Deployed:
    """Look at it: clients reach a server from its first answer."""
    return status(wanted, say)


def status(wanted: Wanted, say: Say) -> Deployed:
    """Look whether the server answers.

    Raises:
        InputError: there is none.
    """
    if not (kept := _kept(wanted)):
        raise InputError(
            f"there is no server {wanted.name} in {wanted.folder.parent}; start it: {wanted.command('deploy')}"
        )
    if _answers(kept):
        return _deployed(kept)
    if _is_ours(kept):
        return Deployed("starting", detail=f"{kept.model_uri} does not answer yet; its lines: {_log(wanted)}")
    again = wanted._replace(port=kept.port).command("deploy", kept.model_uri)
    return Deployed("stopped", detail=f"its lines: {_log(wanted)}; start it: {again}")


def delete(wanted: Wanted, say: Say) -> bool:
    """End the server and remove what it left; whether there was one.

    Raises:
        InputError: the folder is somebody else's.
    """
    _require_ours(wanted)
    if kept := _kept(wanted):
        say(f"ending the server of {kept.model_uri}")
        _end(wanted, kept)
    shutil.rmtree(wanted.folder, ignore_errors=True)
    return kept is not None


def _start(wanted: Wanted, say: Say) -> _Kept:
    say(f"starting MLflow's server; its lines go to {_log(wanted)}")
    try:
        wanted.folder.mkdir(parents=True, exist_ok=True)
        with _log(wanted).open("wb") as lines:
            process = start(wanted.model_uri, wanted.port, lines)
    except OSError as error:
        raise InputError(f"folder={wanted.folder.parent}: {error.strerror}; choose another one") from None
    kept = _Kept(process.pid, wanted.port, wanted.model_uri)
    # Before it answers: a server that never does can still be ended.
    (wanted.folder / "server.json").write_text(json.dumps(kept._asdict()))
    return kept


def _end(wanted: Wanted, kept: _Kept) -> None:
    """End this server; another that has taken its place meanwhile goes on."""
    with suppress(ProcessLookupError):
        if _is_ours(kept):
            os.killpg(kept.pid, signal.SIGTERM)
            _wait_for_its_end(kept)
    if _kept(wanted) == kept:
        (wanted.folder / "server.json").unlink()


def _log(wanted: Wanted) -> Path:
    return wanted.folder / "server.log"


def _kept(wanted: Wanted) -> _Kept | None:
    """The server that was started last; None also where the file was cut short."""
    try:
        return _Kept(**json.loads((wanted.folder / "server.json").read_text()))
    except (OSError, ValueError):
        return None


def _require_ours(wanted: Wanted) -> None:
    """Check that the folder holds nothing of anybody else.

    Raises:
        InputError: it does.
    """
    there = {path.name for path in wanted.folder.iterdir()} if wanted.folder.is_dir() else set()
    if there - {"server.json", "server.log"}:
        raise InputError(f"folder={wanted.folder.parent}: {wanted.folder} holds something else; choose another one")


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
