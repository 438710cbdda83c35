"""Which step of `main` runs where: a YAML file `{step: {backend, backend_config}}`; a step that it does not name runs here."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from carmodel.errors import InputError
from carmodel.parameters import INPUTS, LINK_OF, STEPS, Settings
from carmodel.tracking.digests import ROOT
from carmodel.tracking.paths import local_path

# Schemes of the tracking URIs with which each backend's machines can log where main does.
TRACKING = {
    "databricks": ("databricks", "http", "https", "azureml"),
    "azureml": ("azureml",),
    "azureml-job": ("azureml",),
}
SUFFIX = {"databricks": ".json", "azureml": ".json", "azureml-job": ".yaml"}


class Place(BaseModel):
    """Where a step runs.

    Attributes:
        backend: databricks, azureml (SDK v1), or azureml-job (a command job of Azure ML, v2).
        backend_config: file with the cluster, the compute or the job.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    backend: Literal["databricks", "azureml", "azureml-job"]
    backend_config: str


def load_placement(path: str) -> dict[str, Place]:
    """Read a placement; an empty path: all steps run here.

    Raises:
        InputError: no such file, not YAML, an unknown step or backend, or a backend's file that is not there.
    """
    if not path:
        return {}
    file = Path(path)
    if not file.is_file():
        raise InputError(f"placement={path!r}: no such file; backends/placement.yaml is an example")
    try:
        steps = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"placement {path!r} is not valid YAML: {error}") from None
    if not isinstance(steps, dict):
        raise InputError(f"placement {path!r} must map steps to backends, as backends/placement.yaml does")
    return {step: _place(path, step, given) for step, given in steps.items()}


def _place(path: str, step: str, given: object) -> Place:
    if step not in STEPS:
        raise InputError(f"placement {path!r}: no step {step!r}; the steps are {', '.join(STEPS)}")
    try:
        place = Place.model_validate(given)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, item['loc'])) or step}: {item['msg']}" for item in error.errors())
        raise InputError(f"placement {path!r}, {step}: {said}") from None
    if not Path(place.backend_config).is_file() or Path(place.backend_config).suffix != SUFFIX[place.backend]:
        raise InputError(
            f"placement {path!r}, {step}: backend_config={place.backend_config!r} is no {SUFFIX[place.backend]} file that "
            f"is there; examples are in backends/"
        )
    return place


def check_placement(placement: dict[str, Place], settings: dict[str, Settings], tracking_uri: str) -> None:
    """Refuse what the other machines could not do.

    Args:
        placement: as `load_placement` reads it.
        settings: of all steps, without what main fills.
        tracking_uri: where main logs.

    Raises:
        InputError: a tracking server that the backend can't reach, or an input that is a path of this machine.
    """
    for step, place in placement.items():
        if (scheme := urlsplit(tracking_uri).scheme or tracking_uri) not in TRACKING[place.backend]:
            raise InputError(
                f"placement: {step} on {place.backend} can't log to {scheme}: steps hand on their outputs through a tracking "
                f"server that all machines reach; set MLFLOW_TRACKING_URI to "
                f"{' or '.join(f'{known}…' for known in TRACKING[place.backend])}"
            )
        for name, value in settings[step].model_dump().items():
            if name not in INPUTS or name in LINK_OF.values() or not value:
                continue
            path = local_path(value)
            # A word such as none, imagenet or resnet names no file, and the project's own weights are sent along.
            is_word = name in ("weights", "backbone", "init") and value.isalnum()
            if path is not None and not is_word and not path.is_relative_to(ROOT / "pretrained"):
                raise InputError(
                    f"{step}.{name}={value}: a path of this machine, but {step} runs on {place.backend}; give an address "
                    f"that is the same everywhere: dbfs:/mnt/…, abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…, runs:/…"
                )


def check_artifacts(placement: dict[str, Place], artifact_location: str) -> None:
    """Refuse an experiment whose artifacts other machines can't read.

    Raises:
        InputError: they are in a folder of this machine.
    """
    if placement and local_path(artifact_location) is not None:
        raise InputError(
            f"placement: the artifacts of this experiment are in a folder of this machine, {artifact_location}; start the "
            f"tracking server with --artifacts-destination, or use an experiment of Databricks or Azure ML"
        )
