"""The lists of dependencies agree: pyproject.toml, conda.yaml and requirements.lock."""

import re
import tomllib
from pathlib import Path

import yaml

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]


def test_conda_yaml_has_the_dependencies_of_pyproject_toml() -> None:
    *_, pip = yaml.safe_load(Path("conda.yaml").read_text())["dependencies"]
    assert pip["pip"] == PROJECT["dependencies"]


def test_the_lock_has_every_pin_of_pyproject_toml() -> None:
    locked = set(re.findall(r"^([\w.-]+==[^\s;]+)", Path("requirements.lock").read_text(), re.MULTILINE))
    pins = [*PROJECT["dependencies"], *(pin for extra in PROJECT["optional-dependencies"].values() for pin in extra)]
    assert set(pins) <= locked
