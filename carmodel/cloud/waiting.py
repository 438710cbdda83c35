"""Waiting for a step on another machine: progress, where to look, why it failed; an interrupt cancels it."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from azure.core.exceptions import ServiceRequestError, ServiceResponseError
from mlflow.exceptions import ExecutionException, MlflowException

from carmodel.service_errors import without_secrets

# Seconds between questions, at first and at most; and for how long a service may not answer while its job runs on.
FIRST, LONGEST, PATIENCE = 1.0, 30.0, 600.0


class State(NamedTuple):
    """What a service says of a job: its own word, whether it has ended and ended well, and why not."""

    word: str
    ended: bool = False
    good: bool = False
    message: str = ""


@dataclass(frozen=True)
class Remote:
    """A submitted step.

    Attributes:
        run_id: its MLflow run.
        job: what the service calls it, for its own tools.
        page: where people look.
        state: asks the service.
        cancel: ends it there.
    """

    run_id: str
    job: str
    page: str
    state: Callable[[], State]
    cancel: Callable[[], None]


def wait(step: str, remote: Remote) -> None:
    """Wait until the step has ended, saying each change of its state.

    Raises:
        ExecutionException: it has failed or was cancelled, with the service's message.
    """
    print(f"main: {step} is {remote.job}: {remote.page}", flush=True)
    try:
        state = _follow(step, remote)
    except (KeyboardInterrupt, SystemExit):
        _cancel(step, remote)
        raise
    if not state.good:
        said = without_secrets(" ".join(state.message.split())) or "the service gives no reason"
        raise ExecutionException(f"{step} ended as {state.word} on {remote.job}: {said}\n  look at {remote.page}")


def _follow(step: str, remote: Remote) -> State:
    began = asked = time.monotonic()
    word, pause = "", FIRST
    while True:
        try:
            state = remote.state()
        except Exception as error:
            if not _may_pass(error) or time.monotonic() - asked > PATIENCE:
                raise ExecutionException(
                    f"{step}: {remote.job} can't be watched and may be still running: {without_secrets(error)}\n"
                    f"  look at {remote.page}"
                ) from error
            state = State(f"no answer ({type(error).__name__}), asking again")
        else:
            asked = time.monotonic()
        if state.word != word:
            word = state.word
            print(f"main: {step}: {word} after {time.monotonic() - began:.0f} s", flush=True)
        if state.ended:
            return state
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST)


def _may_pass(error: Exception) -> bool:
    """Whether a service that answers so, after the client's own retries, may answer again while its job runs on."""
    status = error.get_http_status_code() if isinstance(error, MlflowException) else getattr(error, "status_code", None)
    unreachable = isinstance(error, (OSError, ServiceRequestError, ServiceResponseError))
    return unreachable or status == 429 or (status or 0) >= 500


def _cancel(step: str, remote: Remote) -> None:
    """Cancel, whatever other signal comes meanwhile: MLflow ends an interrupted `main` twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        remote.cancel()
        print(f"\nmain: {step}: cancelled {remote.job}", flush=True)
    except Exception as error:
        why = without_secrets(error)
        print(
            f"\nmain: {step}: {remote.job} could NOT be cancelled and goes on: {why}\n  end it at {remote.page}",
            flush=True,
        )
