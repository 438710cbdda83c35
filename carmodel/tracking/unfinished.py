"""Find unfinished runs: end those whose process was killed, and find a training that can be resumed."""

import os
from contextlib import suppress

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from carmodel.tracking.lineage import PROCESS_TAG, REMOTE_TAG, STARTED_TAG
from carmodel.tracking.processes import any_process_has, has_died, identify, is_alive

CHECKPOINTS = "checkpoints"
"""Directory of a training's checkpoints among the artifacts of its run."""


def process_tags() -> dict[str, str]:
    """Return a tag that identifies this process, so that a later command can tell whether it was killed."""
    identity = identify(os.getpid())
    return {PROCESS_TAG: identity} if identity else {}


def end_dead_runs(experiment_id: str) -> list[str]:
    """Set the RUNNING runs of an experiment whose process was killed on this machine to FAILED, and return their ids."""
    client = mlflow.MlflowClient()
    running = client.search_runs([experiment_id], "attributes.status = 'RUNNING'")
    dead = [run.info.run_id for run in running if _has_died(run)]
    for run_id in dead:
        client.set_terminated(run_id, "FAILED")
    return dead


def find_running(key: str, experiment_id: str) -> str | None:
    """Return the id of a run with this cache key that a process of this machine works on, or None.

    Such a step goes on after its parent was killed.
    """
    runs = mlflow.MlflowClient().search_runs([experiment_id], f"tags.{STARTED_TAG} = '{key}'")
    running = (run for run in runs if run.info.status == "RUNNING" and is_alive(run.data.tags.get(PROCESS_TAG, "")))
    return next((run.info.run_id for run in running), None)


def find_unfinished(key: str, experiment_id: str) -> str | None:
    """Return the id of the newest training that stopped after a checkpoint and has this cache key, or None."""
    runs = mlflow.MlflowClient().search_runs([experiment_id], f"tags.{STARTED_TAG} = '{key}'")  # newest first
    stopped = (run.info.run_id for run in runs if run.info.status in ("FAILED", "KILLED"))
    return next((run_id for run_id in stopped if has_checkpoint(run_id)), None)


def has_checkpoint(run_id: str) -> bool:
    """Return whether a run has logged a checkpoint."""
    with suppress(MlflowException, OSError):
        return bool(mlflow.MlflowClient().list_artifacts(run_id, CHECKPOINTS))
    return False


def _has_died(run: Run) -> bool:
    if identity := run.data.tags.get(PROCESS_TAG):
        return has_died(identity)
    if REMOTE_TAG in run.data.tags:
        return False
    # A step can be killed before it sets the tag. Then its main has died, too, and no process works on the run.
    if not (parent := run.data.tags.get(MLFLOW_PARENT_RUN_ID)):
        return False
    main_died = has_died(mlflow.get_run(parent).data.tags.get(PROCESS_TAG, ""))
    return main_died and not any_process_has("MLFLOW_RUN_ID", run.info.run_id)
