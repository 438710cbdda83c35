"""Delete a run as soon as it has ended: ``python -m carmodel.tracking.discard RUN_ID``.

`mlflow run` ends the run that it opened after the step has ended, and fails with a traceback if the run is deleted then.
"""

import os
import subprocess
import sys
import time

import mlflow

from carmodel.tracking.digests import ROOT

WAIT = 600.0
"""Longest time in seconds until `mlflow run` has ended the run."""

_started: list[subprocess.Popen[bytes]] = []  # Python warns when it forgets a process that still runs


def discard_later(run_id: str) -> None:
    """Delete a run after it has ended, in a process that lives longer than this one."""
    command = [sys.executable, "-m", "carmodel.tracking.discard", run_id]
    # Other users can read the arguments of a process, and the URI may contain a password.
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    _started.append(process)


def discard_ended(run_id: str, wait: float = WAIT) -> None:
    """Wait for the end of a run, and delete it."""
    client, deadline = mlflow.MlflowClient(), time.monotonic() + wait
    while client.get_run(run_id).info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    client.delete_run(run_id)


if __name__ == "__main__":
    discard_ended(run_id=sys.argv[1])
