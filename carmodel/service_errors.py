"""Explain the errors of tracking servers, registries, storage accounts and clouds, and hide the credentials in them.

Clients wrap the error of a service in exceptions of their own, sometimes twice. The functions here read the whole chain of
causes. They use attributes and types where a client has them, and otherwise the text of the error.

This module imports no cloud client. An error can come from Azure only if `azure.core` has already been imported.
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, ErrorCode
from requests import RequestException

NO_ANSWER = 0
"""Used instead of an HTTP status if a service did not answer."""
ADVICE = {
    NO_ANSWER: "there was no answer: check the network and the URI, then run this again",
    401: "the credentials are missing, wrong or expired: sign in again (az login, databricks auth login), or renew the secret "
    "or token",
    403: "this identity lacks a permission: give it a role that allows this, such as AzureML Data Scientist",
    404: "there is no such workspace, run, model version or service: check MLFLOW_TRACKING_URI, the names and the URIs",
    409: "another operation is still running, or the name is in use: check its status, then run this again",
    429: "there were too many requests, or the quota is used up: wait, then run this again",
}
UNAVAILABLE = "the service is not available: run this again later"
RERUN = "once this is fixed, run the same command again: finished steps are reused"
MAX_LENGTH = 500
"""Characters of a service's message that are shown."""

# A signed URL, a token, and the user name and password in a URL are credentials.
_SECRETS = re.compile(
    r"\?[^\s'\"<>)]*(?:sig|token|X-Amz-[A-Za-z]+)=[^\s'\"<>)]*|(?<=Bearer )\S+"
    r"|(?<=http://)[^/\s'\"<>]+(?=@)|(?<=https://)[^/\s'\"<>]+(?=@)"
    # A database's URI, such as postgresql://USER:PASSWORD@HOST. Without a colon it may be abfss://CONTAINER@ACCOUNT.
    r"|(?<=://)[^/:\s'\"<>]+:[^/\s'\"<>]+(?=@)",
    re.IGNORECASE,
)
# Where MLflow, urllib3, requests and azureml-mlflow put the status into the text alone.
_STATUS = re.compile(
    r"(?:Response Code|status code|error code|HTTP):? ?(\d{3})\b"
    r"|too many (\d{3}) error responses|\b(\d{3}) (?:Client|Server) Error"
)
_BODY = re.compile(r"(?s)(?:Content|Error message): b?['\"]?(\{.*\})")


def without_secrets(text: object) -> str:
    """Return a message or URI without the credentials in it."""
    return _SECRETS.sub("…", str(text))


def is_unsupported(error: MlflowException) -> bool:
    """Return whether a service or its client does not support the part of MLflow's API that was called."""
    # MLflow's clients of Unity Catalog and of Databricks' workspace registry have no error code for it.
    return error.error_code == ErrorCode.Name(ENDPOINT_NOT_FOUND) or "is unsupported for" in str(error)


def is_missing_deployment(error: MlflowException) -> bool:
    """Return whether azureml-mlflow's deployment client reports that there is no web service of the given name."""
    return error.message.startswith("No deployment with name")  # it gives neither a cause nor an error code


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    status = status_of(error)
    return isinstance(error, OSError) or (status is not None and (status in (NO_ANSWER, 429) or status >= 500))


def is_service_error(error: BaseException) -> bool:
    """Return whether a service or its client reported the error, so that it is not a bug of this project."""
    if isinstance(error, _azure("AzureError")):
        return True
    return (type(error) is Exception or isinstance(error, client_errors())) and status_of(error) is not None


def explain(error: BaseException, doing: str = "") -> str:
    """Return the message of the service and what to do about it.

    Args:
        error: what a client raised.
        doing: the operation that failed, such as "creating endpoint cars". Without it, the message names the tracking server.
    """
    status = status_of(error)
    if doing:
        problem = f"{doing}: {status}" if status else doing
    elif status is None:
        problem = mlflow.get_tracking_uri()
    else:
        problem = f"{mlflow.get_tracking_uri()} {f'answered {status}' if status else 'cannot be reached'}"
    return without_secrets(f"{problem}: {message_of(error)}\n  {_advice(status)}")


def explain_uri(uri: str, error: Exception) -> str:
    """Return why MLflow cannot download an artifact, and what to do where MLflow's own message does not say it."""
    if isinstance(error, ImportError):
        return f"{error}; MLflow needs that package for such URIs: install it with pip"
    if "@" in uri and isinstance(error, MlflowException) and is_unsupported(error):
        return "this registry has no aliases; name the version, models:/NAME/VERSION"
    if uri.startswith("http"):
        return "not an artifact of an MLflow server; download it and give its directory"
    if uri.startswith("abfss:") and not urlsplit(uri).path.strip("/"):
        return "MLflow cannot read a whole container: give a directory in it"
    if isinstance(error, _azure("AzureError")):
        return " ".join(without_secrets(error).split())
    return str(error)


def download_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of MLflow for a URI that is wrong, is unreachable, or needs a package that is not installed."""
    return (MlflowException, OSError, ImportError, ValueError, NotImplementedError, *_azure("AzureError"))


def client_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that the clients of services raise."""
    return (MlflowException, RequestException, TimeoutError, ConnectionError, *_azure("AzureError"))


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the service's answer, `NO_ANSWER`, or None if no service was involved."""
    for cause in _causes(error):
        if status := _own_status(cause):
            return status
    unanswered = (
        RequestException,
        TimeoutError,
        ConnectionError,
        *_azure("ServiceRequestError", "ServiceResponseError", "IncompleteReadError"),
    )
    # MLflow lists the failures of several artifacts as text.
    if any(isinstance(cause, unanswered) or "failures occurred while" in str(cause) for cause in _causes(error)):
        return NO_ANSWER
    if type(error) is Exception:  # azureml-mlflow's artifact client raises it
        return 409 if "already exists" in str(error) else 400
    return None


def _own_status(error: BaseException) -> int | None:
    """Return the HTTP status in one error, without its causes."""
    if isinstance(error, RestException):
        return error.get_http_status_code()
    for holder in (error, getattr(error, "response", None)):
        if isinstance(status := getattr(holder, "status_code", None), int):
            return status
    if isinstance(error, _azure("ClientAuthenticationError")):
        return 401
    found = _STATUS.search(str(error))
    return int(found[1] or found[2] or found[3]) if found else None


def message_of(error: BaseException) -> str:
    """Return what the service said, in at most `MAX_LENGTH` characters. If it said nothing, return what the client said."""
    for cause in _causes(error):
        if isinstance(cause, RestException):
            azure = cause.json.get("Error") or {}
            return _shorten(azure.get("Message") or cause.json.get("message") or str(cause))
        if message := getattr(getattr(cause, "error", None), "message", ""):  # azure.core's HttpResponseError
            return _shorten(str(message))
        if (response := getattr(cause, "response", None)) is not None and (message := _message_in_response(response)):
            return _shorten(message)
        if found := _BODY.search(str(cause)):
            return _shorten(_message_in_json(found[1]) or found[1])
    *_, innermost = _causes(error)
    return _shorten(str(innermost) or type(error).__name__)


def _advice(status: int | None) -> str:
    if status is None:
        return "the client refuses the request: check the parameters"
    if status >= 500:
        return UNAVAILABLE
    return ADVICE.get(status, "the service refuses the request: check the parameters")


def _azure(*names: str) -> tuple[type[Exception], ...]:
    """Return exception types of azure.core, or none if it has not been imported."""
    module = sys.modules.get("azure.core.exceptions")
    return tuple(getattr(module, name) for name in names) if module else ()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _message_in_response(response: Any) -> str:
    try:
        return _message_in_json(response.text() if callable(response.text) else response.text)
    except Exception:  # the body was never read, or is not text
        return ""


def _message_in_json(text: str) -> str:
    """Return the message of Azure's ``{"error": {"code", "message"}}``, with or without its wrapper."""
    try:
        body = json.loads(text)
    except ValueError:
        return ""
    inner = body.get("error", body) if isinstance(body, dict) else {}
    return str(inner.get("message", "")) if isinstance(inner, dict) else str(inner)


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} …"
