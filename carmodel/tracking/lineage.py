"""How runs depend on each other: the tags of a step's run, its outputs, and the steps that take them as inputs."""

import json

from mlflow.entities import Run

from carmodel.parameters import LINK_OF, STEPS, Settings

# No dot, because a name with a dot must be quoted in a search, which some tracking services refuse.
KEY_TAG = "carmodel_key"
OUTPUTS_TAG = "carmodel.outputs"
SUMMARY_TAG = "carmodel.summary"
LISTING_TAG = "carmodel.listing"


def what_next(name: str, settings: Settings, outputs: dict[str, dict[str, str]]) -> str:
    """Return the command that runs the next step, with the outputs of this step and the inputs that both take."""
    given = {link: value for link, value in settings.model_dump().items() if link in LINK_OF.values() and value}
    given |= links_from(outputs)
    if name == "package_pyfunc":
        return f"mlflow models serve -m {outputs['classifier']['uri']} --env-manager local --port 5001"
    order = list(STEPS)
    following = order[order.index(name) + 1]
    wanted = " ".join(f"-P {link}={given[link]}" for link in STEPS[following].model_fields if link in given)
    return f"mlflow run . -e {following} --env-manager local {wanted}"


def links_from(outputs: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the inputs that the outputs of a step give to later steps, ``{parameter: URI}``."""
    return {LINK_OF[output]: record["uri"] for output, record in outputs.items() if output in LINK_OF}


def outputs_of(run: Run) -> dict[str, dict[str, str]]:
    """Return the recorded outputs of a step's run, ``{name: {"uri", "digest", "listing"}}``. Empty for any other run."""
    return json.loads(run.data.tags.get(OUTPUTS_TAG, "{}"))
