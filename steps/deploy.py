"""Deploy a registered classifier, have it answer a photo, look at it, move an online endpoint's traffic, or delete it."""

from collections.abc import Callable
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from carmodel.errors import InputError
from carmodel.parameters import Deploy
from carmodel.serving.deployment import docker, local, online, webservice
from carmodel.serving.deployment.smoke import drawn_car, smoke
from carmodel.serving.deployment.wanted import SETTINGS, Deployed, Say, Wanted
from carmodel.serving.registry import version_called
from carmodel.settings import require
from carmodel.tracking import ROOT, StepRun
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
    if settings.action == "delete":
        TARGETS[settings.target].delete(wanted, say)
        step.summarise(f"{settings.target} {settings.name}: deleted")
        return
    deployed = ACTIONS[settings.action](wanted, say, photo)
    mlflow.set_tags({"carmodel.state": deployed.state, "carmodel.address": deployed.address})
    where = deployed.address or "no address yet"
    step.summarise(f"{settings.target} {settings.name}: {deployed.state}, {where}; {deployed.detail}")


def deploy(wanted: Wanted, say: Say, photo: bytes) -> Deployed:
    """Create or update it; once it has answered a photo, let clients reach it."""
    deployed = TARGETS[wanted.target].deploy(wanted, say)
    if not deployed.address:
        return deployed
    say(smoke(deployed, photo))
    return online.release(wanted, say) if wanted.target.endswith("online") else deployed


def status(wanted: Wanted, say: Say, photo: bytes) -> Deployed:
    """Look at it, and have it answer a photo where it can."""
    deployed = TARGETS[wanted.target].status(wanted, say)
    if deployed.address:
        say(smoke(deployed, photo))
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
        uri = version_of(require("deploy", "model_uri", uri, "package_pyfunc"))
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
    """The version that a registered model's address means now, ``models:/NAME/VERSION``."""
    client, name = mlflow.MlflowClient(), uri.removeprefix("models:/")
    try:
        if "@" in name:
            name, alias = name.split("@")
            if (version := version_called(client, name, alias)) is None:
                raise InputError(f"model_uri={uri!r}: no version of {name} is called {alias}")
            return f"models:/{name}/{version.version}"
        client.get_model_version(*name.split("/"))
    except MlflowException as error:
        raise InputError(f"model_uri={uri!r}: {error.message}; package_pyfunc registers versions") from None
    return uri


def photo_of(file: str) -> bytes:
    """The smoke test's photo: the user's, or a drawn car."""
    try:
        return Path(file).expanduser().read_bytes() if file else drawn_car()
    except OSError as error:
        raise InputError(f"photo={file!r} can't be read: {error.strerror}") from None


if __name__ == "__main__":
    run_step("deploy", work)
