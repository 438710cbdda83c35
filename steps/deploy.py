"""Deploy a registered classifier and test it with one photo; show its status, promote, roll back or delete it."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import mlflow
from mlflow.exceptions import MlflowException

from carmodel.deploy.messages import command, next_commands, say
from carmodel.deploy.smoke import drawn_car, smoke_test
from carmodel.deploy.status import DeployError, Status
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from carmodel.serving.registry import version_for_alias
from carmodel.tracking.runs import StepRun
from steps.command import run_step

MODULES = {
    "local": "local",
    "docker": "docker",
    "aci": "webservice",
    "aks": "webservice",
    "online": "online",
    "kubernetes-online": "online",
}


def work(settings: Deploy, step: StepRun) -> None:
    """Do what `action` names, and keep the status of the deployment in the tags of the run."""
    photo = read_photo(settings.photo)
    if settings.action == "deploy":
        settings = settings.model_copy(update={"model_uri": resolve_version(settings.model_uri)})
    target = target_module(settings.target)
    name = f"{settings.target} {settings.name}"
    try:
        if settings.action == "delete":
            step.next = ""
            step.summarise(f"{name}: {'deleted' if target.delete(settings) else 'there is no deployment of this name'}")
            return
        status = run_action(target, settings, photo)
    except (KeyboardInterrupt, SystemExit):
        if settings.action != "status":
            say(f"interrupted: operations that were started may continue\n{next_commands(settings)}")
        raise
    step.next = command(settings, "status")
    mlflow.set_tags({"carmodel.state": status.state, "carmodel.address": status.url})
    step.summarise(f"{name}: {status.state}, {status.url or 'no URL yet'}; {status.detail}")


def run_action(target: ModuleType, settings: Deploy, photo: bytes) -> Status:
    """Deploy, promote, roll back or check the status, and return the status."""
    if settings.action == "deploy":
        return deploy_and_test(target, settings, photo)
    if settings.action == "status":
        return check_status(target, settings, photo)
    act: Callable[[Deploy], Status] = target.promote if settings.action == "promote" else target.rollback
    return act(settings)


def target_module(target: str) -> ModuleType:
    """Import the module of a target. Only the targets on Azure import its SDK, which takes seconds."""
    return import_module(f"carmodel.deploy.{MODULES[target]}")


def deploy_and_test(target: ModuleType, settings: Deploy, photo: bytes) -> Status:
    """Create or update the deployment. Once it has answered a photo, release it to clients.

    Raises:
        DeployError: with the command that restores the previous version, if this one has replaced it.
    """
    deployed: Status = target.deploy(settings)
    try:
        say("sending a photo")
        say(smoke_test(deployed, photo))
    except DeployError as error:
        costs = "" if settings.target in ("local", "docker") else "  it exists, and may cost money\n"
        raise DeployError(f"{error}\n{costs}{deployed.undo}{next_commands(settings)}") from None
    released: Status = target.release(settings)
    return released


def check_status(target: ModuleType, settings: Deploy, photo: bytes) -> Status:
    """Return the status, after a smoke test if there is a URL."""
    deployed: Status = target.status(settings)
    if not deployed.url:
        return deployed
    try:
        say(smoke_test(deployed, photo))
    except DeployError as error:
        return deployed._replace(detail=f"{deployed.detail}; {error}")
    return deployed


def resolve_version(uri: str) -> str:
    """Return ``models:/NAME/VERSION`` for the URI of a registered model with a version or an alias.

    Raises:
        InputError: the URI is empty, or there is no such model, version or alias.
    """
    if not uri:
        raise InputError("deploy needs model_uri=models:/NAME/VERSION or models:/NAME@ALIAS; package_pyfunc prints it")
    client, name = mlflow.MlflowClient(), uri.removeprefix("models:/")
    try:
        if "@" in name:
            name, alias = name.split("@")
            if (version := version_for_alias(client, name, alias)) is None:
                raise InputError(f"model_uri={uri!r}: no version of {name} has the alias {alias}")
            return f"models:/{name}/{version.version}"
        client.get_model_version(*name.split("/"))
    except MlflowException as error:
        if error.get_http_status_code() not in (400, 404):  # the registry did not answer
            raise
        raise InputError(f"model_uri={uri!r}: {error.message}; package_pyfunc registers versions") from None
    return uri


def read_photo(file: str) -> bytes:
    """Return the photo of the smoke test: the user's file, or a drawn car."""
    try:
        return Path(file).expanduser().read_bytes() if file else drawn_car()
    except OSError as error:
        raise InputError(f"photo={file!r} cannot be read: {error.strerror}") from None


if __name__ == "__main__":
    run_step("deploy", Deploy, work)
