"""Register versions in the MLflow model registry, and move their aliases `candidate` and `champion`.

Azure ML and Databricks's workspace registry have no aliases. There, the tag ``alias.candidate`` or ``alias.champion`` of
a version replaces it, and URIs name the version.
"""

from collections.abc import Mapping
from typing import NamedTuple

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ALREADY_EXISTS, RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.utils import get_results_from_paginated_fn

from carmodel.errors import InputError
from carmodel.evaluation.comparison import McNemar, mcnemar
from carmodel.service_errors import is_unsupported
from carmodel.tracking.artifacts import fetch

CANDIDATE = "candidate"
CHAMPION = "champion"
PRETRAINED_NAME = "carmodel-pretrained"
"""Name of the registered model that contains the pretrained network of this repository."""

PAGE = 100
"""Registered models per request."""
ACCURACY_TAG = "test_top1"
STORE_TAG = "test_store"
REPORT_TAG = "test_report"


class Promotion(NamedTuple):
    """Whether `champion` now points at the version, and the reason as text."""

    champion: bool
    reason: str


def register(model_uri: str, name: str, accuracy: float, test_store: str, report: str = "") -> str:
    """Register a logged model as a new version, without an alias. `promote` adds the aliases.

    Args:
        model_uri: URI of the logged model.
        name: name of the registered model, which is created if it does not exist.
        accuracy: top-1 accuracy on the test store, saved as the tag ``test_top1`` of the version.
        test_store: digest of that store, saved as the tag ``test_store``, since accuracies on different stores cannot
            be compared.
        report: URI of the report of evaluate, saved as the tag ``test_report``, since a later version is compared with its
            predictions.

    Returns:
        The version.
    """
    tags = {ACCURACY_TAG: repr(float(accuracy)), STORE_TAG: test_store} | ({REPORT_TAG: report} if report else {})
    if not model_uri.startswith("runs:/"):
        return str(mlflow.register_model(model_uri, name, tags=tags).version)
    # `mlflow.register_model` looks for MLmodel where azureml-mlflow does not list it, and then for logged models.
    client = MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in (ErrorCode.Name(RESOURCE_ALREADY_EXISTS), ErrorCode.Name(ALREADY_EXISTS)):
            raise
    source, (run_id, _) = (
        RunsArtifactRepository.get_underlying_uri(model_uri),
        RunsArtifactRepository.parse_runs_uri(model_uri),
    )
    return str(client.create_model_version(name, source, run_id, tags=tags).version)


def source_of(model_uri: str) -> str:
    """Return where the registry got a version, ``models:/NAME/VERSION``, from.

    It differs for versions of different registries, even if their names and numbers are the same.
    """
    name, version = model_uri.removeprefix("models:/").rsplit("/", 1)
    return str(MlflowClient().get_model_version(name, version).source)


def promote(client: MlflowClient, name: str, version: str, min_accuracy: float) -> Promotion:
    """Point `candidate` at a version that `register` made, and `champion` too if it is good enough.

    It is good enough if its test accuracy is at least `min_accuracy`, and if it is better than the champion on the same test
    store: it loses no test photo that the champion gets right, or it gains more than it loses and McNemar's test says
    that this is not chance (`carmodel.evaluation.comparison`). If the predictions of one of them are not known any more,
    an accuracy that is not below the champion's is enough.

    A champion that was measured on another store, or never, stays, since the two cannot be compared. The reason then
    contains the command that moves the alias. The first champion has nothing to be compared with.

    An alias never moves to an older version, so a rerun does not undo a later choice.
    """
    candidate = version_for_alias(client, name, CANDIDATE)
    if candidate is None or int(candidate.version) <= int(version):
        set_alias(client, name, CANDIDATE, version)
    tags = client.get_model_version(name, version).tags
    accuracy = float(tags[ACCURACY_TAG])
    champion = version_for_alias(client, name, CHAMPION)
    measured = f"version {version} has test top-1 {accuracy:.4f}"
    if champion is not None and int(champion.version) >= int(version):
        if str(champion.version) == version:
            reason = f"version {version} is the champion already"
        else:
            reason = f"{measured}; the newer version {champion.version} stays the champion"
        return Promotion(str(champion.version) == version, reason)
    if accuracy < min_accuracy:
        return Promotion(False, f"{measured}, below min_accuracy {min_accuracy:.4f}; {_stays(champion)}")
    if champion is None:
        set_alias(client, name, CHAMPION, version)
        return Promotion(True, f"{measured}, at least min_accuracy {min_accuracy:.4f}, and is the first champion")
    against = f"the champion, version {champion.version}"
    by_hand = f"MlflowClient().set_registered_model_alias({name!r}, {CHAMPION!r}, {version!r})"
    if _tag(CHAMPION) in champion.tags:
        by_hand = f"MlflowClient().set_model_version_tag({name!r}, {version!r}, {_tag(CHAMPION)!r}, 'true')"
    if ACCURACY_TAG not in champion.tags or champion.tags.get(STORE_TAG) != tags[STORE_TAG]:
        return Promotion(
            False,
            f"{measured}, but {against}, was not measured on this test store, so the two cannot be compared and it stays. "
            f"Evaluate and package it on this store, or move the alias yourself: {by_hand}",
        )
    better, comparison = _compare(champion, tags)
    if not better:
        return Promotion(
            False, f"{measured}, {comparison} {against}, which stays. To move the alias yourself: {by_hand}"
        )
    set_alias(client, name, CHAMPION, version)
    return Promotion(True, f"{measured}, {comparison} {against}, and replaces it")


def _compare(champion: ModelVersion, tags: Mapping[str, str]) -> tuple[bool, str]:
    """Return whether a version with these tags is better than the champion, and a phrase that says why."""
    accuracy, best = float(tags[ACCURACY_TAG]), float(champion.tags[ACCURACY_TAG])
    difference = _difference(champion.tags.get(REPORT_TAG), tags.get(REPORT_TAG))
    if difference is None:
        return accuracy >= best, f"{'not below' if accuracy >= best else 'below'} {best:.4f} of"
    if difference.lost == 0 or difference.better:
        return True, f"better than {best:.4f} ({difference}) of" if difference.gained else "right on the same photos as"
    return False, f"not shown to be better than {best:.4f} ({difference}) of"


def _difference(champion: str | None, version: str | None) -> McNemar | None:
    """Compare the predictions in two reports, given by their URIs; None if one is not known or was deleted."""
    if not champion or not version:
        return None
    try:
        before, after = (
            pd.read_csv(fetch(uri) / "predictions.csv", dtype=str, keep_default_na=False) for uri in (champion, version)
        )
    except (InputError, OSError):
        return None
    first, second = ((table["predicted"] == table["label"]).to_numpy() for table in (before, after))
    return mcnemar(first, second)


def set_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Point an alias at a version. In a registry without aliases, move the tag that replaces it."""
    try:
        return client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        if not is_unsupported(error):
            raise
    print(f"{name}: this registry has no aliases, so version {version} gets the tag {_tag(alias)}")
    client.set_model_version_tag(name, version, _tag(alias), "true")
    for other in _tagged(client, name, alias):
        if str(other.version) != version:
            client.delete_model_version_tag(name, str(other.version), _tag(alias))
    return None


def version_for_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Return the version with an alias, or with the tag that replaces it; None if there is none."""
    aliases = client.get_registered_model(name).aliases
    if alias in aliases:
        return client.get_model_version(name, aliases[alias])
    return max(_tagged(client, name, alias), key=lambda version: int(version.version), default=None)


def uri_of(client: MlflowClient, name: str, alias: str) -> str | None:
    """Return the URI of the version with an alias: ``models:/NAME@ALIAS``, or ``models:/NAME/VERSION`` without aliases."""
    version = version_for_alias(client, name, alias)
    if version is None:
        return None
    return f"models:/{name}/{version.version}" if _tag(alias) in version.tags else f"models:/{name}@{alias}"


def newest_model(client: MlflowClient, alias: str, without: str = "") -> str | None:
    """Return the URI of the newest version that has an alias, among all registered models.

    Args:
        client: of the registry.
        alias: such as champion.
        without: a registered model that does not count.
    """
    models = get_results_from_paginated_fn(
        lambda number, token: client.search_registered_models(max_results=number, page_token=token), PAGE
    )
    names = [model.name for model in models if model.name != without]
    versions = [version for name in names if (version := version_for_alias(client, name, alias))]
    newest = max(versions, key=lambda version: int(version.creation_timestamp), default=None)
    return None if newest is None else uri_of(client, newest.name, alias)


def _tag(alias: str) -> str:
    return f"alias.{alias}"


def _tagged(client: MlflowClient, name: str, alias: str) -> list[ModelVersion]:
    # Unity Catalog has aliases, and its search returns no tags.
    found = client.search_model_versions(f"name='{name}'")
    return [version for version in found if isinstance(version.tags, dict) and _tag(alias) in version.tags]


def _stays(champion: ModelVersion | None) -> str:
    return "there is no champion" if champion is None else f"version {champion.version} stays the champion"
