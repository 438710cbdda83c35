"""Failures of deployments in words, and the commands that end them."""

import re
from pathlib import Path

import pytest
import requests
from azure.ai.ml.exceptions import ValidationException
from azure.core.exceptions import ServiceRequestError
from mlflow.exceptions import MlflowException, RestException

from carmodel.deploy.failure import explain
from carmodel.deploy.wanted import SETTINGS, Wanted
from carmodel.tracking.digests import ROOT

BASE = "mlflow run . -e deploy --env-manager local"


def wanted(target: str = "online", **changed: object) -> Wanted:
    settings = ROOT / SETTINGS.get(target, "")
    folder = Path("deployed").resolve() / f"{target}-cars"
    return Wanted(target, "cars", "models:/cars/1", settings, folder, 5001, 10, 60.0)._replace(**changed)


def wrapped(cause: Exception) -> Exception:
    """As MLflow's client raises it."""
    error = MlflowException("API request to https://host failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ServiceRequestError("no route"), "the service is not available just now"),
        (requests.ConnectionError("refused"), "the service is not available just now"),
        (wrapped(requests.ReadTimeout("late")), "the service is not available just now"),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}), "404: .*(?s:.*)no such workspace"),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), "403: .*(?s:.*)AzureML Data Scientist"),
        (
            ValidationException(message="no such size", no_personal_data_message="no such size"),
            "no such size\n  the client refuses what it was sent",
        ),
        (MlflowException("GET https://me:word@host failed"), "GET https://…@host failed"),
    ],
)  # fmt: skip
def test_a_failure_says_whose_it_is_and_what_helps(error: Exception, words: str) -> None:
    said = explain(error, wanted(), "deploying cars")
    assert re.search(words, said), said
    assert f"{BASE} -P target=online -P name=cars -P action=status" in said
    assert f"{BASE} -P target=online -P name=cars -P action=delete" in said


def test_a_command_repeats_what_the_user_has_chosen_and_nothing_else(tmp_path: Path) -> None:
    given = f"{BASE} -P target=local -P name=cars"
    assert wanted("local").command("status") == f"{given} -P action=status"
    assert wanted("local").command("deploy") == f"{given} -P action=deploy -P model_uri=models:/cars/1"
    assert wanted("local", model_uri="").command("deploy").endswith("-P model_uri=models:/NAME/VERSION")
    elsewhere = wanted("local", folder=tmp_path / "my cars" / "local-cars", port=6000)
    assert elsewhere.command("delete") == f"{given} -P action=delete -P folder='{tmp_path}/my cars'"
    assert elsewhere.command("deploy", "models:/cars/2").endswith("-P model_uri=models:/cars/2 -P port=6000")
    assert wanted("aci").command("deploy").endswith("-P model_uri=models:/cars/1")
    file = tmp_path / "aci.yml"
    assert wanted("aci", settings_file=file).command("deploy").endswith(f"-P settings_file={file}")
    assert "settings_file" not in wanted("aci", settings_file=file).command("delete")
