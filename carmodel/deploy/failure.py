"""A cloud's failure in words: its own message, what it means, and the command that helps."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from mlflow.exceptions import MlflowException, RestException

from carmodel.deploy.wanted import DeployError, Wanted
from carmodel.errors import InputError
from carmodel.service_errors import without_secrets

MEANINGS = {
    401: "the credentials are missing, wrong or expired: sign in again (az login), or set AZURE_TENANT_ID, AZURE_CLIENT_ID and "
    "AZURE_CLIENT_SECRET",
    403: "this identity may not do that: it needs the role AzureML Data Scientist on the workspace",
    404: "there is no such workspace, model version or service: check MLFLOW_TRACKING_URI, model_uri and name",
    409: "another operation on it is still running, or it is in the way: look at it, then run this again",
    429: "the service is asked too often, or the quota is used up: wait, then run this again",
}
NO_ANSWER = (ServiceRequestError, ServiceResponseError, requests.RequestException, TimeoutError, ConnectionError)
UNAVAILABLE = "the service is not available just now: run this again later; what is done already is not done twice"


@contextmanager
def explained(wanted: Wanted, doing: str) -> Iterator[None]:
    """Turn whatever a client raises in this block into a `DeployError`.

    Args:
        wanted: the deployment.
        doing: what was done: "creating endpoint cars".
    """
    try:
        yield
    except InputError:
        raise
    except (AzureError, MlflowException, requests.RequestException, TimeoutError, ConnectionError) as error:
        raise DeployError(explain(error, wanted, doing)) from error


def explain(error: BaseException, wanted: Wanted, doing: str) -> str:
    """The failure in words, with the service's own message first and the next commands last."""
    status = status_of(error)
    if status >= 500 or (not status and any(isinstance(cause, NO_ANSWER) for cause in causes(error))):
        means = UNAVAILABLE
    else:
        refuses = f"the {'service' if status else 'client'} refuses what it was sent: check the parameters"
        means = MEANINGS.get(status, refuses)
    said = f"{status}: {message_of(error)}" if status else message_of(error)
    return f"{doing}: {without_secrets(said)}\n  {means}\n{wanted.next_commands()}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it: clients wrap the service's answer, some more than once."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int:
    """HTTP status that the service answered with; 0 where it did not answer."""
    for cause in causes(error):
        if isinstance(cause, RestException):
            return cause.get_http_status_code()
        status = getattr(cause, "status_code", None) or getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        if isinstance(cause, ClientAuthenticationError):
            return 401
        if found := re.search(r"(?:Response Code|status code|HTTP):? ?(\d{3})\b", str(cause)):
            return int(found[1])
    return 0


def message_of(error: BaseException) -> str:
    """What the service said of it, in a few lines at most; of an answer without words, what the client said."""
    for cause in causes(error):
        if isinstance(cause, HttpResponseError) and cause.error is not None and cause.error.message:
            return _short(cause.error.message)
        response = getattr(cause, "response", None)
        if response is not None and (said := _in_body(response)):
            return _short(said)
        if found := re.search(r"(?s)(?:Content|Error message): b?['\"]?(\{.*\})", str(cause)):
            return _short(_words(found[1]) or found[1])
    return _short(str(next(reversed(list(causes(error))))) or type(error).__name__)


def _in_body(response: Any) -> str:
    try:
        return _words(response.text() if callable(response.text) else response.text)
    except Exception:  # a body that was never read, or is not text
        return ""


def _words(text: str) -> str:
    """The message in an error of Azure: ``{"error": {"code", "message"}}``, or one that is not wrapped."""
    try:
        body = json.loads(text)
    except ValueError:
        return ""
    inner = body.get("error", body) if isinstance(body, dict) else {}
    return str(inner.get("message", "")) if isinstance(inner, dict) else str(inner)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 500 else f"{text[:500]} …"
