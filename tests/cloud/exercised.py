"""Which requests real clients have sent to stand-ins: ``CARMODEL_EXERCISED=FILE pytest tests/cloud`` adds them to a file."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tests.cloud.stand_in import Sent, Wire

# What differs from run to run, in the order in which it is replaced.
NAMES = [
    (r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/[^/]+/workspaces/[^/]+", "/{workspace}"),
    (r"^/(azureml/ExperimentRun|root|catalog)/.*", r"/\1/{path}"),
    (r"/(Runs|LoggedModels)/([^/]+)/artifacts(/.*)?$", r"/\1/\2/artifacts/{path}"),
    (r"/directories/Models/.*", "/directories/Models/{path}"),
    (r"m-[0-9a-f]{32}", "{model}"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "{id}"),
    (r"[0-9a-f]{32}", "{run}"),
    (r"/(experiments|experimentids|Artifacts)/\d+", r"/\1/{experiment}"),
]


def pattern(sent: Sent) -> str:
    """A request's method and path, with what differs from run to run replaced."""
    path = sent.path
    for found, name in NAMES:
        path = re.sub(found, name, path)
    return f"{sent.method} {path}"


def note(services: Mapping[str, Wire]) -> None:
    """Add the requests that services got to the file that the environment names, if it does."""
    if file := os.environ.get("CARMODEL_EXERCISED"):
        path = Path(file)
        known = set(path.read_text().splitlines()) if path.exists() else set()
        known |= {f"{service}: {pattern(sent)}" for service, wire in services.items() for sent in wire.sent}
        path.write_text("\n".join(sorted(known)) + "\n")
