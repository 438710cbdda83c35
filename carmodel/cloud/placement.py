"""The placement of the steps of `main`: a YAML file that names a backend for some steps. The others run on this machine."""

import json
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from carmodel.errors import InputError
from carmodel.parameters import INPUTS, LINK_OF, STEPS, Settings
from carmodel.tracking.paths import PRETRAINED_FOLDER, local_path

EXAMPLE = "backends/placement.yaml"
TRACKING_SCHEMES = {
    "databricks": ("databricks", "http", "https", "azureml"),
    "azureml": ("azureml",),
    "azureml-job": ("azureml",),
}
"""Schemes of the tracking URIs that the machines of a backend can reach."""
SUFFIXES = {"databricks": ".json", "azureml": ".json", "azureml-job": ".yaml"}


class Place(BaseModel):
    """Where a step runs.

    Attributes:
        backend: databricks, azureml-job (a command job of Azure ML, SDK v2) or azureml (SDK v1).
        backend_config: file with the cluster, the compute or the job.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    backend: Literal["databricks", "azureml", "azureml-job"]
    backend_config: str


def load_placement(path: str) -> dict[str, Place]:
    """Read a placement file. An empty path is the empty placement.

    Raises:
        InputError: the file or a backend's file does not exist or is invalid, or a step or backend is unknown.
    """
    if not path:
        return {}
    file = Path(path)
    if not file.is_file():
        raise InputError(f"placement={path!r}: no such file; {EXAMPLE} is an example")
    try:
        steps = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"placement {path!r} is not valid YAML: {error}") from None
    if not isinstance(steps, dict):
        raise InputError(f"placement {path!r} must map steps to backends, as {EXAMPLE} does")
    return {step: _place(path, step, values) for step, values in steps.items()}


def _place(path: str, step: str, values: object) -> Place:
    if step not in STEPS:
        raise InputError(f"placement {path!r}: no step {step!r}; the steps are {', '.join(STEPS)}")
    try:
        place = Place.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc'])) or step}: {item['msg']}" for item in error.errors())
        raise InputError(f"placement {path!r}, {step}: {problems}") from None
    suffix = SUFFIXES[place.backend]
    if not Path(place.backend_config).is_file() or Path(place.backend_config).suffix != suffix:
        raise InputError(
            f"placement {path!r}, {step}: no such {suffix} file: backend_config={place.backend_config!r}; examples are in "
            "backends/"
        )
    parse = json.loads if suffix == ".json" else yaml.safe_load
    try:
        valid = isinstance(parse(Path(place.backend_config).read_text()), dict)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{place.backend_config} is no valid {suffix} file: {' '.join(str(error).split())}") from None
    if not valid:
        raise InputError(f"{place.backend_config} must map names to values, as the examples in backends/ do")
    return place


def check_placement(placement: dict[str, Place], settings: dict[str, Settings], tracking_uri: str) -> None:
    """Check that every step can run where it is placed.

    Args:
        placement: from `load_placement`.
        settings: parameters of all steps, without the inputs that main sets.
        tracking_uri: tracking URI of main.

    Raises:
        InputError: the backend cannot reach the tracking server, or an input is a path of this machine.
    """
    for step, place in placement.items():
        schemes = TRACKING_SCHEMES[place.backend]
        if (scheme := urlsplit(tracking_uri).scheme or tracking_uri) not in schemes:
            raise InputError(
                f"placement: {step} on {place.backend} cannot log to {scheme}. Steps pass on their outputs through a tracking "
                f"server that all machines reach: set MLFLOW_TRACKING_URI to {' or '.join(f'{name}…' for name in schemes)}"
            )
        for name, value in settings[step].model_dump().items():
            if name in INPUTS and name not in LINK_OF.values() and value and _is_local(name, value):
                raise InputError(
                    f"{step}.{name}={value} is a path of this machine, but {step} runs on {place.backend}: give a URI that "
                    "every machine can read, such as dbfs:/mnt/…, abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/… or runs:/…"
                )


def _is_local(name: str, value: str) -> bool:
    """Return whether an input is a path that exists on this machine only."""
    path = local_path(value)
    # A word such as none, imagenet or resnet is not a path. Files in pretrained/ are sent if they are used.
    is_word = name in ("weights", "backbone", "init") and value.isalnum()
    return path is not None and not is_word and not path.is_relative_to(PRETRAINED_FOLDER)


def check_artifacts(placement: dict[str, Place], artifact_location: str) -> None:
    """Check that other machines can read the artifacts of the experiment.

    Raises:
        InputError: the artifacts are in a folder of this machine.
    """
    if placement and local_path(artifact_location) is not None:
        raise InputError(
            f"placement: the artifacts of this experiment are in a folder of this machine, {artifact_location}: start the "
            "tracking server with --artifacts-destination, or use an experiment of Databricks or Azure ML"
        )
