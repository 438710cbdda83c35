"""The dependency files agree: pyproject.toml and conda.yaml name exactly what requirements.lock holds."""

import re
import tomllib
from pathlib import Path

import yaml

LOCK = Path("requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE))
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load(Path("conda.yaml").read_text())["dependencies"]
MLPROJECT = yaml.safe_load(Path("MLproject").read_text())


def test_every_dependency_of_the_project_is_the_locked_one() -> None:
    extras = [item for items in PROJECT["optional-dependencies"].values() for item in items]
    for requirement in PROJECT["dependencies"] + extras:
        name, _, version = requirement.partition("==")
        assert LOCKED.get(name) == version, requirement


def test_conda_installs_the_project_s_dependencies_and_python() -> None:
    (pip,) = [item["pip"] for item in CONDA if isinstance(item, dict)]
    assert sorted(pip) == sorted(PROJECT["dependencies"])
    assert f"python={PROJECT['requires-python'].removeprefix('==').removesuffix('.*')}" in CONDA


def test_every_locked_package_has_a_hash_and_no_address() -> None:
    blocks = re.split(r"\n(?=\w)", LOCK.strip())
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in LOCK


def test_every_entry_point_has_its_step_and_every_declared_parameter_reaches_it() -> None:
    from carmodel.parameters import ENTRY_POINTS

    assert set(MLPROJECT["entry_points"]) == {*ENTRY_POINTS, "main"}
    for name, entry in MLPROJECT["entry_points"].items():
        assert Path("steps", f"{name}.py").is_file()
        for parameter in entry["parameters"]:
            assert f"--{parameter} {{{parameter}}}" in entry["command"]
