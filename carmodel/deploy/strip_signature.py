"""A registered copy of a classifier without its signature, for which azureml-mlflow can write a scoring script.

For a model with a signature, azureml-mlflow 1.62 writes a sample frame with its columns. It fails for columns of any type and
for lists (``create_col_spec_sample_io`` in ``azureml/mlflow/deploy/_mms/utils.py``). For a model without a signature, its
script passes the frame on unchanged. Nothing is lost, because the classifier checks each row itself.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from carmodel.deploy.messages import say

SOURCE_TAG = "copy_of"
SUFFIX = "-webservice"


def strip_signature(model_uri: str) -> str:
    """Return the copy of ``models:/NAME/VERSION`` without its signature. Create it if there is none yet.

    The artifacts of the copy belong to the active run. In the run that packaged the version they would make that run look
    changed, so that `main` would not reuse it.

    Returns:
        ``models:/NAME-webservice/VERSION``, with a version number of its own.
    """
    name, _, version = model_uri.removeprefix("models:/").rpartition("/")
    client = MlflowClient()
    if copy_version := _find_copy(client, name + SUFFIX, model_uri):
        return f"models:/{name}{SUFFIX}/{copy_version}"
    say(f"copying {model_uri} for the web service, as {name}{SUFFIX}")
    with TemporaryDirectory(prefix="carmodel-") as scratch:
        folder = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=scratch))
        model = Model.load(str(folder / MLMODEL_FILE_NAME))
        model.signature = None
        model.save(str(folder / MLMODEL_FILE_NAME))
        mlflow.log_artifacts(str(folder), path := f"webservice-{version}")
    _create_registered_model(client, name + SUFFIX)
    # `log_artifacts` opens a run if none is active.
    run, source = mlflow.last_active_run(), mlflow.get_artifact_uri(path)
    run_id = run.info.run_id if run else None
    copy = client.create_model_version(name + SUFFIX, source, run_id, tags={SOURCE_TAG: model_uri})
    return f"models:/{name}{SUFFIX}/{copy.version}"


def original_of(name: str, version: str) -> str:
    """Return the URI of the version that a registered model was copied from, or empty if it is no copy."""
    return (
        str(MlflowClient().get_model_version(name, version).tags.get(SOURCE_TAG, "")) if name.endswith(SUFFIX) else ""
    )


def _find_copy(client: MlflowClient, name: str, model_uri: str) -> str | None:
    versions = client.search_model_versions(f"name = '{name}'")
    return next((str(version.version) for version in versions if version.tags.get(SOURCE_TAG) == model_uri), None)


def _create_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        client.create_registered_model(name)
