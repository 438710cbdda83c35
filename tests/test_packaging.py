"""The dependency files agree with each other and with the imports; the wheel works outside the clone."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import pytest
import yaml

from tests.tiny import Endpoint
from tests.tracked import new_database

LOCK = Path("requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE))
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load(Path("conda.yaml").read_text())["dependencies"]
MLPROJECT = yaml.safe_load(Path("MLproject").read_text())
SOURCES = [file for folder in ("carmodel", "steps") for file in Path(folder).rglob("*.py")]


def test_every_dependency_of_the_project_is_the_locked_one() -> None:
    extras = [item for items in PROJECT["optional-dependencies"].values() for item in items]
    for requirement in PROJECT["dependencies"] + extras:
        name, _, version = requirement.partition("==")
        assert LOCKED.get(name.partition("[")[0]) == version, requirement


def imported_packages() -> set[str]:
    """Return the top-level names of all absolute imports in the sources."""
    nodes = [node for file in SOURCES for node in ast.walk(ast.parse(file.read_text()))]
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {module.partition(".")[0] for module in modules}


def test_every_imported_distribution_is_declared() -> None:
    pins = [*PROJECT["dependencies"], *(pin for extra in PROJECT["optional-dependencies"].values() for pin in extra)]
    declared = {pin.partition("==")[0] for pin in pins}
    providers = packages_distributions()
    for package in imported_packages() - sys.stdlib_module_names - {"carmodel", "steps"}:
        assert not providers.get(package) or declared & {name.lower() for name in providers[package]}, package


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    shutil.copytree("carmodel", source / "carmodel", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "."]
    subprocess.run([*build, "--wheel-dir", "dist"], cwd=source, check=True, timeout=120)
    (built,) = source.glob("dist/*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the contents of the wheel and its scripts in ``bin/``, next to the packages of this environment."""
    target = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)
    return target


def run_script(installed: Path, name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "MLFLOW_TRACKING_URI": new_database(folder)}
    return subprocess.run(
        [installed / "bin" / name, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def test_the_wheel_has_every_module_and_nothing_else(wheel: Path) -> None:
    packaged = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    pages = {str(file) for file in Path("carmodel").rglob("static/*")}
    assert packaged == {str(file) for file in SOURCES if file.parts[0] == "carmodel"} | pages


@pytest.mark.parametrize("script", ["carmodel-client", "carmodel-serve"])
def test_the_scripts_of_the_wheel_explain_themselves(installed: Path, tmp_path: Path, script: str) -> None:
    done = run_script(installed, script, "--help", folder=tmp_path)
    assert done.stdout.startswith(f"usage: {script}"), done.stderr


def test_the_client_of_the_wheel_classifies_a_folder(
    installed: Path, endpoint: Endpoint, sample: Path, tmp_path: Path
) -> None:
    given = [str(sample / "cars_test"), "answers.csv", "--endpoint", endpoint.address]
    done = run_script(installed, "carmodel-client", *given, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = pd.read_csv(tmp_path / "answers.csv")
    assert len(answers) == len(list((sample / "cars_test").glob("*.jpg")))
    assert answers["label"].str.startswith("Synthetic").all()
    assert answers["probability"].between(0, 1, inclusive="right").all()
    assert answers["error"].isna().all()


def test_without_a_model_the_wheel_says_that_the_clone_has_the_weights(installed: Path, tmp_path: Path) -> None:
    done = run_script(installed, "carmodel-serve", "--port", "0", "--page-port", "1", folder=tmp_path)
    assert done.returncode == 2
    assert "repository" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
