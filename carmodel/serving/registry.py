"""Versions of a registered model, and which of them is called `candidate` and which `champion`."""

from typing import NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
CHAMPION = "champion"
ACCURACY_TAG = "test_top1"
STORE_TAG = "test_store"


class Promotion(NamedTuple):
    """Whether `champion` points at the version now, and why, in words."""

    champion: bool
    reason: str


def register(model_uri: str, name: str, accuracy: float, test_store: str) -> str:
    """Register a logged model as a new version, without an alias: `promote` gives it one once it has answered.

    Args:
        model_uri: of the logged model.
        name: of the registered model, made where it is missing.
        accuracy: top-1 on the test store, kept as the version's tag ``test_top1``.
        test_store: digest of that store, kept as ``test_store``: accuracies on different stores can't be compared.

    Returns:
        The version.
    """
    tags = {ACCURACY_TAG: repr(float(accuracy)), STORE_TAG: test_store}
    return str(mlflow.register_model(model_uri, name, tags=tags).version)


def promote(client: MlflowClient, name: str, version: str, min_accuracy: float) -> Promotion:
    """Point `candidate` at a version that `register` made, and `champion` too if it has earned that.

    It has when its test accuracy is at least `min_accuracy` and not below the champion's, measured on the same test
    store. A champion that was measured on another store, or never, stays: the two can't be compared, and the reason
    says how to move the alias by hand. The first champion has nothing to be compared with.
    """
    client.set_registered_model_alias(name, CANDIDATE, version)
    tags = client.get_model_version(name, version).tags
    accuracy = float(tags[ACCURACY_TAG])
    champion = _champion(client, name)
    measured = f"version {version} has test top-1 {accuracy:.4f}"
    if champion is not None and str(champion.version) == version:
        return Promotion(True, f"version {version} is the champion already")
    if accuracy < min_accuracy:
        return Promotion(False, f"{measured}, below min_accuracy {min_accuracy:.4f}; {_stays(champion)}")
    if champion is None:
        client.set_registered_model_alias(name, CHAMPION, version)
        return Promotion(True, f"{measured}, at least min_accuracy {min_accuracy:.4f}, and is the first champion")
    against = f"the champion, version {champion.version}"
    if ACCURACY_TAG not in champion.tags or champion.tags.get(STORE_TAG) != tags[STORE_TAG]:
        by_hand = f"MlflowClient().set_registered_model_alias({name!r}, {CHAMPION!r}, {version!r})"
        return Promotion(
            False,
            f"{measured}, but {against}, was not measured on this test store, so they can't be compared; it stays. "
            f"Evaluate and package it on this store, or move the alias by hand: {by_hand}",
        )
    best = float(champion.tags[ACCURACY_TAG])
    if accuracy < best:
        return Promotion(False, f"{measured}, below {best:.4f} of {against}, which stays")
    client.set_registered_model_alias(name, CHAMPION, version)
    return Promotion(True, f"{measured}, not below {best:.4f} of {against}, and replaces it")


def newest_candidate(client: MlflowClient) -> str | None:
    """Return the address of the registered model that got its candidate last, ``models:/NAME@candidate``, if there is one."""
    versions = [
        client.get_model_version(model.name, model.aliases[CANDIDATE])
        for model in client.search_registered_models()
        if CANDIDATE in model.aliases
    ]
    newest = max(versions, key=lambda version: version.creation_timestamp, default=None)
    return None if newest is None else f"models:/{newest.name}@{CANDIDATE}"


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, aliases[CHAMPION]) if CHAMPION in aliases else None


def _stays(champion: ModelVersion | None) -> str:
    return "there is no champion" if champion is None else f"version {champion.version} stays the champion"
