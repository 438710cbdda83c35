"""Make a classifier of the files in ``pretrained/``, and make these files of a classifier."""

import json

import carmodel.quiet_tensorflow  # noqa: F401

# isort: split

import keras
import mlflow
import numpy as np

from carmodel.errors import InputError
from carmodel.mlflow_model import load_initial, log_network
from carmodel.model.backbone import load_network
from carmodel.model.half_precision import save_in_half_precision
from carmodel.parameters import PackagePyfunc
from carmodel.serving.calibration import Calibration
from carmodel.serving.packaging import ACCURACY, METADATA, log_classifier
from carmodel.serving.registry import PRETRAINED_NAME, register
from carmodel.tracking.paths import PRETRAINED

FACTS = (*METADATA, "flip", "temperature", "certain_threshold", *ACCURACY)
"""Metadata of a classifier that are kept beside its network."""


def package(facts: dict) -> str:
    """Log and register the network, and return the version.

    Args:
        facts: the content of the JSON file beside it.
    """
    size = facts["image_size"]
    # These images only check that folding changes no answer, for which noise is enough.
    photos = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    # MLflow calls the network on its example, for which Keras would print a progress bar.
    keras.config.disable_interactive_logging()
    with mlflow.start_run(run_name="pretrained"):
        model = log_network(load_network(PRETRAINED), photos[:1], {fact: facts[fact] for fact in METADATA}, {})
        given = {"model_uri": model.model_uri, "registered_model_name": PRETRAINED_NAME, "flip": facts["flip"]}
        settings = PackagePyfunc.model_validate(given)
        calibration = Calibration(facts.get("temperature", 1.0), facts.get("certain_threshold"))
        accuracy = {name: facts[name] for name in ACCURACY if name in facts}
        info, _ = log_classifier(settings, photos, lambda _: calibration, accuracy)
        return register(info.model_uri, PRETRAINED_NAME, facts["test_top1"], "the photos of the model card")


def export(model_uri: str) -> None:
    """Write the network of a registered classifier to ``pretrained/``, in half precision, with its facts as JSON.

    Args:
        model_uri: a registered classifier, such as ``models:/carmodel-laptop@champion``.
    """
    network, _ = load_initial(model_uri)
    metadata = mlflow.models.get_model_info(model_uri).metadata or {}
    if missing := [fact for fact in (*METADATA, "flip", "test_top1") if fact not in metadata]:
        raise InputError(
            f"{model_uri} is not a classifier of package_pyfunc that was measured on test photos: its metadata lack "
            f"{', '.join(missing)}; give models:/NAME/VERSION"
        )
    save_in_half_precision(network, PRETRAINED)
    facts = {fact: metadata[fact] for fact in FACTS if fact in metadata}
    PRETRAINED.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
