"""Step runs: one MLflow run an entry point, its outputs by URI, and the cache that reuses a finished one.

A step is reused when a FINISHED run has the same key and all its outputs are still there. The key is the digest of: the step's
name, its resolved parameters, the sources it imports, ``requirements.lock``, and the contents of its inputs.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import mlflow
from azure.core.exceptions import AzureError
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from carmodel.data.transform import file_of
from carmodel.digests import ROOT, digest_of_bytes, digest_of_path, digest_of_sources
from carmodel.errors import InputError
from carmodel.parameters import LINK_OF, STEPS, Settings
from carmodel.service_errors import has_no_such_call, without_secrets

# What MLflow raises for an address that is wrong, can't be reached, or needs a client that is not installed.
UNREACHABLE = (MlflowException, AzureError, OSError, ImportError, ValueError, NotImplementedError)
# Without a dot, since not every service that speaks MLflow's API takes quoted names in a search.
KEY_TAG = "carmodel_key"
OUTPUTS_TAG = "carmodel.outputs"
SUMMARY_TAG = "carmodel.summary"
LISTING_TAG = "carmodel.listing"

# Parameters that name an input: its contents go into the key, not its address.
INPUTS = (*LINK_OF.values(), "data_uri", "weights")
# Parameters that say where work is done, and change nothing of what comes out.
PLACES = ("spark_master", "work_folder")


@dataclass
class StepRun:
    """The open run of a step: where it leaves its outputs.

    Attributes:
        name: entry point.
        run_id: MLflow run.
        folder: scratch folder, removed when the step ends.
        outputs: ``{name: {"uri", "digest", "listing"}}`` of what was logged so far.
        next: the command that goes on from here, where it is not the next step of main; empty where there is none.
    """

    name: str
    run_id: str
    folder: Path
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    next: str | None = None

    def summarise(self, text: str) -> None:
        """One line on what came out, for the table that main prints."""
        mlflow.set_tag(SUMMARY_TAG, text)
        print(f"{self.name}: {text}")

    def log_output(self, folder: Path, name: str) -> str:
        """Log a folder as the output `name` and return its ``runs:/`` URI."""
        mlflow.log_artifacts(str(folder), name)
        return self.add_output(name, f"runs:/{self.run_id}/{name}", digest_of_path(folder))

    def add_output(self, name: str, uri: str, digest: str = "") -> str:
        """Record an output that is logged already, such as a model; an address that never changes is its own digest."""
        self.outputs[name] = {"uri": uri, "digest": digest or uri, "listing": listing(uri)}
        mlflow.set_tag(OUTPUTS_TAG, json.dumps(self.outputs))
        return uri


@contextmanager
def step_run(name: str, settings: Settings, recipe: str = "") -> Iterator[StepRun]:
    """Open the run of a step: the one that ``mlflow run`` made, or a new one; log its parameters and, at the end, its time.

    An exception leaves the run FAILED, so that it is never reused.

    Args:
        name: entry point.
        settings: its parameters.
        recipe: the ``-P`` words that choose a recipe, for the command that is printed as the next.
    """
    began = time.perf_counter()
    key = cache_key(name, settings) if name in STEPS else ""  # other entry points are never reused
    with mlflow.start_run(run_name=name) as run, TemporaryDirectory(prefix=f"carmodel-{name}-") as folder:
        # `mlflow run` has logged the -P values as typed ("1e-2"): those stay, since a parameter can't be logged twice.
        logged = mlflow.get_run(run.info.run_id).data.params
        mlflow.log_params({k: v for k, v in settings.model_dump().items() if k not in logged})
        yield (step := StepRun(name, run.info.run_id, Path(folder)))
        mlflow.log_metric("seconds", time.perf_counter() - began)
        mlflow.set_tag(LISTING_TAG, listing(f"runs:/{step.run_id}/"))
        if key:  # last, so that a run with a key is whole
            mlflow.set_tag(KEY_TAG, key)
        print(f"\n{name}: done in {time.perf_counter() - began:.0f} s, run {step.run_id}")
        for output, record in step.outputs.items():
            print(f"  {output:<12} {record['uri']}")
        following = f"{what_next(name, settings, step.outputs)} {recipe}" if step.next is None else step.next
        if following and MLFLOW_PARENT_RUN_ID not in run.data.tags:  # main goes on by itself
            print(f"  next:        {following}")


def what_next(name: str, settings: Settings, outputs: dict[str, dict[str, str]]) -> str:
    """The command that goes on from a step: with its outputs, and those of its own inputs that the next step wants too."""
    given = {link: value for link, value in settings.model_dump().items() if link in LINK_OF.values() and value}
    given |= links_from(outputs)
    if name == "package_pyfunc":
        return f"mlflow models serve -m {outputs['classifier']['uri']} --env-manager local --port 5001"
    order = list(STEPS)
    following = order[order.index(name) + 1]
    wanted = " ".join(f"-P {link}={given[link]}" for link in STEPS[following].model_fields if link in given)
    return f"mlflow run . -e {following} --env-manager local {wanted}"


def links_from(outputs: dict[str, dict[str, str]]) -> dict[str, str]:
    """The inputs that a step's outputs give to the later steps: ``{parameter: URI}``."""
    return {LINK_OF[output]: record["uri"] for output, record in outputs.items() if output in LINK_OF}


def outputs_of(run: Run) -> dict[str, dict[str, str]]:
    """Outputs that a step's run has recorded (empty for any other run)."""
    return json.loads(run.data.tags.get(OUTPUTS_TAG, "{}"))


def find_reusable(key: str, experiment_id: str) -> Run | None:
    """The newest FINISHED run with this key whose outputs and other artifacts are all still there, else None."""
    runs = mlflow.MlflowClient().search_runs([experiment_id], f"tags.{KEY_TAG} = '{key}'")  # newest first
    return next((run for run in runs if run.info.status == "FINISHED" and _whole(run)), None)


def _whole(run: Run) -> bool:
    try:
        listed = [(record["uri"], record["listing"]) for record in outputs_of(run).values()]
        listed.append((f"runs:/{run.info.run_id}/", run.data.tags[LISTING_TAG]))
        return all(listing(uri) == then for uri, then in listed)
    except (MlflowException, OSError, KeyError):
        return False


def fetch(uri: str) -> Path:
    """Bring an artifact here and return its path; what is on this machine already is not copied.

    Args:
        uri: a plain path or any URI that MLflow can download (``runs:/``, ``models:/``, ``dbfs:/``, ``s3://`` …).

    Raises:
        InputError: nothing there, with the reason that MLflow gives.
    """
    if path := local_path(uri):
        if not path.exists():
            raise InputError(f"{uri}: no such file or folder")
        return path
    try:
        # `runs:/` always copies; the address under it does not when it is a folder of this machine.
        return Path(download_artifacts(_underlying(uri)))
    except UNREACHABLE as error:
        raise InputError(f"{uri}: can't be downloaded: {explain(uri, error)}") from None


def explain(uri: str, error: Exception) -> str:
    """MLflow's error in words, where its own say little."""
    if isinstance(error, ImportError):
        return f"{error}; MLflow needs that package for such addresses: pip install it"
    if "@" in uri and isinstance(error, MlflowException) and has_no_such_call(error):
        return "this registry has no aliases; name the version, models:/NAME/VERSION"
    if uri.startswith("http"):
        return "not an artifact of an MLflow server; download it and give the folder"
    if uri.startswith("abfss:") and not urlsplit(uri).path.strip("/"):
        return "MLflow can't read a whole container: give a folder of it"
    if isinstance(error, AzureError):
        return " ".join(without_secrets(error).split())
    return str(error)


def local_path(uri: str) -> Path | None:
    """The absolute path that a plain path or a ``file:`` URI names on this machine; None for any other URI."""
    if uri.startswith("file:"):
        return Path(local_file_uri_to_path(uri)).resolve()
    # Unlike Path.expanduser, this leaves an unknown ~user as it is: a path that does not exist.
    return None if ":/" in uri else Path(os.path.expanduser(uri)).resolve()  # noqa: PTH111


def _underlying(uri: str) -> str:
    if not uri.startswith("runs:/") or not _run_has(uri):
        return uri
    return RunsArtifactRepository.get_underlying_uri(uri)


def _run_has(uri: str) -> bool:
    """Whether a ``runs:/`` artifact lies in the run's own folder (MLflow 3 keeps logged models elsewhere)."""
    run_id, path = RunsArtifactRepository.parse_runs_uri(uri)
    parent = str(Path(path).parent) if "/" in path else None
    return any(item.path == path for item in mlflow.MlflowClient().list_artifacts(run_id, parent))


def listing(uri: str) -> str:
    """Digest of the file names and sizes under a URI; cheap, also where the files are far away."""
    if uri.startswith("runs:/"):
        run_id, _, path = uri.removeprefix("runs:/").partition("/")
        repository = get_artifact_repository(mlflow.get_run(run_id).info.artifact_uri)
        pending = [path]
    else:
        repository, pending = get_artifact_repository(uri), [""]
    files = []
    while pending:
        # Not None for the root: MLflow's repository of Unity Catalog's default storage fails with it.
        for item in repository.list_artifacts(pending.pop()):
            if item.is_dir:
                pending.append(item.path)
            elif item.path != REGISTERED_MODEL_META_FILE_NAME:  # MLflow leaves it when a model is read
                files.append(f"{item.path} {item.file_size}")
    return digest_of_bytes("\n".join(sorted(files)).encode())


def digest_of_input(uri: str) -> str:
    """Digest of an input by its contents, or by names and sizes where it is remote and would have to be downloaded."""
    if not uri:
        return ""
    if path := local_path(uri):
        return digest_of_path(path) if path.exists() else uri
    try:
        if uri.startswith("runs:/"):
            run_id, name = RunsArtifactRepository.parse_runs_uri(uri)
            if record := outputs_of(mlflow.get_run(run_id)).get(name):
                return record["digest"]
        if uri.startswith("models:/") and "@" in uri:
            name, alias = uri.removeprefix("models:/").split("@")
            return f"models:/{name}/{mlflow.MlflowClient().get_model_version_by_alias(name, alias).version}"
        if uri.startswith("models:/"):
            return uri  # a logged model or a version does not change
        return f"{uri} {listing(uri)}"
    except UNREACHABLE as error:
        raise InputError(f"{uri}: can't be read: {explain(uri, error)}") from None


def cache_key(name: str, settings: Settings) -> str:
    """Digest of all that a step's outputs depend on."""
    values = settings.model_dump()
    parts = {
        "step": name,
        "parameters": {k: v for k, v in values.items() if k not in (*INPUTS, *PLACES)},
        "inputs": {k: digest_of_input(v) for k, v in values.items() if k in INPUTS},
        "sources": digest_of_sources(ROOT / "steps" / f"{name}.py"),
        "transform": digest_of_sources(file) if (file := file_of(str(values.get("transform", "")))) else "",
        "lock": digest_of_path(ROOT / "requirements.lock"),
    }
    return digest_of_bytes(json.dumps(parts, sort_keys=True).encode())
