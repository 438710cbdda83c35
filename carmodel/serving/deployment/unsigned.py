"""A registered copy of a classifier without its signature, which azureml-mlflow can make a scoring script for.

For a model with a signature azureml-mlflow 1.62 makes a sample frame of its columns, and can't for columns of any type or lists
(``create_col_spec_sample_io`` in ``azureml/mlflow/deploy/_mms/utils.py``); for one without, its script hands the frame on as it
came. The classifier checks each row itself, so nothing is lost.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from carmodel.errors import InputError
from carmodel.serving.deployment.wanted import Say

SOURCE_TAG = "copy_of"
SUFFIX = "-webservice"


def unsigned(model_uri: str, say: Say) -> str:
    """Return ``models:/NAME-webservice/VERSION``, the copy of ``models:/NAME/VERSION``; it is made where there is none yet.

    Raises:
        InputError: the version was not made by a run, which the copy is kept in.
    """
    name, _, version = model_uri.removeprefix("models:/").rpartition("/")
    client = MlflowClient()
    source = client.get_model_version(name, version)
    if made := _made(client, name + SUFFIX, model_uri):
        return f"models:/{name}{SUFFIX}/{made}"
    if not source.run_id:
        raise InputError(f"{model_uri} was not made by a run: register it with package_pyfunc")
    say(f"copying {model_uri} for the web service, as {name}{SUFFIX}")
    with TemporaryDirectory(prefix="carmodel-") as scratch:
        folder = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=scratch))
        model = Model.load(str(folder / MLMODEL_FILE_NAME))
        model.signature = None
        model.save(str(folder / MLMODEL_FILE_NAME))
        # Artifacts can't be written twice: a copy that was cut off is left behind.
        run, path = client.get_run(source.run_id), f"webservice-{model.model_uuid}-{folder.stat().st_mtime_ns:x}"
        client.log_artifacts(run.info.run_id, str(folder), path)
    _make_model(client, name + SUFFIX)
    copy = client.create_model_version(
        name + SUFFIX, f"{run.info.artifact_uri}/{path}", run.info.run_id, tags={SOURCE_TAG: model_uri}
    )
    return f"models:/{name}{SUFFIX}/{copy.version}"


def _made(client: MlflowClient, name: str, model_uri: str) -> str | None:
    versions = client.search_model_versions(f"name = '{name}'")
    return next((str(version.version) for version in versions if version.tags.get(SOURCE_TAG) == model_uri), None)


def _make_model(client: MlflowClient, name: str) -> None:
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        client.create_registered_model(name)
