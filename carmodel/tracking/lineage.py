"""How runs depend on each other: the tags of a step's run, its outputs, and the steps that take them as inputs."""

import json
import os
import shlex
from collections.abc import Mapping

import mlflow
from mlflow.entities import Run

from carmodel.parameters import LINK_OF, STEPS, Settings
from carmodel.recipe import resolve

# No dot in the tags of a search, because a name with a dot must be quoted there, which some tracking services refuse.
KEY_TAG = "carmodel_key"
"""Cache key of a finished run."""
STARTED_TAG = "carmodel_started"
"""Cache key of a run from its start."""
OUTPUTS_TAG = "carmodel.outputs"
SUMMARY_TAG = "carmodel.summary"
LISTING_TAG = "carmodel.listing"
REMOTE_TAG = "carmodel.remote"
"""Tag of a run that was submitted to a service: the job. The service decides when its process starts."""
PROCESS_TAG = "carmodel.process"


def command(name: str, given: Mapping[str, str]) -> str:
    """Return the command that runs an entry point with these parameters, in the experiment of this process."""
    words = ["mlflow run ."] if name == "main" else [f"mlflow run . -e {name}"]
    words.append("--env-manager local")
    default = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    named = mlflow.get_experiment_by_name(default) if default else None
    default_id = named.experiment_id if named else "0"
    if (experiment := os.environ.get("MLFLOW_EXPERIMENT_ID", default_id)) != default_id:
        words.append(f"--experiment-id {experiment}")
    return " ".join([*words, *(f"-P {parameter}={shlex.quote(value)}" for parameter, value in given.items() if value)])


def what_next(
    name: str, settings: Settings, outputs: dict[str, dict[str, str]], given: Mapping[str, str] | None = None
) -> str:
    """Return the command that runs the next step, with the outputs of this step, the inputs that both take, and the recipe."""
    if name == "package_pyfunc":
        return f"make serve MODEL={outputs['classifier']['uri']}"
    order = list(STEPS)
    following = order[order.index(name) + 1]
    recipe = {key: value for key, value in (given or {}).items() if key in ("config", "set")}
    if following == "augment" and resolve(recipe.get("config", ""), recipe.get("set", ""), {}).augment.copies == 0:
        following = "train"
    links = {link: value for link, value in settings.model_dump().items() if link in LINK_OF.values()}
    links |= links_from(outputs)
    inputs = {link: links[link] for link in STEPS[following].model_fields if link in links}
    return command(following, inputs | recipe)


def links_from(outputs: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the inputs that the outputs of a step give to later steps, ``{parameter: URI}``."""
    return {LINK_OF[output]: record["uri"] for output, record in outputs.items() if output in LINK_OF}


def outputs_of(run: Run) -> dict[str, dict[str, str]]:
    """Return the recorded outputs of a step's run, ``{name: {"uri", "digest", "listing"}}``. Empty for any other run."""
    return json.loads(run.data.tags.get(OUTPUTS_TAG, "{}"))
