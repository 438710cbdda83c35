"""The MLflow run of a step, and the outputs that it logs."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from carmodel.parameters import STEPS, Settings
from carmodel.tracking.artifacts import listing
from carmodel.tracking.cache import cache_key
from carmodel.tracking.digests import digest_of_path
from carmodel.tracking.lineage import KEY_TAG, LISTING_TAG, OUTPUTS_TAG, SUMMARY_TAG, what_next


def discard(run_id: str) -> None:
    """Delete a run in which nothing has happened, if the tracking service can."""
    client = mlflow.MlflowClient()
    with suppress(MlflowException):
        client.set_terminated(run_id, "KILLED")  # `mlflow run` would set a run that is RUNNING to FAILED
        client.delete_run(run_id)


@dataclass
class StepRun:
    """The open run of a step.

    Attributes:
        name: entry point.
        run_id: id of the MLflow run.
        folder: temporary directory, removed when the step ends.
        outputs: the outputs logged so far, ``{name: {"uri", "digest", "listing"}}``.
        next: for an entry point that is not part of main, the command to run next, or an empty string.
    """

    name: str
    run_id: str
    folder: Path
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    next: str = ""

    def summarise(self, text: str) -> None:
        """Set the line about the result in the table of main, and print it."""
        mlflow.set_tag(SUMMARY_TAG, text)
        print(f"{self.name}: {text}")

    def log_output(self, folder: Path, name: str) -> str:
        """Log a directory as the output `name` and return its ``runs:/`` URI."""
        mlflow.log_artifacts(str(folder), name)
        return self.add_output(name, f"runs:/{self.run_id}/{name}", digest_of_path(folder))

    def add_output(self, name: str, uri: str, digest: str = "") -> str:
        """Add an output that is already logged, such as a model. Without a digest, its contents must never change."""
        self.outputs[name] = {"uri": uri, "digest": digest or uri, "listing": listing(uri)}
        mlflow.set_tag(OUTPUTS_TAG, json.dumps(self.outputs))
        return uri


@contextmanager
def step_run(name: str, settings: Settings, recipe: str = "") -> Iterator[StepRun]:
    """Open the run that ``mlflow run`` created, or a new one. Log its parameters and, at the end, its duration.

    An exception sets the run to FAILED, so it is never reused.

    Args:
        name: entry point.
        settings: its parameters.
        recipe: the ``-P`` arguments that choose a recipe. They are part of the command for the next step.
    """
    began = time.perf_counter()
    key = cache_key(name, settings) if name in STEPS else ""  # other entry points are never reused
    with mlflow.start_run(run_name=name) as run, TemporaryDirectory(prefix=f"carmodel-{name}-") as folder:
        # `mlflow run` has logged the values of -P already, as typed ("1e-2"). MLflow refuses a second value for a parameter.
        logged = mlflow.get_run(run.info.run_id).data.params
        mlflow.log_params({k: v for k, v in settings.model_dump().items() if k not in logged})
        yield (step := StepRun(name, run.info.run_id, Path(folder)))
        mlflow.log_metric("seconds", time.perf_counter() - began)
        mlflow.set_tag(LISTING_TAG, listing(f"runs:/{step.run_id}/"))
        if key:  # last, because a run with a key counts as complete
            mlflow.set_tag(KEY_TAG, key)
        print(f"\n{name}: done in {time.perf_counter() - began:.0f} s, run {step.run_id}")
        for output, record in step.outputs.items():
            print(f"  {output:<12} {record['uri']}")
        following = f"{what_next(name, settings, step.outputs)} {recipe}" if name in STEPS else step.next
        if following and MLFLOW_PARENT_RUN_ID not in run.data.tags:  # main starts the next step itself
            print(f"  next:        {following}")
