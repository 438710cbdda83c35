"""The actions of a deployment, the same for every target: deploy and test, promote, roll back, check the status."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from carmodel.deploy.messages import next_commands, say
from carmodel.deploy.smoke import drawn_car, smoke_test
from carmodel.deploy.status import DeployError, Status
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from carmodel.serving.registry import version_for_alias

MODULES = {
    "local": "local",
    "docker": "docker",
    "aci": "webservice",
    "aks": "webservice",
    "online": "online",
    "kubernetes-online": "online",
}


def target_module(target: str) -> ModuleType:
    """Import the module of a target. Only the targets on Azure import its SDK, which takes seconds."""
    return import_module(f"carmodel.deploy.{MODULES[target]}")


def run_action(settings: Deploy) -> Status | None:
    """Do what ``settings.action`` names.

    Returns:
        The status of the deployment. None after `delete` if there was no deployment of this name.

    Raises:
        InputError: the photo cannot be read, or there is no such version of the model.
        DeployError: the action failed.
    """
    photo = read_photo(settings.photo)
    target = target_module(settings.target)
    if settings.action == "delete":
        return Status("deleted") if target.delete(settings) else None
    if settings.action == "deploy":
        return deploy_and_test(target, settings, photo)
    if settings.action == "status":
        return check_status(target, settings, photo)
    act: Callable[[Deploy], Status] = target.promote if settings.action == "promote" else target.rollback
    return act(settings)


def deploy_and_test(target: ModuleType, settings: Deploy, photo: bytes) -> Status:
    """Create or update the deployment. Once it has answered a photo, release it to clients.

    Raises:
        DeployError: with the command that restores the previous version, if this one has replaced it.
    """
    settings = settings.model_copy(update={"model_uri": resolve_version(settings.model_uri)})
    deployed: Status = target.deploy(settings)
    try:
        say("sending a photo")
        say(smoke_test(deployed, photo))
    except DeployError as error:
        costs = "" if settings.target in ("local", "docker") else "  the deployment exists, and may cost money\n"
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
        return replace(deployed, detail=f"{deployed.detail}; {error}")
    return deployed


def resolve_version(uri: str) -> str:
    """Return ``models:/NAME/VERSION`` for the URI of a registered model with a version or an alias.

    Raises:
        InputError: the URI is empty, or there is no such model, version or alias.
    """
    if not uri:
        raise InputError("deploy needs model_uri=models:/NAME/VERSION or models:/NAME@ALIAS; package_pyfunc prints it")
    client, name = MlflowClient(), uri.removeprefix("models:/")
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
