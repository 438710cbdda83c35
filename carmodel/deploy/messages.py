"""What a deployment prints: its progress, and the commands that inspect, resume, undo or delete it."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carmodel.deploy.status import DeployError
from carmodel.errors import InputError
from carmodel.parameters import SETTINGS_FILES, Deploy
from carmodel.service_errors import client_errors, explain

_DEFAULTS = Deploy.model_validate({})


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(f"deploy: {line}", flush=True)


def command(settings: Deploy, action: str, model_uri: str = "") -> str:
    """Return the command that does `action` to the same deployment. It repeats only what differs from the defaults.

    Args:
        settings: parameters of the deployment.
        action: one of the actions of `Deploy`.
        model_uri: the version to deploy, if it is not the one in `settings`.
    """
    arguments = {"target": settings.target, "name": settings.name, "action": action}
    local = settings.target in ("local", "docker")
    if settings.target == "local" and Path(settings.folder).resolve() != Path(_DEFAULTS.folder).resolve():
        arguments["folder"] = str(Path(settings.folder).resolve())
    if action == "deploy":
        arguments["model_uri"] = model_uri or settings.model_uri or "models:/NAME/VERSION"
        if local and settings.port != _DEFAULTS.port:
            arguments["port"] = str(settings.port)
        if settings.settings_file not in ("", SETTINGS_FILES.get(settings.target)):
            arguments["settings_file"] = settings.settings_file
    words = " ".join(f"-P {name}={shlex.quote(value)}" for name, value in arguments.items())
    return f"mlflow run . -e deploy --env-manager local {words}"


def next_commands(settings: Deploy) -> str:
    """Return the last lines of an error: how to inspect, resume or delete the deployment."""
    deleted = "the endpoint with all its versions" if settings.target.endswith("online") else "it"
    return (
        f"  to see its status:  {command(settings, 'status')}\n"
        f"  to resume, run this again; to delete {deleted}:  {command(settings, 'delete')}"
    )


def undo_line(settings: Deploy, previous_uri: str, port: int = 0) -> str:
    """Return a line with the command that restores the previous version. Empty if there was none, or if it is this one.

    Args:
        settings: parameters of the deployment.
        previous_uri: the version that was deployed before, or empty.
        port: of the previous version, if it had another one.
    """
    if previous_uri in ("", settings.model_uri):
        return ""
    previous = settings.model_copy(update={"port": port or settings.port})
    return f"  to restore the previous version:  {command(previous, 'deploy', previous_uri)}\n"


@contextmanager
def client_errors_explained(settings: Deploy, doing: str) -> Iterator[None]:
    """Turn what a client raises in this block into a `DeployError`.

    Args:
        settings: parameters of the deployment.
        doing: what the block does, such as "creating endpoint cars".
    """
    try:
        yield
    except InputError:
        raise
    except client_errors() as error:
        raise DeployError(f"{explain(error, doing)}\n{next_commands(settings)}") from error
