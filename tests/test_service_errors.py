"""What errors of services mean, and the advice that they get."""

import pytest
import requests
from azure.ai.ml.exceptions import ValidationException
from azure.core.exceptions import HttpResponseError, ServiceRequestError
from mlflow.exceptions import MlflowException, RestException

from carmodel.service_errors import explain, is_service_error, is_transient, status_of, without_secrets


def wrapped(cause: Exception) -> Exception:
    """Wrap an error as MLflow's client does."""
    error = MlflowException("API request to https://host failed")
    error.__cause__ = cause
    return error


def answered(status: int) -> HttpResponseError:
    error = HttpResponseError("refused")
    error.status_code = status
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}), 404),
        (answered(409), 409),
        (wrapped(answered(403)), 403),
        (MlflowException("Response Code: 401\nHeaders: {}\nContent: b'{}'"), 401),
        (MlflowException("API request to endpoint /x failed with error code 404 != 200"), 404),
        (requests.exceptions.RetryError("too many 503 error responses"), 503),
        (requests.ConnectionError("refused"), 0),
        (wrapped(requests.ReadTimeout("late")), 0),
        (ServiceRequestError("no route"), 0),
        (MlflowException("no such flavor"), None),
        (ValueError("a defect of this program"), None),
    ],
)
def test_the_status_is_found_wherever_the_client_keeps_it(error: Exception, status: int | None) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (answered(401), "creating cars: 401: refused\n  the credentials are missing, wrong or expired"),
        (answered(403), "give it a role that allows this, such as AzureML Data Scientist"),
        (answered(404), "check MLFLOW_TRACKING_URI"),
        (answered(409), "another operation is still running"),
        (answered(400), "the service refuses the request: check the parameters"),
        (answered(503), "the service is not available: run this again later"),
        (ServiceRequestError("no route"), "creating cars: no route\n  there was no answer: check the network"),
        (
            ValidationException(message="no such size", no_personal_data_message="no such size"),
            "no such size\n  the client refuses the request",
        ),
    ],
)  # fmt: skip
def test_the_explanation_has_the_service_s_message_and_advice(error: Exception, text: str) -> None:
    assert text in explain(error, "creating cars")


def test_the_message_comes_from_the_body_of_the_answer() -> None:
    response = requests.Response()
    response.status_code = 403
    response._content = b'{"error": {"code": "Forbidden", "message": "No such right."}}'
    error = wrapped(requests.HTTPError("403 Client Error", response=response))
    assert explain(error, "creating cars").startswith("creating cars: 403: No such right.\n")


def test_a_defect_is_not_a_service_error() -> None:
    assert not is_service_error(ValueError("a defect"))
    assert not is_service_error(MlflowException("no such flavor"))
    assert is_service_error(wrapped(answered(403)))


@pytest.mark.parametrize(("status", "transient"), [(429, True), (500, True), (503, True), (401, False), (404, False)])
def test_some_refusals_are_worth_another_try(status: int, transient: bool) -> None:
    assert is_transient(answered(status)) == transient
    assert is_transient(ConnectionResetError())


def test_credentials_are_left_out() -> None:
    text = "GET https://me:word@host/x?sig=secret&a=b failed with Bearer abc.def"
    assert without_secrets(text) == "GET https://…@host/x… failed with Bearer …"
    assert without_secrets("mysql+pymysql://me:word@db/mlflow") == "mysql+pymysql://…@db/mlflow"
    assert without_secrets("abfss://photos@account.dfs.core.windows.net/cars:2") == (
        "abfss://photos@account.dfs.core.windows.net/cars:2"
    )
