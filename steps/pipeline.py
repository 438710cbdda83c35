"""The chain of steps that main runs: each one a child run of main, reused if it was done before, here or elsewhere."""

import signal
import time
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import ExecutionException

from carmodel.cloud.placement import Place, check_artifacts, check_placement
from carmodel.cloud.waiting import cancel, wait
from carmodel.parameters import Recipe, Settings
from carmodel.service_errors import RERUN, without_secrets
from carmodel.tracking.cache import cache_key, find_reusable
from carmodel.tracking.digests import ROOT
from carmodel.tracking.lineage import SUMMARY_TAG, outputs_of

WIDTHS = "{:<15}{:<8}{:>8}  {:<10}{}"


def run_pipeline(recipe: Recipe, fresh: bool, placement: dict[str, Place]) -> None:
    """Run main: every step in turn, then the table of what happened and what to do next.

    Args:
        recipe: the parameters of all steps.
        fresh: run every step, reuse nothing.
        placement: the steps that run on another machine.

    Raises:
        InputError: a step cannot run where `placement` says. Nothing has run then.
        SystemExit: a step failed. It has printed why.
    """
    check_placement(placement, dict(recipe), mlflow.get_tracking_uri())
    with mlflow.start_run(run_name="main") as run:
        check_artifacts(placement, run.info.artifact_uri)
        pipeline = Pipeline(run.info.experiment_id, fresh, placement)
        try:
            classifier = chain(pipeline, recipe)
        except ExecutionException as error:
            # The runs of the earlier steps stay, and are reused next time.
            raise SystemExit(f"\nmain: stopped: {error}; {RERUN}") from None
        mlflow.log_text(pipeline.table() + "\n", "summary.txt")
    local = mlflow.get_tracking_uri().startswith(("sqlite:", "file:"))
    seen = "mlflow ui --port 5000, then http://localhost:5000" if local else without_secrets(mlflow.get_tracking_uri())
    print(f"\n{pipeline.table()}\n\n  all runs and pictures: {seen}")
    print(f"  serve {classifier}: make serve MODEL={classifier}")
    print("  before other commands of mlflow or python: source .venv/bin/activate\n")


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
    """

    def __init__(self, experiment_id: str, fresh: bool, placement: dict[str, Place]) -> None:
        self.experiment_id, self.fresh, self.placement = experiment_id, fresh, placement
        self.rows = [("step", "", "seconds", "run", "result")]

    def run(self, name: str, settings: Settings, **inputs: str) -> dict[str, str]:
        """Run or reuse a step, and return its outputs, ``{name: URI}``.

        Raises:
            ExecutionException: the step failed.
        """
        settings = settings.model_copy(update=inputs)
        began = time.perf_counter()
        found = None if self.fresh else find_reusable(cache_key(name, settings), self.experiment_id)
        run = found or self.execute(name, settings)
        verb = "reused" if found else "ran"
        mlflow.set_tag(f"carmodel.run.{name}", run.info.run_id)
        if name == "evaluate":
            mlflow.log_metrics({k: v for k, v in run.data.metrics.items() if k.startswith("test_")})
        seconds = f"{time.perf_counter() - began:.1f}"
        self.rows.append((name, verb, seconds, run.info.run_id[:8], run.data.tags.get(SUMMARY_TAG, "")))
        print(f"main: {name} {verb}, run {run.info.run_id}")
        return {output: record["uri"] for output, record in outputs_of(run).items()}

    def execute(self, name: str, settings: Settings) -> Run:
        """Run a step in this environment, or on the machine that the placement names."""
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


def run_elsewhere(name: str, given: dict[str, str], place: Place, experiment_id: str) -> Run:
    """Submit a step to its backend and wait for it. If it does not succeed, set its run to FAILED."""
    if place.backend == "databricks":
        from carmodel.cloud.databricks import submit
    elif place.backend == "azureml":
        from carmodel.cloud.azure import submit_project_run as submit
    else:
        from carmodel.cloud.azure import submit_command_job as submit
    remote = submit(name, given, Path(place.backend_config), experiment_id)
    try:
        wait(name, remote)
    except BaseException as first_error:
        # MLflow sends an interrupted main a second signal, which must not end this.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(first_error, KeyboardInterrupt | SystemExit):
            cancel(name, remote)
        try:
            mlflow.MlflowClient().set_terminated(remote.run_id, "FAILED")
        except Exception as error:  # the first error is the one to report
            print(f"main: could not set run {remote.run_id} of {name} to FAILED: {without_secrets(error)}", flush=True)
        raise
    return mlflow.get_run(remote.run_id)
