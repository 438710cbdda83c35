"""The chain of steps that main runs: each one a child run of main, reused if it was done before, here or elsewhere."""

import os
import shlex
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import ExecutionException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from carmodel.cloud.placement import Place, check_artifacts, check_placement
from carmodel.cloud.waiting import StateUnknownError, cancel, wait
from carmodel.parameters import Recipe, Settings, Train
from carmodel.service_errors import RERUN, without_secrets
from carmodel.serving.registry import CHAMPION, version_for_alias
from carmodel.tracking.cache import cache_key, find_reusable
from carmodel.tracking.digests import ROOT
from carmodel.tracking.lineage import REMOTE_TAG, STARTED_TAG, SUMMARY_TAG, command, outputs_of
from carmodel.tracking.unfinished import end_dead_runs, find_running, find_unfinished, process_tags
from steps.interrupt import undisturbed_end

POLL = 1.0
"""Seconds between two looks at a step that runs."""

WIDTHS = "{:<15}{:<8}{:>8}  {:<10}{}"


def run_pipeline(
    recipe: Recipe, fresh: bool, placement: dict[str, Place], given: Mapping[str, str] | None = None
) -> None:
    """Run main: every step in turn, then the table of what happened and what to do next.

    Args:
        recipe: the parameters of all steps.
        fresh: run every step, and reuse no earlier run.
        placement: the steps that run on another machine.
        given: the parameters of the command line, for the command that resumes an interrupted main.

    Raises:
        InputError: a step cannot run where `placement` says. Nothing has run then.
        SystemExit: a step failed. It has printed why.
    """
    check_placement(placement, dict(recipe), mlflow.get_tracking_uri())
    with mlflow.start_run(run_name="main") as run:
        mlflow.set_tags(process_tags())
        check_artifacts(placement, run.info.artifact_uri)
        if dead := end_dead_runs(run.info.experiment_id):
            print(f"main: set to FAILED, because their processes were killed: {', '.join(i[:8] for i in dead)}")
        pipeline = Pipeline(run.info.experiment_id, fresh, placement)
        try:
            with undisturbed_end():
                classifier = chain(pipeline, recipe)
        except ExecutionException as error:
            # The runs of the earlier steps stay, and are reused next time.
            raise SystemExit(f"\nmain: stopped: {error}; {RERUN}") from None
        except KeyboardInterrupt:
            again = {name: value for name, value in (given or {}).items() if name != "fresh"}
            print(f"\nmain: interrupted; to resume: {command('main', again)}", flush=True)
            raise
        mlflow.log_text(pipeline.table() + "\n", "summary.txt")
        mlflow.set_tag(MLFLOW_RUN_NOTE, f"{__doc__}\n\n```\n{pipeline.table()}\n```")
    print(f"\n{pipeline.table()}\n\n{next_steps(classifier, run.info.experiment_id)}")


def next_steps(classifier: str, experiment_id: str) -> str:
    """Return what a person does after main: serve the classifier, and look at the runs."""
    uri = mlflow.get_tracking_uri()
    local = uri.startswith(("sqlite:", "file:"))
    page = f"http://localhost:5000/#/experiments/{experiment_id}/runs"
    runs = f"mlflow ui --port 5000, then open {page}" if local else without_secrets(uri)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    exports = {"MLFLOW_EXPERIMENT_NAME": name, "MLFLOW_TRACKING_URI": "" if local else without_secrets(uri)}
    before = "".join(f"; export {variable}={shlex.quote(value)}" for variable, value in exports.items() if value)
    return (
        f"  serve {classifier}:  make serve MODEL={classifier}\n"
        f"  see all runs and pictures:  {runs}\n"
        f"  before other mlflow or python commands:  source .venv/bin/activate{before}\n"
    )


def chain(pipeline: "Pipeline", recipe: Recipe) -> str:
    """Run the steps, each on the outputs of earlier ones, and return the URI of the registered classifier."""
    data = pipeline.run("preprocess", recipe.preprocess)["data"]
    augmented = ""
    if recipe.augment.copies:
        augmented = pipeline.run("augment", recipe.augment, store_uri=data)["augmented"]
    model = pipeline.run("train", recipe.train, store_uri=data, augmented_uri=augmented)["model"]
    report = pipeline.run("evaluate", recipe.evaluate, store_uri=data, model_uri=model)["report"]
    inputs = {"store_uri": data, "model_uri": model, "evaluation_uri": report}
    return pipeline.run("package_pyfunc", recipe.package_pyfunc, **inputs)["classifier"]


class Pipeline:
    """Runs steps as children of the active run, and keeps a table of them.

    Args:
        experiment_id: experiment of all runs.
        fresh: whether to run a step that could be reused.
        placement: steps that run on another machine.
        entry: entry point that runs the steps, for its messages.
    """

    def __init__(self, experiment_id: str, fresh: bool, placement: dict[str, Place], entry: str = "main") -> None:
        self.experiment_id, self.fresh, self.placement, self.entry = experiment_id, fresh, placement, entry
        self.rows = [("step", "", "seconds", "run", "result")]
        self.working: defaultdict[str, Lock] = defaultdict(Lock)

    def run(self, name: str, settings: Settings, **inputs: str) -> dict[str, str]:
        """Run or reuse a step, and return its outputs, ``{name: URI}``.

        Raises:
            ExecutionException: the step failed.
        """
        return uris(self.find_or_run(name, settings, **inputs))

    def find_or_run(self, name: str, settings: Settings, **inputs: str) -> Run:
        """Run or reuse a step, and return its run. Several threads may call this: one runs a step, the others reuse it.

        Raises:
            ExecutionException: the step failed.
        """
        settings = settings.model_copy(update=inputs)
        began = time.perf_counter()
        key = cache_key(name, settings)
        with self.working[key]:
            if not self.fresh:
                self.wait_for_running(name, key)
            found = None if self.fresh else find_reusable(key, self.experiment_id)
            if found is None and not self.fresh and isinstance(settings, Train) and not settings.resume:
                settings = self.with_checkpoint(settings, key)
            run = found or self.execute(name, settings, key)
        verb, summary = "reused" if found else "ran", run.data.tags.get(SUMMARY_TAG, "")
        if found and name == "package_pyfunc":
            summary = describe_version(uris(run)["classifier"])
        mlflow.set_tag(f"carmodel.run.{name}", run.info.run_id)
        if name == "evaluate":
            mlflow.log_metrics({k: v for k, v in run.data.metrics.items() if k.startswith("test_")})
        self.rows.append((name, verb, f"{time.perf_counter() - began:.1f}", run.info.run_id[:8], summary))
        print(f"{self.entry}: {name} {verb}, run {run.info.run_id}", flush=True)
        return run

    def wait_for_running(self, name: str, key: str) -> None:
        """Wait while a process works on a step with this cache key, such as one whose parent was killed."""
        if run_id := find_running(key, self.experiment_id):
            print(f"{self.entry}: waiting for {name} of run {run_id}, which still runs", flush=True)
            while find_running(key, self.experiment_id):
                time.sleep(POLL)
            end_dead_runs(self.experiment_id)

    def with_checkpoint(self, settings: Train, key: str) -> Train:
        """Return the settings of a training that resumes an unfinished one with the same cache key, if there is one."""
        run_id = find_unfinished(key, self.experiment_id)
        if run_id is None:
            return settings
        again = " (to start again: -P fresh=true)" if self.entry == "main" else ""
        print(f"{self.entry}: resuming the unfinished training of run {run_id}{again}", flush=True)
        return settings.model_copy(update={"resume": run_id})

    def execute(self, name: str, settings: Settings, key: str) -> Run:
        """Run a step in this environment, or on the machine that the placement names.

        Until the step has tagged its own run, another main finds this run by the cache key, and waits.
        """
        mlflow.set_tag(STARTED_TAG, key)
        try:
            return self.start_and_wait(name, settings)
        finally:
            mlflow.set_tag(STARTED_TAG, "")

    def start_and_wait(self, name: str, settings: Settings) -> Run:
        """Start a step, and return its run after it has ended."""
        given = {key: str(value) for key, value in settings.model_dump().items() if str(value) != ""}
        if place := self.placement.get(name):
            return run_elsewhere(name, given, place, self.experiment_id)
        submitted = mlflow.projects.run(
            str(ROOT), name, parameters=given, experiment_id=self.experiment_id, run_name=name, env_manager="local"
        )
        return mlflow.get_run(submitted.run_id)

    def table(self) -> str:
        """Return the table of the steps: name, ran or reused, seconds, run and result."""
        return "\n".join(WIDTHS.format(*row) for row in self.rows)


def uris(run: Run) -> dict[str, str]:
    """Return the outputs of a step's run, ``{name: URI}``."""
    return {output: record["uri"] for output, record in outputs_of(run).items()}


def describe_version(uri: str) -> str:
    """Return the version of a URI as text, with the version that is the champion now."""
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    champion = version_for_alias(mlflow.MlflowClient(), name, CHAMPION)
    if champion is None:
        return f"{name} version {version}; there is no champion"
    if str(champion.version) == version:
        return f"{name} version {version}, the champion"
    return f"{name} version {version}; the champion is version {champion.version}"


def run_elsewhere(name: str, given: dict[str, str], place: Place, experiment_id: str) -> Run:
    """Submit a step to its backend and wait for it. If it fails or is cancelled, set its run to FAILED."""
    if place.backend == "databricks":
        from carmodel.cloud.databricks import submit
    elif place.backend == "azureml":
        from carmodel.cloud.azure import submit_project_run as submit
    else:
        from carmodel.cloud.azure import submit_command_job as submit
    remote = submit(name, given, Path(place.backend_config), experiment_id)
    try:
        with undisturbed_end():  # a second signal must not stop the cancellation
            mlflow.MlflowClient().set_tag(remote.run_id, REMOTE_TAG, remote.job)
            wait(name, remote)
    except StateUnknownError:
        raise  # the job may still be running, so its run stays as it is
    except BaseException as first_error:
        if not isinstance(first_error, ExecutionException):  # which says that the job has ended
            cancel(name, remote)
        try:
            mlflow.MlflowClient().set_terminated(remote.run_id, "FAILED")
        except Exception as error:  # the first error is the one to report
            print(f"main: could not set run {remote.run_id} of {name} to FAILED: {without_secrets(error)}", flush=True)
        raise
    return mlflow.get_run(remote.run_id)
