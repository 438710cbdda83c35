"""How runs hang together: the tags of a step's run, its recorded outputs, and the steps that take them as inputs."""

import json

from mlflow.entities import Run

from carmodel.parameters import LINK_OF, STEPS, Settings

# No dot: some services that speak MLflow's API take no quoted names in a search.
KEY_TAG = "carmodel_key"
OUTPUTS_TAG = "carmodel.outputs"
SUMMARY_TAG = "carmodel.summary"
LISTING_TAG = "carmodel.listing"


def what_next(name: str, settings: Settings, outputs: dict[str, dict[str, str]]) -> str:
    """Return the command of the next step, with the outputs of this one and those of its inputs it takes too."""
    given = {link: value for link, value in settings.model_dump().items() if link in LINK_OF.values() and value}
    given |= links_from(outputs)
    if name == "package_pyfunc":
        return f"mlflow models serve -m {outputs['classifier']['uri']} --env-manager local --port 5001"
    order = list(STEPS)
    following = order[order.index(name) + 1]
    wanted = " ".join(f"-P {link}={given[link]}" for link in STEPS[following].model_fields if link in given)
    return f"mlflow run . -e {following} --env-manager local {wanted}"


def links_from(outputs: dict[str, dict[str, str]]) -> dict[str, str]:
    """Map the outputs of a step to the inputs of later steps: ``{parameter: URI}``."""
    return {LINK_OF[output]: record["uri"] for output, record in outputs.items() if output in LINK_OF}


def outputs_of(run: Run) -> dict[str, dict[str, str]]:
    """Return the outputs that the run of a step recorded: ``{name: {"uri", "digest", "listing"}}``, empty for any other run."""
    return json.loads(run.data.tags.get(OUTPUTS_TAG, "{}"))
