"""A client of online endpoints in a process of its own: its variables are those of its test, and nothing of it stays."""

import multiprocessing
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

# Importing the SDK takes seconds: once for all tests.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["azure.ai.ml", "azure.identity", "carmodel.deploy.online", "tests.cloud.online_client"])


def run(wanted: dict[str, Any], actions: tuple[str, ...], uri: str, environment: dict[str, str]) -> tuple[int, str]:
    """Do the actions in turn and return the exit code and what was said.

    Args:
        wanted: of `carmodel.deploy.wanted.Wanted`.
        actions: names of functions of `carmodel.deploy.online`, or smoke; ``deploy version=2 traffic=0`` changes
            what is wanted from then on.
        uri: tracking URI.
        environment: all variables of the process.
    """
    with tempfile.NamedTemporaryFile("r") as said:
        process = CONTEXT.Process(target=act, args=(wanted, actions, uri, environment, said.name))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(said.read())
        return process.exitcode, said.read()


def act(wanted: dict[str, Any], actions: tuple[str, ...], uri: str, environment: dict[str, str], file: str) -> None:
    """What the process does."""
    os.environ.clear()
    os.environ.update(environment)
    with open(file, "w", buffering=1) as sys.stdout:  # noqa: PTH123
        sys.stderr = sys.stdout
        try:
            _act(wanted, actions, uri)
        except BaseException:
            traceback.print_exc()
            raise


def _act(wanted: dict[str, Any], actions: tuple[str, ...], uri: str) -> None:
    import mlflow

    from carmodel.deploy import online
    from carmodel.deploy.smoke import drawn_car, smoke
    from carmodel.deploy.wanted import SETTINGS, Deployed, Wanted
    from carmodel.errors import InputError

    mlflow.set_tracking_uri(uri)
    settings = Path(wanted.get("settings_file", SETTINGS[wanted["target"]])).resolve()
    asked = Wanted(**wanted | {"settings_file": settings, "folder": Path()})
    deployed = Deployed("")
    for action, *changes in map(str.split, actions):
        for name, value in (change.split("=") for change in changes):
            asked = asked._replace(
                **{"model_uri": f"models:/cars/{value}"} if name == "version" else {name: int(value)}
            )
        try:
            if action == "smoke":
                print(smoke(deployed, drawn_car()))
            else:
                deployed = getattr(online, action)(asked, print)
                print(action, "->", deployed)
        except InputError as error:
            print(f"{action}: {error}")
            os._exit(1)
