"""The cache: main reuses a step if a FINISHED run has the same key and all its outputs still exist.

The key is the digest of the step's name, its parameters, the source files that it imports, ``requirements.lock``, and the
contents of its inputs.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.store.artifact.utils.models import get_model_name_and_version

from carmodel.data.transform import file_of
from carmodel.errors import InputError
from carmodel.parameters import INPUTS, NOT_IN_CACHE_KEY, Settings
from carmodel.service_errors import download_errors, explain_uri
from carmodel.tracking.artifacts import listing
from carmodel.tracking.digests import ROOT, digest_of_bytes, digest_of_path, digest_of_sources
from carmodel.tracking.lineage import KEY_TAG, LISTING_TAG, outputs_of
from carmodel.tracking.paths import initial_file, local_path


def find_reusable(key: str, experiment_id: str) -> Run | None:
    """Return the newest FINISHED run with this key whose outputs and other artifacts all still exist, or None."""
    runs = mlflow.MlflowClient().search_runs([experiment_id], f"tags.{KEY_TAG} = '{key}'")  # newest first
    return next((run for run in runs if run.info.status == "FINISHED" and _is_complete(run)), None)


def _is_complete(run: Run) -> bool:
    try:
        listed = [(record["uri"], record["listing"]) for record in outputs_of(run).values()]
        listed.append((f"runs:/{run.info.run_id}/", run.data.tags[LISTING_TAG]))
        return all(listing(uri) == then for uri, then in listed)
    except (MlflowException, OSError, KeyError):
        return False


def digest_of_input(uri: str) -> str:
    """Return a text that changes when an input changes, such as the digest of its contents.

    For a URI that would have to be downloaded, the text lists the names and sizes of the files. A value that is neither a
    URI nor an existing path is returned unchanged.

    Raises:
        InputError: the URI cannot be read.
    """
    if not uri:
        return ""
    try:
        if path := local_path(uri):
            return digest_of_path(path) if path.exists() else uri
        if uri.startswith("runs:/"):
            run_id, name = RunsArtifactRepository.parse_runs_uri(uri)
            if record := outputs_of(mlflow.get_run(run_id)).get(name):
                return record["digest"]
        if uri.startswith("models:/"):
            return versioned(uri)
        return f"{uri} {listing(uri)}"
    except download_errors() as error:
        raise InputError(f"{uri}: cannot be read: {explain_uri(uri, error)}") from None


def versioned(uri: str) -> str:
    """Return the URI of a registered or logged model, ``models:/…``, with its version.

    A logged model or a version never changes. An alias, a stage or "latest" may name another version later.
    """
    return "/".join(["models:", *map(str, get_model_name_and_version(mlflow.MlflowClient(), uri))])


def input_digests(settings: Settings) -> dict[str, str]:
    """Return the digest of each input of a step, by parameter."""
    inputs = {name: str(value) for name, value in settings.model_dump().items() if name in INPUTS}
    return {name: _digest_of(name, value) for name, value in inputs.items()}


def _digest_of(name: str, value: str) -> str:
    if name == "init":
        return digest_of_init(value)
    # Their other values are words such as imagenet. A folder may have such a name.
    return value if name in ("backbone", "weights") and not Path(value).is_file() else digest_of_input(value)


def digest_of_init(init: str) -> str:
    """Return the digest of the network that a training starts from. A Keras file has its classes in a JSON file beside it."""
    file = initial_file(init)
    if file is None:
        return digest_of_input(init)
    classes = file.with_suffix(".json")
    return " ".join(digest_of_input(str(path)) for path in (file, classes) if path == file or path.is_file())


def cache_key(name: str, settings: Settings, digests: Mapping[str, str] | None = None) -> str:
    """Return the digest of everything that determines the outputs of a step.

    Args:
        name: the step.
        settings: its parameters.
        digests: digests of its inputs. None computes them.
    """
    values = settings.model_dump()
    parts = {
        "step": name,
        "parameters": {k: v for k, v in values.items() if k not in (*INPUTS, *NOT_IN_CACHE_KEY)},
        "inputs": input_digests(settings) if digests is None else dict(digests),
        "sources": digest_of_sources(ROOT / "steps" / f"{name}.py"),
        "transform": digest_of_sources(file) if (file := file_of(str(values.get("transform", "")))) else "",
        "lock": digest_of_path(ROOT / "requirements.lock"),
    }
    return digest_of_bytes(json.dumps(parts, sort_keys=True).encode())
