"""Facts about a packaged classifier that `make serve` prints and the page shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import mlflow
import numpy as np

from carmodel.data import sample
from carmodel.data.drawing.bodies import BODIES
from carmodel.data.drawing.photo import draw_photo
from carmodel.errors import InputError
from carmodel.evaluation.wilson import wilson_interval
from carmodel.service_errors import download_errors
from carmodel.tracking.artifacts import fetch

EXAMPLES = "examples"
"""Artifact with one picture per class, CLASS_ID.jpg, which `carmodel.data.pictures.class_examples` writes."""

SAMPLE_SEED = 2**31
"""No drawn training photo has this seed by default."""


def about_model(model: str) -> dict[str, Any]:
    """Return facts about a classifier that package_pyfunc made.

    Args:
        model: URI, such as models:/NAME@ALIAS.

    Returns:
        For JSON: `model` (the URI, with the version), `accuracy` (a sentence, or ""), `run` (run id), `run_url`,
        `classes` (names), and `crops` (whether it crops photos to boxes).

    Raises:
        InputError: there is no such model, or another project made it.
    """
    try:
        info = mlflow.models.get_model_info(model)
    except download_errors() as error:
        raise InputError(f"{model}: no such model: {error}") from None
    facts = info.metadata or {}
    if "max_rows" not in facts:
        raise InputError(f"{model} is not a classifier of photos; name one that package_pyfunc made")
    return {
        "model": with_version(model),
        "accuracy": accuracy_sentence(facts),
        "run": info.run_id,
        "run_url": run_url(info.run_id),
        "classes": facts["class_names"],
        "crops": facts["crop"] == "box",
    }


def with_version(model: str) -> str:
    """Return a URI that names an alias with its version appended: ``models:/NAME@ALIAS (version 3)``."""
    name, at, alias = model.removeprefix("models:/").partition("@")
    if not (at and model.startswith("models:/")):
        return model
    version = mlflow.MlflowClient().get_model_version_by_alias(name, alias).version
    return f"{model} (version {version})"


def accuracy_sentence(facts: Mapping[str, Any]) -> str:
    """Return the test accuracy with its 95% interval as a sentence; "" if the model's metadata has none."""
    if not (top1 := facts.get("test_top1")) or not (rows := facts.get("test_rows")):
        return ""
    low, high = wilson_interval(top1, int(rows))
    text = f"{top1:.1%} right on {int(rows):,} test photos (95% interval {low:.1%} to {high:.1%})"
    if (whole := facts.get("test_whole_top1")) is not None:
        text += f", {whole:.1%} without a box"
    return text


def run_url(run_id: str | None) -> str:
    """Return the URL of a run in MLflow's UI, without credentials; "" if that is not known.

    For a tracking store on this machine, it is where ``mlflow ui --port 5000`` shows the run.
    """
    if not run_id:
        return ""
    try:
        experiment = mlflow.get_run(run_id).info.experiment_id
    except download_errors():  # packaged on another tracking server
        return ""
    tracking, host = urlsplit(mlflow.get_tracking_uri()), "http://localhost:5000"
    if tracking.scheme in ("http", "https"):
        host = f"{tracking.scheme}://{tracking.netloc.rpartition('@')[2]}{tracking.path.rstrip('/')}"
    elif tracking.geturl().startswith(("databricks", "azureml")):
        return ""
    return f"{host}/#/experiments/{experiment}/runs/{run_id}"


def examples_of(model: str) -> Mapping[int, Path]:
    """Return the example pictures by class id from the run of a packaged classifier, or {} if it has none."""
    run_id = mlflow.models.get_model_info(model).run_id
    try:
        folder = fetch(f"runs:/{run_id}/{EXAMPLES}")
    except InputError:  # packaged without examples, or by a run of another tracking server
        return {}
    return {int(picture.stem): picture for picture in folder.glob("*.jpg")}


def draw_samples(class_names: Sequence[str], count: int = 6) -> list[bytes]:
    """Return JPEG files of drawn cars that a classifier of the drawn sample can name; [] for other classes."""
    bodies = [body for body, name in zip(BODIES, sample.class_names(len(BODIES)), strict=True) if name in class_names]
    if len(bodies) < len(class_names):
        return []
    photos = [
        draw_photo(bodies[i % len(bodies)], np.random.default_rng([SAMPLE_SEED, i]))[0]
        for i in range(min(count, len(bodies)))
    ]
    return [cv2.imencode(".jpg", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))[1].tobytes() for photo in photos]
