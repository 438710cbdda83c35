"""Package the pretrained network of this repository as ``models:/carmodel-pretrained@champion``."""

import argparse
import json

import carmodel.quiet_tensorflow  # noqa: F401

# isort: split

import keras
import mlflow
import numpy as np
from mlflow import MlflowClient

from carmodel.errors import InputError
from carmodel.mlflow_model import PRETRAINED, load_initial, log_network
from carmodel.model.backbone import load_network
from carmodel.model.half_precision import save_in_half_precision
from carmodel.parameters import PackagePyfunc
from carmodel.serving.calibration import Calibration
from carmodel.serving.packaging import METADATA, log_classifier
from carmodel.serving.registry import (
    CANDIDATE,
    CHAMPION,
    PRETRAINED_NAME,
    register,
    set_alias,
    uri_of,
    version_for_alias,
)
from carmodel.tracking.digests import digest_of_path

DIGEST_TAG = "pretrained_digest"
FACTS = (*METADATA, "flip", "temperature", "certain_threshold", "test_top1", "test_whole_top1", "test_rows")
"""Metadata of a classifier that are kept beside its network."""


def package_pretrained() -> str:
    """Log and register the network of ``pretrained/``, once per version of its file, and return its URI.

    Its accuracy is that of its model card. Nothing is measured here, since the photos are not part of this repository.

    Raises:
        InputError: the files are missing.
    """
    facts_file = PRETRAINED.with_suffix(".json")
    if not PRETRAINED.is_file() or not facts_file.is_file():
        raise InputError(f"{PRETRAINED} or {facts_file.name} is missing; clone the repository again")
    client, digest = MlflowClient(), digest_of_path(PRETRAINED)
    if uri := _packaged(client, digest):
        return uri
    facts = json.loads(facts_file.read_text())
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
        accuracy = {name: facts[name] for name in ("test_top1", "test_whole_top1", "test_rows") if name in facts}
        info, _ = log_classifier(settings, photos, lambda _: calibration, accuracy)
        version = register(info.model_uri, PRETRAINED_NAME, facts["test_top1"], "the photos of the model card")
    client.set_model_version_tag(PRETRAINED_NAME, version, DIGEST_TAG, digest)
    for alias in (CANDIDATE, CHAMPION):
        set_alias(client, PRETRAINED_NAME, alias, version)
    return uri_of(client, PRETRAINED_NAME, CHAMPION) or f"models:/{PRETRAINED_NAME}/{version}"


def _packaged(client: MlflowClient, digest: str) -> str | None:
    """Return the URI of the champion if it was packaged from a file with this digest."""
    if not client.search_registered_models(f"name = '{PRETRAINED_NAME}'"):
        return None
    champion = version_for_alias(client, PRETRAINED_NAME, CHAMPION)
    return uri_of(client, PRETRAINED_NAME, CHAMPION) if champion and champion.tags.get(DIGEST_TAG) == digest else None


def export(model_uri: str) -> None:
    """Write the network of a registered classifier to ``pretrained/``, in half precision, with its facts as JSON.

    Args:
        model_uri: a registered classifier, such as ``models:/carmodel-laptop@champion``.
    """
    network, _ = load_initial(model_uri)
    metadata = mlflow.models.get_model_info(model_uri).metadata or {}
    if "class_names" not in metadata or "flip" not in metadata:
        raise InputError(f"{model_uri} is not a classifier of package_pyfunc; give models:/NAME/VERSION")
    save_in_half_precision(network, PRETRAINED)
    facts = {fact: metadata[fact] for fact in FACTS if fact in metadata}
    PRETRAINED.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", metavar="MODEL", help="first replace the files of pretrained/ by this classifier's")
    if model := parser.parse_args().export:
        export(model)
    print(f"\n  packaged: {package_pretrained()}\n  serve it: make serve MODEL=models:/{PRETRAINED_NAME}@{CHAMPION}")
