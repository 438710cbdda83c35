"""The smoke test: a photo, posted as clients post it, gets the answer that they would get."""

import base64
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from carmodel.data import sample
from carmodel.deploy.wanted import Deployed, DeployError

PATIENCE = Retry(
    8, read=1, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), allowed_methods=None, raise_on_status=False
)
"""A service that has just started may answer 502 or 503 for some seconds; one that does not answer at all is asked twice."""


def smoke(deployed: Deployed, photo: bytes) -> str:
    """Have a deployment answer for one photo.

    Args:
        deployed: with an address.
        photo: an image file.

    Returns:
        the answer in words.

    Raises:
        DeployError: it can't be reached, refuses the request, or its answer is no class and probability.
    """
    body = {deployed.envelope: {"columns": ["image"], "index": [0], "data": [[base64.b64encode(photo).decode()]]}}
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=PATIENCE))
        try:
            response = session.post(deployed.address, json=body, headers=deployed.headers, timeout=120)
        except requests.RequestException as error:
            raise DeployError(f"smoke test: {deployed.address} does not answer ({type(error).__name__})") from None
    if response.status_code != 200:
        said = " ".join(response.text.split())[:300]
        raise DeployError(f"smoke test: {deployed.address} answers {response.status_code}: {said}")
    answer = _first(response)
    if (
        answer.get("error")
        or not isinstance(answer.get("label"), str)
        or not 0 <= _number(answer.get("probability")) <= 1
    ):
        raise DeployError(f"smoke test: {deployed.address} answers a photo with {str(answer)[:300]}")
    took = response.elapsed.total_seconds()
    return f"a photo was answered with {answer['label']!r} ({answer['probability']:.3f}) in {1000 * took:.0f} ms"


def drawn_car() -> bytes:
    """A photo for the smoke test where the user has none: a drawn car, JPEG."""
    with TemporaryDirectory(prefix="carmodel-photo-") as folder:
        return next((sample.draw(Path(folder), classes=2, photos=4, seed=0) / "cars_test").glob("*.jpg")).read_bytes()


def _first(response: requests.Response) -> dict[str, Any]:
    """The first row: MLflow's server wraps the rows in ``predictions``, Azure ML's does not."""
    try:
        answer = response.json()
        row = (answer["predictions"] if isinstance(answer, dict) else answer)[0]
        return dict(row)
    except (ValueError, KeyError, IndexError, TypeError):
        raise DeployError(f"smoke test: no rows in the answer of {response.url}: {response.text[:300]}") from None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else -1.0
