"""Wait for a step on another machine, print its progress and explain its failure, or cancel it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mlflow.exceptions import ExecutionException

from carmodel.service_errors import is_transient, without_secrets

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two requests for the state of a job, at first and at most."""
PATIENCE = 600.0
"""Seconds for which a service may fail to answer while its job goes on."""


class StateUnknownError(ExecutionException):
    """The service does not tell the state of a job, which may still be running."""


class JobState(NamedTuple):
    """What a service reports about a job.

    Attributes:
        name: the state, as the service names it.
        ended: whether the job has ended.
        succeeded: whether it has ended without an error.
        message: the service's reason for a failure, or empty.
    """

    name: str
    ended: bool = False
    succeeded: bool = False
    message: str = ""


@dataclass(frozen=True)
class RemoteStep:
    """A step that was submitted to a service.

    Attributes:
        run_id: its MLflow run.
        job: its name in the service, for the service's own tools.
        page: URL of its page.
        state: requests its state from the service.
        cancel: cancels it in the service.
    """

    run_id: str
    job: str
    page: str
    state: Callable[[], JobState]
    cancel: Callable[[], None]


def wait(step: str, remote: RemoteStep) -> None:
    """Wait until the step has ended, and print every change of its state.

    Raises:
        ExecutionException: it failed or was cancelled, with the service's message.
        StateUnknownError: the service refuses to tell its state, or has not answered for ten minutes.
    """
    print(f"main: {step} is {remote.job}: {remote.page}", flush=True)
    state = _wait_until_ended(step, remote)
    if not state.succeeded:
        message = without_secrets(" ".join(state.message.split())) or "the service gives no reason"
        raise ExecutionException(f"{step} ended as {state.name} on {remote.job}: {message}\n  its page: {remote.page}")


def cancel(step: str, remote: RemoteStep) -> None:
    """Cancel the step, and print whether that worked."""
    try:
        remote.cancel()
        print(f"\nmain: {step}: cancelled {remote.job}", flush=True)
    except Exception as error:
        reason = without_secrets(error)
        print(
            f"\nmain: {step}: {remote.job} could NOT be cancelled and is still running: {reason}\n"
            f"  cancel it at {remote.page}",
            flush=True,
        )


def _wait_until_ended(step: str, remote: RemoteStep) -> JobState:
    began = last_answer = time.monotonic()
    name, pause = "", FIRST_PAUSE
    while True:
        try:
            state = remote.state()
        except Exception as error:
            if not is_transient(error) or time.monotonic() - last_answer > PATIENCE:
                raise StateUnknownError(
                    f"{step}: the state of {remote.job} is unknown, and it may still be running: {without_secrets(error)}\n"
                    f"  its page: {remote.page}"
                ) from error
            state = JobState(f"no answer ({type(error).__name__}), trying again")
        else:
            last_answer = time.monotonic()
        if state.name != name:
            name = state.name
            print(f"main: {step}: {name} after {time.monotonic() - began:.0f} s", flush=True)
        if state.ended:
            return state
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE)
