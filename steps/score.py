"""Classify many photos with a registered classifier, on this machine or on a Spark cluster, and write their answers."""

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from carmodel.parameters import Score
from carmodel.recipe import SettingsError, require
from steps.command import run_step

if TYPE_CHECKING:
    from carmodel.tracking.runs import StepRun


def work(settings: Score, step: "StepRun") -> None:
    """Classify the photos that have no answer yet. Log how many there are, and the directory of the answers."""
    require("score", "model_uri", settings.model_uri, "package_pyfunc")
    if not settings.photos:
        raise SettingsError("score needs photos: a directory, a CSV file, or, with engine=spark, a table")
    import mlflow

    from carmodel.data.spark_session import spark_session
    from carmodel.serving.score import as_photos, claim, count_errors, list_photos, local_engine, score
    from carmodel.serving.score_spark import read_table, spark_engine

    model, batch = pinned(settings.model_uri)
    with ExitStack() as stack:
        engine = partial(local_engine, model, batch)
        source, boxes = Path(settings.photos), Path(settings.boxes) if settings.boxes else None
        if settings.engine == "spark":
            session = stack.enter_context(spark_session(settings.spark_master))
            engine = partial(spark_engine, session, model, batch, settings.partitions)
        if settings.engine == "spark" and not source.exists() and session.catalog.tableExists(settings.photos):
            photos = as_photos(read_table(session, settings.photos), settings.photos, Path("/"))
        else:
            photos = list_photos(source, boxes)
        output = Path(settings.output).absolute()
        claim(output, photos, {"model": model, "format": settings.format, "rows_per_file": settings.rows_per_file})
        began = time.perf_counter()
        scored = score(photos, output, engine, format=settings.format, rows_per_file=settings.rows_per_file)
        seconds = time.perf_counter() - began
    errors = count_errors(output)
    mlflow.log_metrics({"photos": len(photos), "scored": scored, "errors": errors})
    if scored:
        mlflow.log_metric("photos_per_second", scored / seconds)
    mlflow.set_tags({"carmodel.output": str(output), "carmodel.model": model})
    rate = f", {scored / seconds:.0f} photos/s" if scored else ""
    step.summarise(
        f"{len(photos)} photos, {scored} of them classified now{rate}, {errors} with an error; answers of {model} in {output}"
    )


def pinned(uri: str) -> tuple[str, int]:
    """Return the URI of a classifier, with a version instead of an alias, "latest" or a stage, and its most rows per request.

    Raises:
        InputError: there is no such classifier.
    """
    import mlflow

    from carmodel.serving.about import about_model
    from carmodel.serving.registry import version_for_alias
    from carmodel.tracking.cache import versioned

    about_model(uri)
    client, pinned_uri, name = mlflow.MlflowClient(), uri, uri.removeprefix("models:/")
    if uri.startswith("models:/") and "@" in name:
        name, alias = name.split("@")
        version = version_for_alias(client, name, alias)
        pinned_uri = f"models:/{name}/{version.version}" if version else uri
    elif uri.startswith("models:/") and "/" in name:  # the version may be "latest" or a stage
        pinned_uri = versioned(uri)
    facts = mlflow.models.get_model_info(pinned_uri).metadata or {}
    return pinned_uri, int(facts["max_rows"])


if __name__ == "__main__":
    run_step("score", Score, work)
