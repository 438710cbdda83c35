"""A container: MLflow's build context of the model, built and run where a Docker engine answers.

``mlflow models generate-dockerfile`` (https://mlflow.org/docs/latest/ml/deployment/) makes the context. MLflow's server in the
container asks for no key: put a proxy that does in front of it before strangers can reach it.
"""

import json
import shutil
import subprocess
import sys
import time

import requests

from carmodel.errors import InputError
from carmodel.serving.deployment.wanted import Deployed, DeployError, Say, Wanted
from carmodel.serving.server import HOST, require_free

MODEL = "carmodel.model"
"""Label of image and container: the version inside."""


WITHOUT_ROOT = """
# The server needs no root.
RUN useradd --create-home serving && chown -R serving /var/log/nginx /var/lib/nginx
USER serving
"""


def deploy(wanted: Wanted, say: Say) -> Deployed:
    """Make the build context; where there is a Docker engine, build the image and run it."""
    _make_context(wanted, say)
    if not engine():
        return Deployed(
            "context made, not built",
            detail=f"no Docker engine answers here; where one does: {' '.join(_build(wanted))} && {' '.join(_run(wanted))}",
        )
    there = _state(wanted)
    if there and not _label(wanted):
        raise InputError(f"there is another container called {wanted.name}, not made by this step; choose another name")
    if _label(wanted) == wanted.model_uri and _answers(wanted):
        say(f"container {wanted.name} serves {wanted.model_uri} already")
        return _deployed(wanted)
    if not (there and _answers(wanted)):
        require_free(HOST, wanted.port)
    say(f"building image {_image(wanted)}")
    _docker(_build(wanted), wanted, "building the image")
    if there:
        _docker(["docker", "rm", "--force", wanted.name], wanted, "removing the old container")
    say(f"starting container {wanted.name}")
    _docker(_run(wanted), wanted, "starting the container")
    deadline = time.monotonic() + wanted.timeout
    while not _answers(wanted):
        if time.monotonic() > deadline or _state(wanted) != "running":
            lines = _docker(["docker", "logs", "--tail", "5", wanted.name], wanted, "reading its log")
            raise DeployError(
                f"container {wanted.name} is {_state(wanted)} and does not answer: {' '.join(lines.split())[-500:]}\n"
                f"  all its lines: docker logs {wanted.name}\n  to clean up: {wanted.command('delete')}"
            )
        time.sleep(1)
    return _deployed(wanted)


def status(wanted: Wanted, say: Say) -> Deployed:
    """Look whether the container answers; without an engine, whether there is a context."""
    if not (kept := wanted.folder / "model.json").is_file():
        raise InputError(f"there is no container {wanted.name} of {wanted.folder.parent}; make one with action=deploy")
    uri = json.loads(kept.read_text())["model_uri"]
    if not engine():
        return Deployed("context made, not built", detail=f"{uri} in {wanted.folder}; no Docker engine answers here")
    return (
        _deployed(wanted)
        if _answers(wanted)
        else Deployed(_state(wanted) or "not there", detail=f"see docker logs {wanted.name}")
    )


def delete(wanted: Wanted, say: Say) -> None:
    """Remove container, image and context."""
    if engine():
        if _label(wanted):
            _docker(["docker", "rm", "--force", wanted.name], wanted, "removing the container")
        ours = ["docker", "images", "--quiet", "--filter", f"label={MODEL}", wanted.name]
        if images := _docker(ours, wanted, "listing its images").split():
            _docker(["docker", "rmi", "--force", *set(images)], wanted, "removing its images")
    say(f"removing {wanted.folder}")
    shutil.rmtree(wanted.folder, ignore_errors=True)


def engine() -> bool:
    """Whether a Docker engine answers."""
    if not shutil.which("docker"):
        return False
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _make_context(wanted: Wanted, say: Say) -> None:
    """The context of the wanted version, made beside and renamed; one that is there already stays."""
    kept = wanted.folder / "model.json"
    if kept.is_file() and json.loads(kept.read_text())["model_uri"] == wanted.model_uri:
        say(f"{wanted.folder} holds {wanted.model_uri} already")
        return
    say(f"making the build context of {wanted.model_uri} in {wanted.folder}")
    unfinished = wanted.folder.with_name(f".{wanted.folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "mlflow", "models", "generate-dockerfile", "--model-uri", wanted.model_uri]
    # One Python in the image, with the model's packages: no second environment inside.
    made = subprocess.run(
        [*command, "--output-directory", str(unfinished), "--env-manager", "local"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise DeployError(f"mlflow models generate-dockerfile: {made.stderr.strip().splitlines()[-1]}")
    with (unfinished / "Dockerfile").open("a") as dockerfile:
        dockerfile.write(WITHOUT_ROOT)
    (unfinished / "model.json").write_text(json.dumps({"model_uri": wanted.model_uri}))
    shutil.rmtree(wanted.folder, ignore_errors=True)
    unfinished.rename(wanted.folder)


def _build(wanted: Wanted) -> list[str]:
    label = f"{MODEL}={wanted.model_uri}"
    return ["docker", "build", "--tag", _image(wanted), "--label", label, str(wanted.folder)]


def _run(wanted: Wanted) -> list[str]:
    publish = f"{HOST}:{wanted.port}:8080"
    # One server process: the classifier keeps all cores busy by itself, and each process holds the network in memory.
    one = ["--env", "MLFLOW_MODELS_WORKERS=1"]
    return ["docker", "run", "--detach", "--name", wanted.name, "--publish", publish, *one, _image(wanted)]


def _image(wanted: Wanted) -> str:
    return f"{wanted.name}:{wanted.model[1]}"


def _docker(command: list[str], wanted: Wanted, doing: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=wanted.timeout)
    except subprocess.TimeoutExpired:
        raise DeployError(f"{doing}: not done after timeout={wanted.timeout:g} seconds: {' '.join(command)}") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-500:]
        raise DeployError(
            f"{doing}: {said}\n  the command: {' '.join(command)}\n  to clean up: {wanted.command('delete')}"
        )
    return done.stdout + done.stderr


def _label(wanted: Wanted) -> str:
    return _inspect(wanted, f'{{{{ index .Config.Labels "{MODEL}" }}}}')


def _state(wanted: Wanted) -> str:
    return _inspect(wanted, "{{ .State.Status }}")


def _inspect(wanted: Wanted, what: str) -> str:
    command = ["docker", "inspect", "--type", "container", "--format", what, wanted.name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _answers(wanted: Wanted) -> bool:
    try:
        return requests.get(f"http://{HOST}:{wanted.port}/ping", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def _deployed(wanted: Wanted) -> Deployed:
    return Deployed("running", f"http://{HOST}:{wanted.port}/invocations", detail=f"container {wanted.name}")
