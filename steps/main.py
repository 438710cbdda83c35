"""The whole pipeline: every step an MLflow run, children of this one; a step whose inputs did not change is reused."""

import sys
import time

import mlflow
from mlflow.exceptions import ExecutionException

from carmodel.errors import InputError
from carmodel.model.weights import find_weights
from carmodel.parameters import LINK_OF, STEPS, Settings
from carmodel.service import AGAIN
from carmodel.serving.registry import CANDIDATE, address_of, promote
from carmodel.settings import check, parse_flag, resolve
from carmodel.tracking import ROOT, SUMMARY_TAG, cache_key, find_reusable, links_from, local_path, outputs_of
from steps.command import fail, make_parser, parse, stop


def main(arguments: list[str]) -> None:
    """Run or reuse every step in turn; print and log the table of what happened."""
    try:
        settings, fresh = parse_main(arguments)
        with mlflow.start_run(run_name="main") as run:
            table = run_chain(settings, fresh, run.info.experiment_id)
            name = settings["package_pyfunc"].model_dump()["registered_model_name"]
            candidate = address_of(mlflow.MlflowClient(), name, CANDIDATE)
    except InputError as error:
        fail("main", error)
    except ExecutionException as error:
        # The step has said what is wrong just above; the runs before it are kept and reused next time.
        sys.exit(f"\nmain: stopped: {error}; {AGAIN}")
    except Exception as error:
        stop("main", error)
    local = mlflow.get_tracking_uri().startswith(("sqlite:", "file:"))
    seen = "mlflow ui --port 5000, then http://localhost:5000" if local else mlflow.get_tracking_uri()
    print(f"\n{table}\n\n  all runs and pictures: {seen}")
    print(f"  serve it: mlflow models serve -m {candidate} --env-manager local --port 5001\n")


def parse_main(arguments: list[str]) -> tuple[dict[str, Settings], bool]:
    """Settings of all steps, and whether to ignore the cache."""
    # What main fills itself is no parameter of main.
    own = {step: [n for n in model.model_fields if n not in LINK_OF.values()] for step, model in STEPS.items()}
    parser = make_parser("main", __doc__, own)
    parser.add_argument(
        "--fresh", default="", metavar="VALUE", help="true: run every step, reuse nothing (default: false)"
    )
    names = sorted({name for of in own.values() for name in of} | {"fresh"})
    given = parse(parser, arguments, names)
    overrides = {step: {name: given[name] for name in of} for step, of in own.items()}
    settings = resolve(given["config"], given["set"], overrides)
    settings["train"] = with_local_weights(settings["train"], settings["preprocess"].model_dump()["data_uri"])
    return settings, parse_flag("fresh", given["fresh"])


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


def run_chain(settings: dict[str, Settings], fresh: bool, experiment_id: str) -> str:
    """Run the steps as children of the active run, and return the summary table."""
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
        if run and name == "package_pyfunc":
            promote_again(outputs_of(run)["classifier"]["uri"], values)
        run = run or run_step(name, values, experiment_id)
        links |= links_from(outputs_of(run))
        mlflow.set_tag(f"carmodel.run.{name}", run.info.run_id)
        seconds = f"{time.perf_counter() - began:.1f}"
        rows.append([name, verb, seconds, run.info.run_id[:8], run.data.tags.get(SUMMARY_TAG, "")])
        print(f"main: {name} {verb}, run {run.info.run_id}")
        if name == "evaluate":
            mlflow.log_metrics({k: v for k, v in run.data.metrics.items() if k.startswith("test_")})
    table = tabulate(rows)
    mlflow.log_text(table + "\n", "summary.txt")
    return table


def promote_again(uri: str, settings: Settings) -> None:
    """Give the version of a reused run the aliases it would get now: others may have been packaged since."""
    name, version = uri.removeprefix("models:/").split("/")
    promote(mlflow.MlflowClient(), name, version, settings.model_dump()["min_accuracy"])


def tabulate(rows: list[list[str]]) -> str:
    """Lay out rows of five texts in columns."""
    return "\n".join(f"{step:<15}{verb:<8}{seconds:>8}  {run:<10}{result}" for step, verb, seconds, run, result in rows)


def run_step(name: str, values: Settings, experiment_id: str) -> mlflow.entities.Run:
    """Run one entry point through MLflow Projects, as a child of the active run, in this same environment."""
    given = {key: str(value) for key, value in values.model_dump().items() if str(value) != ""}
    submitted = mlflow.projects.run(
        str(ROOT), name, parameters=given, experiment_id=experiment_id, run_name=name, env_manager="local"
    )
    return mlflow.get_run(submitted.run_id)


if __name__ == "__main__":
    main(sys.argv[1:])
