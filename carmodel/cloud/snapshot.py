"""The copy of this project that is sent to other machines."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from mlflow.projects.utils import load_project

from carmodel.recipe import load_recipe, parse_set
from carmodel.tracking.digests import ROOT
from carmodel.tracking.paths import PRETRAINED_FOLDER, local_path

IGNORE_FILES = (".gitignore", ".amlignore")


def copy_project(folder: Path, entry_point: str, parameters: Mapping[str, str]) -> Path:
    """Copy this project into a new folder, and return the folder.

    Hidden files and those in ``.gitignore`` and ``.amlignore`` are not copied. The backends upload the whole folder, which
    would otherwise include virtual environments and runs. The weights in ``pretrained/`` (18 MB) are copied only if they
    are used.

    Args:
        folder: must not exist yet.
        entry_point: the entry point that will run.
        parameters: its parameters.
    """
    lines = [line.strip().strip("/") for name in IGNORE_FILES for line in (ROOT / name).read_text().splitlines()]
    ignored = {line for line in lines if line} - {PRETRAINED_FOLDER.name}
    if not uses_pretrained(entry_point, parameters):
        ignored.add(PRETRAINED_FOLDER.name)
    return Path(shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", *ignored)))


def uses_pretrained(entry_point: str, parameters: Mapping[str, str]) -> bool:
    """Return whether a parameter of a run names the pretrained network or a file in ``pretrained/``.

    Args:
        entry_point: the entry point that runs. The recipe of `main` is `demo` by default.
        parameters: its parameters. The values in the recipe ``config`` and in ``set`` count, too.

    Raises:
        SettingsError: the recipe or ``set`` is invalid.
    """
    defaults = load_project(str(ROOT)).get_entry_point(entry_point).parameters
    given = {name: parameter.default for name, parameter in defaults.items()} | dict(parameters)
    steps = [*load_recipe(given.pop("config")).values(), *parse_set(given.pop("set")).values(), given]
    return any(_names_pretrained(str(value)) for step in steps for value in step.values())


def _names_pretrained(value: str) -> bool:
    path = local_path(value)
    return value == "pretrained" or (path is not None and path.is_relative_to(PRETRAINED_FOLDER))
