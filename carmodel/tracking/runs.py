"""The MLflow run of a step, and the outputs that it logs."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from carmodel.parameters import STEPS, Settings
from carmodel.recipe import SettingsError
from carmodel.tracking.artifacts import listing
from carmodel.tracking.cache import cache_key, input_digests
from carmodel.tracking.description import describe, log_datasets
from carmodel.tracking.digests import digest_of_path
from carmodel.tracking.lineage import (
    KEY_TAG,
    LISTING_TAG,
    OUTPUTS_TAG,
    STARTED_TAG,
    SUMMARY_TAG,
    command,
    what_next,
)
from carmodel.tracking.unfinished import has_checkpoint, process_tags


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
        """Set the line about the result, which is printed at the end of the step, or in the table of main."""
        mlflow.set_tag(SUMMARY_TAG, text)

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
def step_run(name: str, settings: Settings, given: Mapping[str, str] | None = None) -> Iterator[StepRun]:
    """Open the run that ``mlflow run`` created, or a new one. Log its parameters and, at the end, its duration.

    An exception sets the run to FAILED, so it is never reused. A refused parameter deletes it. An interrupted step prints
    the command that resumes it.

    Args:
        name: entry point.
        settings: its parameters.
        given: the parameters of its command line, for the commands that are printed.
    """
    given, began = given or {}, time.perf_counter()
    digests = input_digests(settings) if name in STEPS else {}
    key = cache_key(name, settings, digests) if name in STEPS else ""  # other entry points are never reused
    monitored = name == "train" and find_spec("psutil") is not None
    with (
        _unfinished(name, given) as opened,
        mlflow.start_run(run_name=name, log_system_metrics=monitored) as run,
        TemporaryDirectory(prefix=f"carmodel-{name}-") as folder,
    ):
        opened.append(run)
        mlflow.set_tags(process_tags() | ({STARTED_TAG: key} if key else {}))
        # `mlflow run` has logged the values of -P already, as typed ("1e-2"). MLflow refuses a second value for a parameter.
        logged = mlflow.get_run(run.info.run_id).data.params
        mlflow.log_params({k: v for k, v in settings.model_dump().items() if k not in logged})
        log_datasets(run.info.run_id, settings, digests)
        yield (step := StepRun(name, run.info.run_id, Path(folder)))
        mlflow.log_metric("seconds", time.perf_counter() - began)
        summary = mlflow.get_run(step.run_id).data.tags.get(SUMMARY_TAG, "")
        mlflow.set_tags(
            {
                LISTING_TAG: listing(f"runs:/{step.run_id}/"),
                MLFLOW_RUN_NOTE: describe(settings, summary, step.outputs),
            }
        )
        if key:  # last, because a run with a key counts as complete
            mlflow.set_tag(KEY_TAG, key)
    if not _is_part_of_main(run):
        print(f"{name}: {summary}\n\n{name}: done in {time.perf_counter() - began:.0f} s, run {step.run_id}")
        for output, record in step.outputs.items():
            print(f"  {output:<12} {record['uri']}")
        if following := what_next(name, settings, step.outputs, given) if name in STEPS else step.next:
            print(f"  next:        {following}")


@contextmanager
def _unfinished(name: str, given: Mapping[str, str]) -> Iterator[list[Run]]:
    """Discard the run that is put into the list if a parameter is refused, and say how to resume it after an interrupt."""
    opened: list[Run] = []
    opened_by_mlflow = "MLFLOW_RUN_ID" in os.environ
    try:
        yield opened
    except SettingsError:
        for run in opened if not opened_by_mlflow else []:  # otherwise, see `steps.command.errors_reported`
            with suppress(MlflowException):  # some tracking services cannot delete
                mlflow.MlflowClient().delete_run(run.info.run_id)
        raise
    except KeyboardInterrupt:
        if opened and name in STEPS and not _is_part_of_main(opened[0]):
            run_id = opened[0].info.run_id
            resume = {"resume": run_id} if name == "train" and has_checkpoint(run_id) else {}
            print(f"\n{name}: interrupted; to resume: {command(name, {**given, **resume})}", flush=True)
        raise


def _is_part_of_main(run: Run) -> bool:
    return MLFLOW_PARENT_RUN_ID in run.data.tags
