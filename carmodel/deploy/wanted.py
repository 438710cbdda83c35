"""What a deployment is to be, what it is, and the error that says why it is not."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from carmodel.errors import InputError
from carmodel.parameters import Deploy
from carmodel.tracking.digests import ROOT

SETTINGS = {
    "aci": "backends/aci.yml",
    "aks": "backends/aks.yml",
    "online": "backends/online/deployment.yml",
    "kubernetes-online": "backends/kubernetes-online/deployment.yml",
}
"""The settings of a target's services, unless the user names others."""

DEFAULTS = Deploy.model_fields
"""What `Wanted.command` leaves out."""

Say = Callable[[str], None]
"""Tells people what goes on, a line at a time."""


class Wanted(NamedTuple):
    """What the user asks for.

    Attributes:
        target: local, docker, aci, aks, online or kubernetes-online.
        name: of the service or endpoint.
        model_uri: ``models:/NAME/VERSION``.
        settings_file: the service's settings, ``backends/…``.
        folder: for what is kept on this machine: a local server's log, a docker context.
        port: of a server on this machine.
        traffic: percent of the requests that a new version of an online endpoint gets until it is promoted.
        timeout: seconds that a deployment may take.
    """

    target: str
    name: str
    model_uri: str
    settings_file: Path
    folder: Path
    port: int
    traffic: int
    timeout: float

    @property
    def model(self) -> tuple[str, str]:
        """Name and version of the registered model."""
        name, _, version = self.model_uri.removeprefix("models:/").rpartition("/")
        return name, version

    def command(self, action: str, model_uri: str = "") -> str:
        """The command that does something else to this deployment, or the same with another version."""
        chosen = {"target": self.target, "name": self.name, "action": action}
        if self.target in ("local", "docker") and self.folder.parent != Path(DEFAULTS["folder"].default).resolve():
            chosen["folder"] = str(self.folder.parent)
        if action == "deploy":
            chosen["model_uri"] = model_uri or self.model_uri or "models:/NAME/VERSION"
            if self.target in ("local", "docker") and self.port != DEFAULTS["port"].default:
                chosen["port"] = str(self.port)
            if self.target in SETTINGS and self.settings_file != ROOT / SETTINGS[self.target]:
                chosen["settings_file"] = str(self.settings_file)
        words = " ".join(f"-P {name}={shlex.quote(value)}" for name, value in chosen.items())
        return f"mlflow run . -e deploy --env-manager local {words}"

    def next_commands(self) -> str:
        """How to look at what is there, go on or delete it: the last lines of an error."""
        what = "the endpoint with all its versions" if self.target.endswith("online") else "it"
        return (
            f"  what is there:  {self.command('status')}\n"
            f"  to go on, run this again; to delete {what}:  {self.command('delete')}"
        )

    def way_back(self, before: str, port: int = 0) -> str:
        """A line of an error: how to get the version that was there before; empty where there was none, or this one."""
        if before in ("", self.model_uri):
            return ""
        return f"  back to the version before:  {self._replace(port=port or self.port).command('deploy', before)}\n"


class Deployed(NamedTuple):
    """What is there.

    Attributes:
        state: in the service's own word.
        address: that photos are posted to; empty where there is none yet.
        headers: that a request needs, the key among them. Never printed, never logged.
        envelope: the key of a request's JSON under which the rows are: Azure ML's own server of MLflow models takes
            ``input_data``, MLflow's ``dataframe_split``.
        detail: a line for people.
        back: a line that says what leads back to what was there before; empty where there was nothing.
    """

    state: str
    address: str = ""
    headers: dict[str, str] = {}  # noqa: RUF012 (never changed)
    envelope: str = "dataframe_split"
    detail: str = ""
    back: str = ""

    def __repr__(self) -> str:
        """Show nothing of the headers: they hold a key."""
        return f"Deployed({self.state!r}, {self.address!r}, {self.detail!r})"


class DeployError(InputError):
    """The service's own message, what is there now, and the command that helps."""
