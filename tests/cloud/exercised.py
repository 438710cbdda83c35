"""Which requests real clients have sent to stand-ins: ``CARMODEL_EXERCISED=FILE pytest tests/cloud`` adds them to a file."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

# What differs from run to run, in the order in which it is replaced.
NAMES = [
    (r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/[^/]+/workspaces/[^/]+", "/{workspace}"),
    (r"^/(azureml/ExperimentRun|root|catalog|cars|azureml/LocalUpload|snapshots)/.*", r"/\1/{path}"),
    (r"^/(dbfs|code)[-/].*", r"/\1/{path}"),
    (r"/(Runs|LoggedModels)/([^/]+)/artifacts(/.*)?$", r"/\1/\2/artifacts/{path}"),
    (r"/directories/Models/.*", "/directories/Models/{path}"),
    (r"m-[0-9a-f]{32}", "{model}"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "{id}"),
    (r"[0-9a-f]{32,64}", "{id}"),
    (r"/Default_\d+_[0-9a-f]+|/[a-z]+_[a-z]+_[a-z0-9]{10}(?=/|$)", "/{run}"),
    (r"/LocalUpload/[0-9a-f]{8}/", "/LocalUpload/{id}/"),
    (r"/operations/op-\d+", "/operations/{id}"),
    (r"^/photos/.*", "/photos/{path}"),
    (r"/(experiments|experimentids|Artifacts)/\d+", r"/\1/{experiment}"),
]


def pattern(host: str, method: str, path: str) -> str:
    """A request's host, method and path, with what differs from run to run replaced."""
    for found, name in NAMES:
        path = re.sub(found, name, path)
    return f"{host.partition(':')[0]}: {method} {path}"


def note(patterns: Iterable[str]) -> None:
    """Add requests that a service got to the file that the environment names, if it does."""
    if file := os.environ.get("CARMODEL_EXERCISED"):
        path = Path(file)
        known = set(path.read_text().splitlines()) if path.exists() else set()
        path.write_text("\n".join(sorted(known | set(patterns))) + "\n")
