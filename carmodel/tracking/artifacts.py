"""Read artifacts by URI: download them, or list their names and sizes."""

import atexit
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import mlflow
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME, ModelsArtifactRepository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

from carmodel.errors import InputError
from carmodel.service_errors import download_errors, explain_uri
from carmodel.tracking.digests import BYTECODE, digest_of_bytes
from carmodel.tracking.paths import local_path


def fetch(uri: str) -> Path:
    """Download an artifact and return its path. Local files are not copied, and downloads are deleted with this process.

    Args:
        uri: a plain path or any URI that MLflow can download (``runs:/``, ``models:/``, ``dbfs:/``, ``s3://`` …).

    Raises:
        InputError: it cannot be downloaded. The message has MLflow's reason.
    """
    if path := local_path(uri):
        if not path.exists():
            here = "" if ":/" in uri or uri.startswith(("/", "~")) else f" in {Path.cwd()}"
            raise InputError(f"{uri}: no such file or directory{here}")
        return path
    try:
        # MLflow copies the artifacts of a `runs:/` URI, even from a local directory. It does not copy the directory itself.
        source = _underlying(uri)
        if _is_local(source):
            return Path(download_artifacts(source))
        atexit.register(shutil.rmtree, folder := mkdtemp(prefix="carmodel-download-"), ignore_errors=True)
        return Path(download_artifacts(source, dst_path=folder))
    except download_errors() as error:
        raise InputError(f"{uri}: cannot be downloaded: {explain_uri(uri, error)}") from None


def _underlying(uri: str) -> str:
    if not uri.startswith("runs:/") or not _run_has(uri):
        return uri
    return RunsArtifactRepository.get_underlying_uri(uri)


def _is_local(uri: str) -> bool:
    """Return whether MLflow need not download an artifact. The files of a registry may be on this machine."""
    if uri.startswith("models:/"):
        name, _ = ModelsArtifactRepository.split_models_uri(uri)
        with suppress(MlflowException):  # a registry need not tell where its files are
            uri = ModelsArtifactRepository.get_underlying_uri(name)
    return local_path(uri) is not None


def _run_has(uri: str) -> bool:
    """Return whether a ``runs:/`` artifact is in the run's own directory. MLflow 3 keeps logged models elsewhere."""
    run_id, path = RunsArtifactRepository.parse_runs_uri(uri)
    parent = str(Path(path).parent) if "/" in path else None
    return any(item.path == path for item in mlflow.MlflowClient().list_artifacts(run_id, parent))


def listing(uri: str) -> str:
    """Return the digest of the file names and sizes under a URI. This is cheap for remote files, too.

    Bytecode does not count. Python writes it when it loads a model from a local directory, since a model has its code.
    """
    if uri.startswith("runs:/"):
        run_id, _, path = uri.removeprefix("runs:/").partition("/")
        repository = get_artifact_repository(mlflow.get_run(run_id).info.artifact_uri)
        pending = [path]
    else:
        repository, pending = get_artifact_repository(uri), [""]
    files = []
    while pending:
        # An empty path for the root, because MLflow's repository for Unity Catalog's default storage fails with None.
        for item in repository.list_artifacts(pending.pop()):
            if item.is_dir and Path(item.path).name == BYTECODE:
                continue
            if item.is_dir:
                pending.append(item.path)
            elif item.path != REGISTERED_MODEL_META_FILE_NAME:  # MLflow writes this file when it reads a model
                files.append(f"{item.path} {item.file_size}")
    return digest_of_bytes("\n".join(sorted(files)).encode())
