"""A client of online endpoints in a process of its own: its variables are those of its test, and nothing of it stays."""

import multiprocessing
import os
import sys
import tempfile
import traceback
from typing import Any

# Importing the SDK takes seconds: once for all tests.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["azure.ai.ml", "azure.identity", "carmodel.deploy.online", "tests.cloud.online_client"])


def run(settings: dict[str, Any], actions: tuple[str, ...], uri: str, environment: dict[str, str]) -> tuple[int, str]:
    """Do the actions in turn and return the exit code and what was said.

    Args:
        settings: values of `carmodel.parameters.Deploy`.
        actions: names of functions of `carmodel.deploy.online`, or smoke; ``deploy version=2 traffic=0`` changes
            the settings from then on.
        uri: tracking URI.
        environment: all variables of the process.
    """
    with tempfile.NamedTemporaryFile("r") as said:
        process = CONTEXT.Process(target=act, args=(settings, actions, uri, environment, said.name))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(said.read())
        return process.exitcode, said.read()


def act(settings: dict[str, Any], actions: tuple[str, ...], uri: str, environment: dict[str, str], file: str) -> None:
    """What the process does."""
    os.environ.clear()
    os.environ.update(environment)
    with open(file, "w", buffering=1) as sys.stdout:  # noqa: PTH123
        sys.stderr = sys.stdout
        try:
            _act(settings, actions, uri)
        except BaseException:
            traceback.print_exc()
            raise


def _act(settings: dict[str, Any], actions: tuple[str, ...], uri: str) -> None:
    import mlflow

    from carmodel.deploy import online
    from carmodel.deploy.smoke import drawn_car, smoke_test
    from carmodel.deploy.status import Status
    from carmodel.errors import InputError
    from carmodel.parameters import Deploy

    mlflow.set_tracking_uri(uri)
    status = Status("")
    for action, *changes in map(str.split, actions):
        for name, value in (change.split("=") for change in changes):
            settings |= {"model_uri": f"models:/cars/{value}"} if name == "version" else {name: value}
        try:
            if action == "smoke":
                print(smoke_test(status, drawn_car()))
            else:
                status = getattr(online, action)(Deploy(**settings))
                print(action, "->", status)
        except InputError as error:
            print(f"{action}: {error}")
            os._exit(1)
