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

from carmodel.deploy.wanted import Say

SOURCE_TAG = "copy_of"
SUFFIX = "-webservice"


def strip_signature(model_uri: str, say: Say) -> str:
    """Return ``models:/NAME-webservice/VERSION``, the copy of ``models:/NAME/VERSION``; it is made where there is none yet.

    The copy is kept in the active run: one of the run that packaged the version would make that one look changed.
    """
    name, _, version = model_uri.removeprefix("models:/").rpartition("/")
    client = MlflowClient()
    if made := _made(client, name + SUFFIX, model_uri):
        return f"models:/{name}{SUFFIX}/{made}"
    say(f"copying {model_uri} for the web service, as {name}{SUFFIX}")
    with TemporaryDirectory(prefix="carmodel-") as scratch:
        folder = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=scratch))
        model = Model.load(str(folder / MLMODEL_FILE_NAME))
        model.signature = None
        model.save(str(folder / MLMODEL_FILE_NAME))
        mlflow.log_artifacts(str(folder), path := f"webservice-{version}")
    _make_model(client, name + SUFFIX)
    # The run is the active one, since `log_artifacts` opens one where there is none.
    run, source = mlflow.last_active_run(), mlflow.get_artifact_uri(path)
    run_id = run.info.run_id if run else None
    copy = client.create_model_version(name + SUFFIX, source, run_id, tags={SOURCE_TAG: model_uri})
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
