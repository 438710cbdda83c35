"""The parameters of the entry point deploy."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from carmodel.parameters.common import ROOT, Settings

# The settings of a target's services, unless the user names another file.
SETTINGS_FILES = {
    "aci": "backends/aci.yml",
    "aks": "backends/aks.yml",
    "online": "backends/online/deployment.yml",
    "kubernetes-online": "backends/kubernetes-online/deployment.yml",
}


class Deploy(Settings):
    """Deploy a registered classifier and test it with one photo, or show, promote, roll back or delete a deployment."""

    target: Literal["local", "docker", "aci", "aks", "online", "kubernetes-online"] = Field(
        "local",
        description="where to deploy: this machine (local, docker) or Azure ML (prefer online; aci and aks are retired)",
    )
    action: Literal["deploy", "status", "promote", "rollback", "delete"] = Field(
        "deploy", description="what to do; promote and rollback move the traffic of an online endpoint"
    )
    model_uri: str = Field(
        "", pattern=r"^$|^models:/[^/@]+(/\d+|@[\w.-]+)$", description="models:/NAME/VERSION or models:/NAME@ALIAS"
    )
    name: str = Field(
        "carmodel",
        pattern=r"^[a-z][a-z0-9-]{1,30}[a-z0-9]$",
        description="name of the service or endpoint: 3 to 32 characters of a-z, 0-9 and -, starting with a letter",
    )
    traffic: int = Field(
        10,
        ge=0,
        le=100,
        description="online endpoints: percent of the requests that a new version gets until it is promoted",
    )
    settings_file: str = Field("", description="settings of the service (empty: the target's file in backends/)")
    photo: str = Field("", description="photo for the smoke test (empty: a drawn car)")
    folder: str = Field("deployed", description="folder for the log and the state of a local server")
    port: int = Field(5001, ge=1, le=65535, description="port on this machine, for the targets local and docker")
    timeout: float = Field(1800.0, gt=0.0, description="longest time for a deployment, in seconds")

    @property
    def settings_path(self) -> Path:
        """The settings file of the service, for the targets in `SETTINGS_FILES`."""
        return ROOT / (self.settings_file or SETTINGS_FILES[self.target])

    @property
    def model_version(self) -> tuple[str, str]:
        """Name and version of the registered model in ``models:/NAME/VERSION``."""
        name, _, version = self.model_uri.removeprefix("models:/").rpartition("/")
        return name, version

    @field_validator("settings_file")
    @classmethod
    def _settings_file_exists(cls, file: str) -> str:
        if file and not (ROOT / file).is_file():
            raise ValueError("no such file; leave it empty for the target's file in backends/")
        return file

    @model_validator(mode="after")
    def _only_endpoints_have_traffic(self) -> Self:
        if self.action in ("promote", "rollback") and not self.target.endswith("online"):
            raise ValueError(
                f"action={self.action} is for online and kubernetes-online; deploy the other version instead"
            )
        return self
