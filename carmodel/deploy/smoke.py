"""The smoke test: post one photo as clients do, and check the answer."""

import base64
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from carmodel.data import sample
from carmodel.deploy.status import DeployError, Status
from carmodel.serving.scoring_server import HOST

RETRIES = Retry(
    8, read=1, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), allowed_methods=None, raise_on_status=False
)
"""A service that has just started may answer 502 or 503 for some seconds. One that does not answer is asked twice."""


def smoke_test(deployed: Status, photo: bytes) -> str:
    """Send one photo to a deployment.

    Args:
        deployed: a status with a URL.
        photo: contents of an image file.

    Returns:
        A line with the label, its probability and the time.

    Raises:
        DeployError: the service cannot be reached, refuses the request, or answers without a label and a probability.
    """
    rows = {"columns": ["image"], "index": [0], "data": [[base64.b64encode(photo).decode()]]}
    with requests.Session() as session:
        session.trust_env = urlsplit(deployed.url).hostname != HOST  # no proxy for a server of this machine
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=RETRIES))
        try:
            response = session.post(deployed.url, json={deployed.rows_key: rows}, headers=deployed.headers, timeout=120)
        except requests.RequestException as error:
            raise DeployError(f"smoke test: {deployed.url} does not answer ({type(error).__name__})") from None
    if response.status_code != 200:
        message = " ".join(response.text.split())[:300]
        raise DeployError(f"smoke test: {deployed.url} answers {response.status_code}: {message}")
    answer = _first_row(response)
    label, probability = answer.get("label"), answer.get("probability")
    valid = isinstance(label, str) and isinstance(probability, int | float) and 0 <= probability <= 1
    if answer.get("error") or not valid:
        raise DeployError(f"smoke test: {deployed.url} answers a photo with {str(answer)[:300]}")
    milliseconds = 1000 * response.elapsed.total_seconds()
    return f"a photo was answered with {label!r} ({probability:.3f}) in {milliseconds:.0f} ms"


def drawn_car() -> bytes:
    """Return a photo for the smoke test: a drawn car, as JPEG."""
    with TemporaryDirectory(prefix="carmodel-photo-") as folder:
        return next((sample.draw(Path(folder), classes=2, photos=4, seed=0) / "cars_test").glob("*.jpg")).read_bytes()


def _first_row(response: requests.Response) -> dict[str, Any]:
    """Return the first row. MLflow's server wraps the rows in ``predictions``, Azure ML's does not."""
    try:
        answer = response.json()
        return dict((answer["predictions"] if isinstance(answer, dict) else answer)[0])
    except (ValueError, KeyError, IndexError, TypeError):
        raise DeployError(f"smoke test: no rows in the answer of {response.url}: {response.text[:300]}") from None
