"""The whole pipeline: every step an MLflow run, children of this one; a step whose inputs did not change is reused."""

import signal
import sys
import time
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import ExecutionException

from carmodel.cloud.placement import Place, check_artifacts, check_placement, load_placement
from carmodel.cloud.waiting import wait
from carmodel.errors import InputError
from carmodel.model.weights import find_weights
from carmodel.parameters import LINK_OF, STEPS, Settings
from carmodel.recipe import check, parse_flag, resolve
from carmodel.service_errors import AGAIN, without_secrets
from carmodel.tracking.cache import cache_key, find_reusable
from carmodel.tracking.digests import ROOT
from carmodel.tracking.lineage import SUMMARY_TAG, links_from, outputs_of
from carmodel.tracking.paths import local_path
from steps.command import fail, make_parser, parse, stop


def main(arguments: list[str]) -> None:
    """Run or reuse every step in turn; print and log the table of what happened."""
    # As in the steps: an interrupted `mlflow run` ends main so, which has to cancel what it runs elsewhere.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        settings, fresh, placement = parse_main(arguments)
        with mlflow.start_run(run_name="main") as run:
            check_artifacts(placement, run.info.artifact_uri)
            table, classifier = run_chain(settings, fresh, placement, run.info.experiment_id)
    except InputError as error:
        fail("main", error)
    except ExecutionException as error:
        # The step has said what is wrong just above; the runs before it are kept and reused next time.
        sys.exit(f"\nmain: stopped: {error}; {AGAIN}")
    except Exception as error:
        stop("main", error)
    local = mlflow.get_tracking_uri().startswith(("sqlite:", "file:"))
    seen = "mlflow ui --port 5000, then http://localhost:5000" if local else without_secrets(mlflow.get_tracking_uri())
    print(f"\n{table}\n\n  all runs and pictures: {seen}")
    print(f"  serve {classifier}: make serve MODEL={classifier}")
    print("  before other commands of mlflow or python: source .venv/bin/activate\n")


def parse_main(arguments: list[str]) -> tuple[dict[str, Settings], bool, dict[str, Place]]:
    """Settings of all steps, whether to ignore the cache, and which steps run elsewhere."""
    # What main fills itself is no parameter of main.
    own = {step: [n for n in model.model_fields if n not in LINK_OF.values()] for step, model in STEPS.items()}
    parser = make_parser("main", __doc__, own)
    parser.add_argument(
        "--fresh", default="", metavar="VALUE", help="true: run every step, reuse nothing (default: false)"
    )
    parser.add_argument(
        "--placement", default="", metavar="FILE", help="backends/NAME.yaml: steps that run elsewhere (default: none)"
    )
    names = sorted({name for of in own.values() for name in of} | {"fresh", "placement"})
    given = parse(parser, arguments, names)
    overrides = {step: {name: given[name] for name in of} for step, of in own.items()}
    settings = resolve(given["config"], given["set"], overrides)
    placement = load_placement(given["placement"])
    check_placement(placement, settings, mlflow.get_tracking_uri())
    if "train" not in placement:
        settings["train"] = with_local_weights(settings["train"], settings["preprocess"].model_dump()["data_uri"])
    return settings, parse_flag("fresh", given["fresh"]), placement


def with_local_weights(train: Settings, data_uri: str) -> Settings:
    """Take the ImageNet weights from a folder ``weights/`` in or beside the data folder, where there is no need to download."""
    values = train.model_dump()
    if values["weights"] != "imagenet" or not data_uri or not (folder := local_path(data_uri)):
        return train
    name = f"ResNet{values['depth']}" if values["backbone"] == "resnet" else values["backbone"]
    found = find_weights(name, [folder / "weights", folder.parent / "weights"])
    if found is None:
        return train
    print(f"main: weights of {name}: {found}")
    return train.model_copy(update={"weights": str(found)})


def run_chain(
    settings: dict[str, Settings], fresh: bool, placement: dict[str, Place], experiment_id: str
) -> tuple[str, str]:
    """Run the steps as children of the active run, and return the summary table and the URI of the classifier."""
    links: dict[str, str] = {}
    rows = [["step", "", "seconds", "run", "result"]]
    for name, parameters in STEPS.items():
        if name == "augment" and settings[name].model_dump()["copies"] == 0:
            continue
        inputs = {link: uri for link, uri in links.items() if link in parameters.model_fields}
        values = check(name, settings[name].model_dump() | inputs)
        began = time.perf_counter()
        run = None if fresh else find_reusable(cache_key(name, values), experiment_id)
        verb = "reused" if run else "ran"
        run = run or run_step(name, values, placement.get(name), experiment_id)
        outputs = outputs_of(run)
        links |= links_from(outputs)
        mlflow.set_tag(f"carmodel.run.{name}", run.info.run_id)
        seconds = f"{time.perf_counter() - began:.1f}"
        rows.append([name, verb, seconds, run.info.run_id[:8], run.data.tags.get(SUMMARY_TAG, "")])
        print(f"main: {name} {verb}, run {run.info.run_id}")
        if name == "evaluate":
            mlflow.log_metrics({k: v for k, v in run.data.metrics.items() if k.startswith("test_")})
    table = tabulate(rows)
    mlflow.log_text(table + "\n", "summary.txt")
    return table, outputs["classifier"]["uri"]


def tabulate(rows: list[list[str]]) -> str:
    """Lay out rows of five texts in columns."""
    return "\n".join(f"{step:<15}{verb:<8}{seconds:>8}  {run:<10}{result}" for step, verb, seconds, run, result in rows)


def run_step(name: str, values: Settings, place: Place | None, experiment_id: str) -> Run:
    """Run one entry point as a child of the active run: in this same environment, or where its place is."""
    given = {key: str(value) for key, value in values.model_dump().items() if str(value) != ""}
    if place is not None:
        return run_elsewhere(name, given, place, experiment_id)
    submitted = mlflow.projects.run(
        str(ROOT), name, parameters=given, experiment_id=experiment_id, run_name=name, env_manager="local"
    )
    return mlflow.get_run(submitted.run_id)


def run_elsewhere(name: str, given: dict[str, str], place: Place, experiment_id: str) -> Run:
    """Submit a step to its backend and wait for it; its run is FAILED where it does not end well."""
    if place.backend == "databricks":
        from carmodel.cloud.databricks import submit
    elif place.backend == "azureml":
        from carmodel.cloud.azureml import submit
    else:
        from carmodel.cloud.command_job import submit
    remote = submit(name, given, Path(place.backend_config), experiment_id)
    try:
        wait(name, remote)
    except BaseException:
        try:
            mlflow.MlflowClient().set_terminated(remote.run_id, "FAILED")
        except Exception as error:  # what led here is told, whatever tracking says
            print(
                f"main: run {remote.run_id} of {name} could not be set to FAILED: {without_secrets(error)}", flush=True
            )
        raise
    return mlflow.get_run(remote.run_id)


if __name__ == "__main__":
    main(sys.argv[1:])
