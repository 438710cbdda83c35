"""MLflow's own server in a Docker container of this machine.

Each version has an image and a container. Both carry the URI of the model as a label, so a rerun creates only what is missing.
MLflow writes the Dockerfile (https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/). The rest goes through the
`docker` command (https://docs.docker.com/reference/cli/docker/).
"""

import json
import re
import shlex
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any, NamedTuple

from carmodel.deploy.docker_image import LABEL, SOURCE_LABEL, write_context
from carmodel.deploy.messages import client_errors_explained, command, next_commands, say, undo_line
from carmodel.deploy.status import DeployError, Status
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from carmodel.serving.registry import source_of
from carmodel.serving.scoring_server import HOST, answers, require_free

PORT = 8080
"""Port of MLflow's server inside the container."""
STEP = re.compile(r"Step \d+/\d+ : .+|#\d+ \[.+")
"""Docker's lines that begin a step of a build. The other lines come from apt and pip."""


class _Container(NamedTuple):
    """A container: its state as Docker names it, the URI and the source of its model, and its port on this machine."""

    state: str
    model_uri: str
    source: str
    port: int


def deploy(settings: Deploy) -> Status:
    """Build the image, run it and wait until it serves. Skip what is done already.

    Raises:
        InputError: there is no Docker engine, the port is taken, or another program owns a container of that name.
        DeployError: the build or the container fails, with Docker's message, the status and the next commands.
    """
    _require_engine()
    deadline = time.monotonic() + settings.timeout
    container, source = _find_container(settings), source_of(settings.model_uri)
    if container == _Container("running", settings.model_uri, source, settings.port) and answers(settings.port):
        say(f"{settings.name} already serves {settings.model_uri}")
        return _running(container)
    if container is None or container.port != settings.port:
        require_free(HOST, settings.port)
    if _image(settings) in _find_images(settings, source):
        say(f"image {_image(settings)} already exists")
    else:
        _build(settings, source, deadline)
    undo = undo_line(settings, container.model_uri, container.port) if container else ""
    if container:
        say(f"removing the container of {container.model_uri}\n{undo}".rstrip())
        _docker(settings, "rm", "--force", settings.name)
    try:
        _run(settings)
        _wait(settings, deadline)
    except DeployError as error:
        raise DeployError(f"{error}\n{undo}".rstrip()) from None
    return replace(status(settings), undo=undo)


def release(settings: Deploy) -> Status:
    """Remove the images of other versions, now that this version has answered a photo."""
    for image in _find_images(settings) - {_image(settings)}:
        say(f"removing image {image}")
        try:
            _query("rmi", image)
        except DeployError as error:  # the new version serves, so this is no failure
            say(str(error))
    return status(settings)


def status(settings: Deploy) -> Status:
    """Return the status of the container, or of the image if there is no container.

    Raises:
        InputError: there is neither, or no Docker engine.
    """
    _require_engine()
    if container := _find_container(settings):
        if container.state == "running" and answers(container.port):
            return _running(container)
        state = "running, does not answer" if container.state == "running" else container.state
        return Status(state, detail=f"{container.model_uri}; its log: docker logs {settings.name}")
    if images := _find_images(settings):
        return Status("image built", detail=f"{', '.join(sorted(images))}; run it: {command(settings, 'deploy')}")
    raise InputError(f"there is no container or image {settings.name}; create it: {command(settings, 'deploy')}")


def delete(settings: Deploy) -> bool:
    """Remove the container and its images. Return whether there were any.

    Raises:
        InputError: there is no Docker engine, or another program owns the container of this name.
        DeployError: Docker refuses.
    """
    _require_engine()
    if container := _find_container(settings):
        say(f"removing the container of {container.model_uri}")
        _docker(settings, "rm", "--force", settings.name)
    images = sorted(_find_images(settings))
    for image in images:
        say(f"removing image {image}")
        _docker(settings, "rmi", image)
    return container is not None or bool(images)


def _image(settings: Deploy) -> str:
    return f"{settings.name}:{settings.model_version[1]}"


def _require_engine() -> None:
    """Check that a Docker engine answers.

    Raises:
        InputError: none does, with Docker's message.
    """
    version = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        done = subprocess.run(version, capture_output=True, text=True, check=False, timeout=60)
        message = _last_lines(done.stderr, 1) if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        message = str(error)
    if message:
        raise InputError(
            f"target=docker needs a Docker engine, and none answers here: {message}\n"
            "  to write a build context for another machine: mlflow models generate-dockerfile --model-uri MODEL "
            "--output-directory FOLDER"
        )


def _docker(settings: Deploy, *arguments: str) -> str:
    """Run a Docker command and return its output.

    Raises:
        DeployError: it fails, with Docker's message, the present status and the next commands.
    """
    try:
        return _query(*arguments)
    except DeployError as error:
        raise _failed(settings, error) from None


def _query(*arguments: str) -> str:
    """Run a Docker command and return its output.

    Raises:
        DeployError: it fails, with Docker's message.
    """
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeployError(f"docker {shlex.join(arguments)}: {_last_lines(done.stderr, 5)}")
    return done.stdout


def _failed(settings: Deploy, problem: object) -> DeployError:
    """Return the error with the present status and the next commands."""
    try:
        left = status(settings)
        present = f"{left.state} ({left.detail})"
    except InputError:
        present = "nothing"
    except DeployError as error:
        present = f"unknown ({error})"
    return DeployError(f"{problem}\n  present status: {present}\n{next_commands(settings)}")


def _find_images(settings: Deploy, source: str = "") -> set[str]:
    """Return the images of this name that this project built, of one model or of all."""
    label = f"{SOURCE_LABEL}={source}" if source else LABEL
    ours = ("--filter", f"label={label}", "--filter", f"reference={settings.name}:*")
    return set(_query("images", *ours, "--format", "{{.Repository}}:{{.Tag}}").split())


def _find_container(settings: Deploy) -> _Container | None:
    """Return the container of this name.

    Raises:
        InputError: another program owns it.
    """
    container_id = _query("ps", "--all", "--filter", f"name=^/{settings.name}$", "--quiet").strip()
    if not container_id:
        return None
    facts: dict[str, Any] = json.loads(_query("inspect", container_id))[0]
    labels = facts["Config"]["Labels"] or {}
    if (model_uri := labels.get(LABEL)) is None:
        raise InputError(f"name={settings.name}: another program owns the container of this name; choose another name")
    bindings = (facts["HostConfig"]["PortBindings"] or {}).get(f"{PORT}/tcp") or [{}]
    port = int(bindings[0].get("HostPort") or 0)
    return _Container(facts["State"]["Status"], model_uri, labels.get(SOURCE_LABEL, ""), port)


def _build(settings: Deploy, source: str, deadline: float) -> None:
    """Build the image, and print the steps of the build.

    Raises:
        DeployError: the model cannot be downloaded, or the build fails or takes too long.
    """
    with TemporaryDirectory(prefix="carmodel-docker-") as scratch:
        context = Path(scratch, "context")
        try:
            with client_errors_explained(settings, f"downloading {settings.model_uri}"):
                write_context(settings.model_uri, source, context)
        except OSError as error:
            raise DeployError(f"cannot write the build context of {settings.model_uri}: {error}") from error
        say(f"building image {_image(settings)}: the first time takes minutes, because it installs packages")
        build = ["docker", "build", "--tag", _image(settings), str(context)]
        lines: list[str] = []
        process = subprocess.Popen(build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
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
        late = time.monotonic() >= deadline
        message = f"the image was not built within timeout={settings.timeout:g} seconds" if late else ""
        raise _failed(settings, f"docker build: {message or _last_lines(''.join(lines), 10)}")


def _run(settings: Deploy) -> None:
    """Start the container. Only this machine can reach its port, because MLflow's server asks for no key."""
    say(f"running {_image(settings)} as {settings.name}, at port {settings.port} of this machine")
    publish = f"{HOST}:{settings.port}:{PORT}"
    run = ["docker", "run", "--detach", "--name", settings.name, "--publish", publish, _image(settings)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        # Docker leaves a container that could not start, for example because its port is taken.
        subprocess.run(["docker", "rm", "--force", settings.name], capture_output=True, check=False)
        raise _failed(settings, f"docker run: {_last_lines(done.stderr, 5)}")


def _wait(settings: Deploy, deadline: float) -> None:
    """Wait until the container answers.

    Raises:
        DeployError: it has exited, or does not answer in time.
    """
    say("waiting for its first answer")
    while not answers(settings.port):
        container = _find_container(settings)
        if container is None:
            raise _failed(settings, "docker run: the container was removed")
        if container.state != "running":
            raise _failed(settings, f"docker run: the container has exited: {_container_log(settings)}")
        if time.monotonic() > deadline:
            late = f"no answer within timeout={settings.timeout:g} seconds"
            raise _failed(settings, f"docker run: {late}: {_container_log(settings)}")
        time.sleep(0.5)


def _container_log(settings: Deploy) -> str:
    logs = ["docker", "logs", "--tail", "5", settings.name]
    done = subprocess.run(logs, capture_output=True, text=True, check=False)
    return _last_lines(done.stdout + done.stderr, 5)


def _running(container: _Container) -> Status:
    return Status("running", f"http://{HOST}:{container.port}/invocations", detail=container.model_uri)


def _last_lines(text: str, count: int) -> str:
    """Return the last lines that are not empty, joined by blanks."""
    return " ".join([line.strip() for line in text.splitlines() if line.strip()][-count:]) or "no message"
