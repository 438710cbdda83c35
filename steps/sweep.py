"""Search for better parameters of augment and train. Each trial is a child run, and reuses what was done before."""

import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from carmodel.errors import InputError
from carmodel.parameters import ENTRY_POINTS, LINK_OF, Recipe
from carmodel.recipe import SettingsError, resolve
from steps.command import errors_reported, make_parser, parse
from steps.main import with_local_weights

if TYPE_CHECKING:
    from carmodel.tracking.runs import StepRun
    from carmodel.training.search import Search

FOLDER = Path("sweeps")
"""Directory of the searches, in the working directory."""


def main(arguments: list[str]) -> None:
    """Parse the command line, and run the search. An interrupted search prints the command that continues it."""
    with errors_reported("sweep"):
        recipe, given = parse_sweep(arguments)
        from carmodel.tracking.lineage import command
        from carmodel.tracking.runs import step_run
        from steps.interrupt import undisturbed_end

        try:
            with step_run("sweep", recipe.sweep, given) as step, undisturbed_end():
                work(recipe, step)
        except KeyboardInterrupt:
            print(f"\nsweep: interrupted; to continue: {command('sweep', given)}", flush=True)
            raise


def parse_sweep(arguments: list[str]) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe of the command line, with the parameters as given. Every value of the search space is valid.

    Raises:
        InputError: Optuna is not installed, or there would be no validation photos.
    """
    steps = {step: ENTRY_POINTS[step] for step in ("sweep", "preprocess", "augment", "train")}
    apart = {*LINK_OF.values(), "space"}
    own = {step: [name for name in of.model_fields if name not in apart] for step, of in steps.items()}
    given = parse(make_parser("sweep", __doc__, own), arguments, sorted({name for of in own.values() for name in of}))
    overrides = {step: {name: given[name] for name in of} for step, of in own.items()}
    recipe = resolve(given["config"], given["set"], overrides)
    if find_spec("optuna") is None:
        raise InputError("sweep needs Optuna: make sweep")
    from carmodel.training.search import dimensions

    dimensions(recipe)
    if recipe.preprocess.validation_fraction == 0:
        raise SettingsError(
            "sweep compares accuracies on validation photos, so preprocess.validation_fraction must be more than 0"
        )
    train = with_local_weights(recipe.train, recipe.preprocess.data_uri)
    return recipe.model_copy(update={"train": train}), {name: value for name, value in given.items() if value}


def work(recipe: Recipe, step: "StepRun") -> None:
    """Run the search, and log the output `sweep`: the best recipe, the table of trials and the pictures."""
    import mlflow
    from mlflow.exceptions import ExecutionException

    from carmodel.service_errors import RERUN
    from carmodel.tracking.lineage import outputs_of
    from carmodel.tracking.unfinished import end_dead_runs
    from carmodel.training.search import Search, locked
    from steps.pipeline import Pipeline, uris
    from steps.trials import Trials

    began, folder = time.monotonic(), FOLDER / recipe.sweep.study
    with locked(folder):
        search = Search(folder, recipe)
        experiment = mlflow.get_run(step.run_id).info.experiment_id
        if dead := end_dead_runs(experiment):
            print(f"sweep: set to FAILED, because their processes were killed: {', '.join(i[:8] for i in dead)}")
        pipeline = Pipeline(experiment, False, {}, entry="sweep")
        try:
            data = pipeline.find_or_run("preprocess", recipe.preprocess)
            rows = validation_rows(uri := uris(data)["data"])
            search.require_same("data set", {"stores": outputs_of(data)["data"]["digest"]})
            Trials(search, pipeline, uri, step.run_id, began).run()
        except ExecutionException as error:
            raise SystemExit(f"\nsweep: stopped: {error}; {RERUN}") from None
        write_results(search, rows, step)


def validation_rows(data: str) -> int:
    """Return the number of validation photos in the stores.

    Raises:
        InputError: there are none.
    """
    from carmodel.data.store import open_store
    from carmodel.tracking.artifacts import fetch

    if not (count := int(open_store(fetch(data) / "train.h5").validation.sum())):
        raise InputError(f"{data}/train.h5 has no validation photos, which a sweep needs; use stores that have some")
    return count


def write_results(search: "Search", rows: int, step: "StepRun") -> None:
    """Write the results into the directory of the study, log them, and print the table and what to do next."""
    import mlflow

    from carmodel.tracking.lineage import command
    from carmodel.training.search_results import (
        best_recipe,
        best_trial,
        importance_figure,
        importances,
        parallel_coordinates,
        scales,
        sorted_table,
        trial_table,
        verdict,
    )

    table, best, results = trial_table(search), best_trial(search), search.folder / "results"
    results.mkdir(exist_ok=True)
    table.to_csv(results / "trials.csv", index=False)
    if table.empty:
        step.summarise("no trial began; run the same command again, with more minutes")
        return
    print(f"\n{sorted_table(table)}\n")
    if best is None:
        step.log_output(results, "sweep")
        step.summarise("no trial is complete; run the same command again, with more minutes, to continue")
        return
    text = verdict(search, best, rows)
    (results / "best.yaml").write_text(best_recipe(search, best, text))
    parallel_coordinates(table, scales(search)).savefig(results / "parallel_coordinates.png", dpi=120)
    if found := importances(search):
        importance_figure(found).savefig(results / "importance.png", dpi=120)
    mlflow.log_metric("val_accuracy", best.value or 0.0)
    step.log_output(results, "sweep")
    step.next = command("main", {"config": str(results / "best.yaml")})
    step.summarise(text)


if __name__ == "__main__":
    main(sys.argv[1:])
