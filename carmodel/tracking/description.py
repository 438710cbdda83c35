"""What a run shows in MLflow besides parameters and metrics: a description and its input data sets."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException

from carmodel.parameters import INPUTS, Settings

DATA = ("data_uri", "store_uri", "augmented_uri")
"""Parameters that name a data set."""

MAX_DIGEST = 36
"""Characters of a digest that MLflow accepts."""


def log_datasets(run_id: str, settings: Settings, digests: Mapping[str, str]) -> None:
    """Log the input data sets of a run, if the tracking service supports them.

    Args:
        run_id: id of the run.
        settings: parameters of the step.
        digests: digests of its inputs, by parameter.
    """
    inputs = []
    for parameter in DATA:
        if uri := str(getattr(settings, parameter, "")):
            source = json.dumps({"uri": uri})
            dataset = Dataset(Path(uri).name, digests[parameter][-MAX_DIGEST:], "uri", source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", parameter)]))
    if inputs:
        with suppress(MlflowException):
            mlflow.MlflowClient().log_inputs(run_id, datasets=inputs)


def describe(settings: Settings, summary: str, outputs: Mapping[str, Mapping[str, str]]) -> str:
    """Return a description in Markdown: what the step does, its result, its inputs and its outputs."""
    inputs = [f"- `{name}`: {uri}" for name, uri in settings.model_dump().items() if name in INPUTS and uri]
    made = [f"- `{name}`: {record['uri']}" for name, record in outputs.items()]
    lists = [f"{title}:\n\n" + "\n".join(lines) for title, lines in (("Inputs", inputs), ("Outputs", made)) if lines]
    return "\n\n".join([type(settings).__doc__ or "", summary, *lists])
