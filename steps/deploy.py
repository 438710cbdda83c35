"""Deploy a registered classifier, have it answer a photo, look at it, move an online endpoint's traffic, or delete it."""

from collections.abc import Callable
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from carmodel.deploy import docker, local, online, webservice
from carmodel.deploy.smoke import drawn_car, smoke
from carmodel.deploy.wanted import SETTINGS, Deployed, DeployError, Say, Wanted
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from carmodel.serving.registry import version_for_alias
from carmodel.tracking.digests import ROOT
from carmodel.tracking.runs import StepRun
from steps.command import run_step

TARGETS = {
    "local": local,
    "docker": docker,
    "aci": webservice,
    "aks": webservice,
    "online": online,
    "kubernetes-online": online,
}


def work(settings: Deploy, step: StepRun) -> None:
    """Do what `action` says, and leave the deployment's state in the run's tags."""
    photo = photo_of(settings.photo)
    wanted = wanted_of(settings)
    try:
        if settings.action == "delete":
            there = TARGETS[settings.target].delete(wanted, say)
            step.summarise(
                f"{settings.target} {settings.name}: {'deleted' if there else 'there was none of this name'}"
            )
            step.next = ""
            return
        deployed = ACTIONS[settings.action](wanted, say, photo)
    except (KeyboardInterrupt, SystemExit):
        if settings.action != "status":
            say(f"interrupted: what was begun may go on\n{wanted.next_commands()}")
        raise
    step.next = wanted.command("status")
    mlflow.set_tags({"carmodel.state": deployed.state, "carmodel.address": deployed.address})
    where = deployed.address or "no address yet"
    step.summarise(f"{settings.target} {settings.name}: {deployed.state}, {where}; {deployed.detail}")


def deploy(wanted: Wanted, say: Say, photo: bytes) -> Deployed:
    """Create or update it; once it has answered a photo, share the requests with it or drop what it replaces.

    Raises:
        DeployError: with the command that leads back to the version before, where this one took its place.
    """
    deployed = TARGETS[wanted.target].deploy(wanted, say)
    if not deployed.address:
        return deployed
    try:
        say("sending a photo")
        say(smoke(deployed, photo))
    except DeployError as error:
        costs = "" if wanted.target in ("local", "docker") else "  it is there, and may cost money\n"
        raise DeployError(f"{error}\n{costs}{deployed.back}{wanted.next_commands()}") from None
    return TARGETS[wanted.target].release(wanted, say)


def status(wanted: Wanted, say: Say, photo: bytes) -> Deployed:
    """Look at it, and have it answer a photo where it can."""
    deployed = TARGETS[wanted.target].status(wanted, say)
    if not deployed.address:
        return deployed
    try:
        say(smoke(deployed, photo))
    except DeployError as error:
        return deployed._replace(detail=f"{deployed.detail}; {error}")
    return deployed


ACTIONS: dict[str, Callable[[Wanted, Say, bytes], Deployed]] = {
    "deploy": deploy,
    "status": status,
    "promote": lambda wanted, say, _: online.promote(wanted, say),
    "rollback": lambda wanted, say, _: online.rollback(wanted, say),
}


def say(line: str) -> None:
    """Show what goes on."""
    print(f"deploy: {line}", flush=True)


def wanted_of(settings: Deploy) -> Wanted:
    """What the parameters ask for, checked as far as that is possible without the service."""
    file = settings.settings_file or SETTINGS.get(settings.target, "")
    if file and not (ROOT / file).is_file():
        raise InputError(f"settings_file={file!r}: no such file; leave it empty for {SETTINGS.get(settings.target)}")
    uri = settings.model_uri
    if settings.action == "deploy":
        if not uri:
            raise InputError(
                "deploy needs model_uri=models:/NAME/VERSION or models:/NAME@ALIAS; package_pyfunc prints it"
            )
        uri = version_of(uri)
    return Wanted(
        target=settings.target,
        name=settings.name,
        model_uri=uri,
        settings_file=ROOT / file,
        folder=Path(settings.folder).resolve() / f"{settings.target}-{settings.name}",
        port=settings.port,
        traffic=settings.traffic,
        timeout=settings.timeout,
    )


def version_of(uri: str) -> str:
    """The version that a registered model's address means now, ``models:/NAME/VERSION``.

    Raises:
        InputError: there is no such model, version or alias.
    """
    client, name = mlflow.MlflowClient(), uri.removeprefix("models:/")
    try:
        if "@" in name:
            name, alias = name.split("@")
            if (version := version_for_alias(client, name, alias)) is None:
                raise InputError(f"model_uri={uri!r}: no version of {name} is called {alias}")
            return f"models:/{name}/{version.version}"
        client.get_model_version(*name.split("/"))
    except MlflowException as error:
        if error.get_http_status_code() not in (400, 404):  # the registry can't be asked
            raise
        raise InputError(f"model_uri={uri!r}: {error.message}; package_pyfunc registers versions") from None
    return uri


def photo_of(file: str) -> bytes:
    """The smoke test's photo: the user's, or a drawn car."""
    try:
        return Path(file).expanduser().read_bytes() if file else drawn_car()
    except OSError as error:
        raise InputError(f"photo={file!r} can't be read: {error.strerror}") from None


if __name__ == "__main__":
    run_step("deploy", Deploy, work)
