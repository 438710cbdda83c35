"""MLflow's own server in a container of this machine; where no Docker engine answers, the build context for one.

Each version has its context, its image and its container. All three carry the model's URI, as a label that the context's
Dockerfile sets, so a rerun makes only what is missing. The container is made from what MLflow writes:
https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/ and
https://docs.docker.com/reference/cli/docker/
"""

import json
import re
import shlex
import shutil
import subprocess
import time
from threading import Timer
from typing import Any, NamedTuple

import requests

from carmodel.deploy.docker_context import LABEL, model_in, partial_of, require_context, require_ours
from carmodel.deploy.wanted import Deployed, DeployError, Say, Wanted
from carmodel.errors import InputError
from carmodel.serving.server import HOST, require_free

PORT = 8080
"""Of MLflow's server in the container."""
STEP = re.compile(r"Step \d+/\d+ : .+|#\d+ \[.+")
"""Docker's lines that begin a step of a build; the others are apt's and pip's."""


class _Container(NamedTuple):
    """What Docker knows of a container: its state, in its own word, the model and the port of this machine."""

    state: str
    model_uri: str
    port: int


def deploy(wanted: Wanted, say: Say) -> Deployed:
    """Write the context; where an engine answers, build its image, run it and wait until it serves.

    Raises:
        InputError: the port is taken, or a container or folder of that name is somebody else's.
        DeployError: MLflow's or Docker's message, what is there now, and the next command.
    """
    deadline = time.monotonic() + wanted.timeout
    missing = _why_no_engine()
    if missing:
        require_context(wanted, say)
        return _only_context(wanted, missing)
    container = _container(wanted)
    if container == _Container("running", wanted.model_uri, wanted.port) and _answers(wanted.port):
        say(f"{wanted.name} serves {wanted.model_uri} already")
        return _running(container)
    if container is None or container.port != wanted.port:
        require_free(HOST, wanted.port)
    if _image_is_there(wanted):
        say(f"image {_image(wanted)} is there already")
    else:
        require_context(wanted, say)
        _build(wanted, say, deadline)
    back = wanted.way_back(container.model_uri, container.port) if container else ""
    if container:
        say(f"removing the container of {container.model_uri}\n{back}".rstrip())
        _docker(wanted, "rm", "--force", wanted.name)
    try:
        _run(wanted, say)
        _wait(wanted, say, deadline)
    except DeployError as error:
        raise DeployError(f"{error}\n{back}".rstrip()) from None
    return status(wanted, say)._replace(back=back)


def release(wanted: Wanted, say: Say) -> Deployed:
    """Remove the images of other versions, which nobody will want back: this one has answered a photo."""
    for image in _images(wanted) - {_image(wanted)}:
        say(f"removing image {image}")
        _docker(wanted, "rmi", image)
    return status(wanted, say)


def status(wanted: Wanted, say: Say) -> Deployed:
    """Look at the container; without one, at the image, then at the context.

    Raises:
        InputError: there is none of them.
    """
    missing = _why_no_engine()
    container = None if missing else _container(wanted)
    if container:
        if container.state == "running" and _answers(container.port):
            return _running(container)
        state = "running, does not answer" if container.state == "running" else container.state
        return Deployed(state, detail=f"{container.model_uri}; its lines: docker logs {wanted.name}")
    if not missing and (images := _images(wanted)):
        return Deployed("built image", detail=f"{', '.join(sorted(images))}; run it: {wanted.command('deploy')}")
    if found := model_in(wanted.folder):
        return Deployed(
            "context made, not built", detail=f"{found} in {wanted.folder}{f'; {missing}' if missing else ''}"
        )
    raise InputError(
        f"there is no {wanted.name}, nor a context in {wanted.folder}; make them: {wanted.command('deploy')}"
    )


def delete(wanted: Wanted, say: Say) -> bool:
    """Remove the container, its images and the context; whether there was any of them.

    Raises:
        InputError: the container of this name or the folder is somebody else's.
        DeployError: Docker refuses, or no engine answers that could say whether they are there.
    """
    require_ours(wanted.folder)
    there = wanted.folder.exists()
    if missing := _why_no_engine():
        say(f"{missing}: a container or an image that an engine keeps stays there")
    else:
        if container := _container(wanted):
            say(f"removing the container of {container.model_uri}")
            _docker(wanted, "rm", "--force", wanted.name)
        images = sorted(_images(wanted))
        for image in images:
            say(f"removing image {image}")
            _docker(wanted, "rmi", image)
        there = there or container is not None or bool(images)
    for folder in (wanted.folder, partial_of(wanted.folder)):
        shutil.rmtree(folder, ignore_errors=True)
    return there


def build_command(wanted: Wanted) -> list[str]:
    """The command that makes the image from the context."""
    return ["docker", "build", "--tag", _image(wanted), str(wanted.folder)]


def run_command(wanted: Wanted) -> list[str]:
    """The command that runs the image. It asks for no key, so only this machine can reach it."""
    published = f"{HOST}:{wanted.port}:{PORT}"
    return ["docker", "run", "--detach", "--name", wanted.name, "--publish", published, _image(wanted)]


def _image(wanted: Wanted) -> str:
    return f"{wanted.name}:{wanted.model[1]}"


def _only_context(wanted: Wanted, missing: str) -> Deployed:
    commands = " && ".join(shlex.join(command) for command in (build_command(wanted), run_command(wanted)))
    return Deployed("context made, not built", detail=f"{missing}; where one does: {commands}")


def _why_no_engine() -> str:
    """Docker's own word for why no engine answers; empty where one does."""
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no Docker engine answers here ({error})"
    return f"no Docker engine answers here ({_last(done.stderr, 1)})" if done.returncode else ""


def _docker(wanted: Wanted, *arguments: str) -> str:
    """What Docker says to a command, or its message as an error."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise _failed(wanted, f"docker {shlex.join(arguments)}", _last(done.stderr, 5))
    return done.stdout


def _failed(wanted: Wanted, doing: str, said: str) -> DeployError:
    """The error with what is there now: the context, images and container that are left."""
    try:
        left = status(wanted, lambda line: None)
        there = f"{left.state} ({left.detail})"
    except InputError:
        there = "nothing"
    return DeployError(f"{doing}: {said}\n  what is there now: {there}\n{wanted.next_commands()}")


def _images(wanted: Wanted) -> set[str]:
    """Our images of this name, of all versions."""
    ours = ("--filter", f"label={LABEL}", "--filter", f"reference={wanted.name}:*")
    return set(_docker(wanted, "images", *ours, "--format", "{{.Repository}}:{{.Tag}}").split())


def _image_is_there(wanted: Wanted) -> bool:
    return _image(wanted) in _images(wanted)


def _container(wanted: Wanted) -> _Container | None:
    """The container of this name.

    Raises:
        InputError: it is not ours.
    """
    listed = _docker(wanted, "ps", "--all", "--filter", f"name=^/{wanted.name}$", "--quiet").strip()
    if not listed:
        return None
    facts: dict[str, Any] = json.loads(_docker(wanted, "inspect", listed))[0]
    model_uri = (facts["Config"]["Labels"] or {}).get(LABEL)
    if model_uri is None:
        raise InputError(
            f"name={wanted.name}: there is a container of this name that this step has not made; choose another"
        )
    bound = (facts["HostConfig"]["PortBindings"] or {}).get(f"{PORT}/tcp") or [{}]
    return _Container(facts["State"]["Status"], model_uri, int(bound[0].get("HostPort") or 0))


def _build(wanted: Wanted, say: Say, deadline: float) -> None:
    say(f"building image {_image(wanted)}: the first time takes minutes, since it installs TensorFlow")
    lines: list[str] = []
    process = subprocess.Popen(
        build_command(wanted), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    timer = Timer(max(deadline - time.monotonic(), 0.0), process.kill)
    timer.start()
    with process:
        try:
            for line in process.stdout or ():
                lines.append(line)
                if STEP.match(line):
                    say(f"  {line.strip()[:120]}")
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    if process.returncode:
        if time.monotonic() >= deadline:
            raise _failed(wanted, "docker build", f"the image was not built within timeout={wanted.timeout:g} seconds")
        said = f"{_last(''.join(lines), 10)}\n  all its lines:  {shlex.join(build_command(wanted))}"
        raise _failed(wanted, "docker build", said)


def _run(wanted: Wanted, say: Say) -> None:
    say(f"running {_image(wanted)} as {wanted.name}, at port {wanted.port} of this machine")
    done = subprocess.run(run_command(wanted), capture_output=True, text=True, check=False)
    if done.returncode:
        # Docker leaves a container that could not be started, for example at a port that is taken.
        subprocess.run(["docker", "rm", "--force", wanted.name], capture_output=True, check=False)
        raise _failed(wanted, "docker run", _last(done.stderr, 5))


def _wait(wanted: Wanted, say: Say, deadline: float) -> None:
    say("waiting until it answers")
    while not _answers(wanted.port):
        container = _container(wanted)
        if container is None or container.state != "running":
            said = f"the container has ended: {_logs(wanted)}" if container else "the container was removed"
            raise _failed(wanted, "docker run", said)
        if time.monotonic() > deadline:
            said = f"no answer within timeout={wanted.timeout:g} seconds: {_logs(wanted)}"
            raise _failed(wanted, "docker run", said)
        time.sleep(0.5)


def _logs(wanted: Wanted) -> str:
    done = subprocess.run(["docker", "logs", "--tail", "5", wanted.name], capture_output=True, text=True, check=False)
    return _last(done.stdout + done.stderr, 5)


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://{HOST}:{port}/ping", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def _running(container: _Container) -> Deployed:
    return Deployed("running", f"http://{HOST}:{container.port}/invocations", detail=container.model_uri)


def _last(text: str, lines: int) -> str:
    """The last lines that are not empty, in one."""
    return " ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:]) or "no message"
