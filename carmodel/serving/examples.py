"""Example pictures of the classes, which package_pyfunc keeps in its run and the page shows beside an answer."""

from collections.abc import Mapping
from pathlib import Path

import mlflow

from carmodel.errors import InputError
from carmodel.service_errors import download_errors
from carmodel.tracking.artifacts import fetch

EXAMPLES = "examples"
"""The run's output with one picture a class, CLASS_ID.jpg, as `carmodel.data.pictures.class_examples` writes them."""


def require_classifier(model: str) -> None:
    """Check that a model is a classifier that package_pyfunc made.

    Raises:
        InputError: there is no such model, or it is another.
    """
    try:
        facts = mlflow.models.get_model_info(model).metadata or {}
    except download_errors() as error:
        raise InputError(f"{model}: no such model: {error}") from None
    if "max_rows" not in facts:
        raise InputError(f"{model} is no classifier of photos: name one that package_pyfunc made")


def examples_of(model: str) -> Mapping[int, Path]:
    """Return the example pictures by class id that the run of a packaged classifier kept; none where it kept none."""
    run_id = mlflow.models.get_model_info(model).run_id
    try:
        folder = fetch(f"runs:/{run_id}/{EXAMPLES}")
    except InputError:  # packaged without examples, or by a run of another tracking server
        return {}
    return {int(picture.stem): picture for picture in folder.glob("*.jpg")}
