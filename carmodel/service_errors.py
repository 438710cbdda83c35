"""What a tracking service, a registry or a storage account has refused, in words and without credentials."""

import re

import mlflow
from azure.core.exceptions import AzureError, ClientAuthenticationError
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, ErrorCode
from requests import RequestException

ADVICE = {
    401: "the credentials are wrong or have expired: sign in again, or renew the secret or token",
    403: "this identity may not do that: give it a role that allows it (README, Azure ML and Databricks)",
    404: "there is no such thing: check MLFLOW_TRACKING_URI, the registry and the addresses given",
    429: "too many requests, also after waiting: try again later",
}
AGAIN = "when that is put right, give the same command again: finished steps are reused"
# A signed address, or one with a token or a password, is a credential.
SECRETS = re.compile(
    r"\?[^\s'\"<>)]*(?:sig|token|X-Amz-[A-Za-z]+)=[^\s'\"<>)]*|(?<=Bearer )\S+"
    r"|(?<=http://)[^/\s'\"<>]+(?=@)|(?<=https://)[^/\s'\"<>]+(?=@)",
    re.IGNORECASE,
)


def without_secrets(text: object) -> str:
    """A message or address as it may be shown: credentials in it are left out."""
    return SECRETS.sub("…", str(text))


def has_no_such_call(error: MlflowException) -> bool:
    """Whether a service, or the client that speaks to it, has refused since it lacks a part of MLflow's API."""
    return error.error_code == ErrorCode.Name(ENDPOINT_NOT_FOUND) or "is unsupported for" in str(error)


def explain(error: BaseException) -> str | None:
    """The error in words, with what to do; None for an error that no service has made."""
    status, said = _status_and_message(error)
    if status is None:
        return None
    advice = ADVICE.get(status, "")
    if not advice and status >= 500:
        advice = "the service failed, also after retries: try again later"
    elif not status:
        advice = "no answer, also after retries: check the network and the address"
    answered = f" answered {status}" if status else " can't be reached"
    lines = [f"{mlflow.get_tracking_uri()}{answered}: {said}", *([advice] if advice else []), AGAIN]
    return without_secrets("\n  ".join(lines))


def _status_and_message(error: BaseException) -> tuple[int | None, str]:
    """HTTP status, 0 where there was no answer and None where no service was asked, and the service's own words."""
    if isinstance(error, RestException):
        own = error.json.get("Error") or {}  # Azure ML's
        return error.get_http_status_code(), own.get("Message") or error.json.get("message") or str(error)
    if isinstance(error, MlflowException):
        return _status_in(str(error), error.get_http_status_code()), str(error)
    if isinstance(error, AzureError):
        status = getattr(error, "status_code", None) or (401 if isinstance(error, ClientAuthenticationError) else 0)
        return status, error.message.splitlines()[0]
    if isinstance(error, (RequestException, TimeoutError)):
        return 0, str(error)
    if type(error) is Exception:  # as azureml-mlflow's artifact client raises them
        return 409 if "already exists" in str(error) else 400, str(error)
    return None, ""


def _status_in(said: str, code: int) -> int | None:
    """The status of an error that MLflow's client has made of an answer, or of none: it is in the text alone."""
    if " failed with error code " in said:
        return code
    forms = r"too many (\d+) error responses|\b(\d{3}) (?:Client|Server) Error|failed with status code (\d+)"
    if found := re.search(forms, said):
        return int(found[1] or found[2] or found[3])
    return 0 if said.startswith("API request to") or "failures occurred while" in said else None
