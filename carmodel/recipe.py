"""A run's settings: where the values of the parameters (`carmodel.parameters`) come from.

Precedence, lowest first: the defaults, the recipe (``config=configs/NAME.yaml``), the generic override
(``set=train.epochs=3,preprocess.image_size=96``), the step's own ``-P name=value``. Everything is checked here, before any
work, by pydantic (https://docs.pydantic.dev): an unknown step, parameter or value is an error that names the ones that exist.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from carmodel.errors import InputError
from carmodel.parameters import ENTRY_POINTS, LINK_OF, Settings


class SettingsError(InputError):
    """A parameter, value, step or recipe that does not exist; the message names what does."""


def load_recipe(path: str) -> dict[str, dict[str, Any]]:
    """Read a recipe: YAML ``{step: {parameter: value}}``. Empty path: no recipe, the defaults.

    A name without a suffix means a recipe in ``configs/``: ``demo`` is ``configs/demo.yaml``.

    Raises:
        SettingsError: no such file (names the recipes there are), not YAML, or a step that does not exist.
    """
    if not path:
        return {}
    file = Path(path) if Path(path).suffix or Path(path).is_file() else Path("configs", f"{path}.yaml")
    if not file.is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.yaml"))
        raise SettingsError(f"no recipe {path!r}; there are {', '.join(known) or 'none in configs/'}")
    try:
        recipe = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"recipe {path!r} is not valid YAML: {error}") from None
    if not isinstance(recipe, dict) or not all(isinstance(v, dict) for v in recipe.values()):
        raise SettingsError(f"recipe {path!r} must map each step to its parameters, as in configs/demo.yaml")
    for step in recipe:
        _known_step(step, f"recipe {path!r}")
    return recipe


def parse_set(text: str) -> dict[str, dict[str, str]]:
    """Parse ``train.epochs=3,preprocess.image_size=96`` to ``{"train": {"epochs": "3"}, …}``.

    Raises:
        SettingsError: an item that is not ``step.parameter=value``, or a step that does not exist.
    """
    values: dict[str, dict[str, str]] = {}
    # A comma within a value, such as hosts=a:4,b:4, is no end of it: what follows is no step.parameter=.
    for item in filter(None, (part.strip() for part in re.split(r",(?=\s*\w+\.\w+=)", text))):
        key, equals, value = item.partition("=")
        step, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise SettingsError(f"set: {item!r} is not step.parameter=value, such as train.epochs=3")
        _known_step(step, "set")
        values.setdefault(step, {})[name] = value.strip()
    return values


def resolve(config: str, set_: str, overrides: dict[str, dict[str, str]], only: str = "") -> dict[str, Settings]:
    """Settings of every step from recipe, `set` and the steps' own overrides, in that order of precedence.

    Args:
        config: path of a recipe, or empty.
        set_: the generic override, or empty.
        overrides: ``{step: {parameter: text}}`` as given by ``-P``; empty texts count as not given.
        only: the step that runs alone. Its inputs may be given, as there is no main to fill them.

    Raises:
        SettingsError: names the offending step or parameter, the value's fault and what exists.
    """
    recipe, generic = load_recipe(config), parse_set(set_)
    settings = {}
    for step in ENTRY_POINTS:
        own = {name: text for name, text in overrides.get(step, {}).items() if text != ""}
        values = recipe.get(step, {}) | generic.get(step, {}) | own
        if step != only and (links := sorted(set(values) & set(LINK_OF.values()))):
            raise SettingsError(
                f"{step}.{links[0]} is filled by main; to give it, run the step alone: mlflow run . -e {step}"
            )
        settings[step] = check(step, values)
    return settings


def parse_flag(name: str, text: str) -> bool:
    """A yes or no from the command line; empty is no."""
    try:
        return TypeAdapter(bool).validate_python(text or "false")
    except ValidationError:
        raise SettingsError(f"{name}={text!r} is neither true nor false") from None


def require(step: str, name: str, value: str, source: str) -> str:
    """An input without which the step can't run.

    Raises:
        SettingsError: not given; says which step makes it.
    """
    if not value:
        raise SettingsError(
            f"{step} needs {name}: an output of {source}, runs:/RUN/NAME, or a folder; {source} prints it"
        )
    return value


def check(step: str, values: dict[str, Any]) -> Settings:
    """Make a step's settings from raw values, with errors in words."""
    try:
        return ENTRY_POINTS[step].model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(step, dict(item)) for item in error.errors())
        raise SettingsError(problems) from None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a question with the known name that is most like `name`, or the list of known names if none is."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"it has {', '.join(known)}"


def _known_step(step: object, where: str) -> None:
    if step not in ENTRY_POINTS:
        raise SettingsError(f"{where}: no step {step!r}; the steps are {', '.join(ENTRY_POINTS)}")


def _explain(step: str, item: dict[str, Any]) -> str:
    if not item["loc"]:  # a check of several parameters together
        return f"{step}: {item['msg'].removeprefix('Value error, ')}"
    name = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        return f"{step} has no parameter {name!r}; {suggestion(name, ENTRY_POINTS[step].model_fields)}"
    said = item["msg"].removeprefix("Value error, ")
    if item["type"] == "string_pattern_mismatch":
        said = f"is not as it must be: {ENTRY_POINTS[step].model_fields[name].description}"
    return f"{step}.{name}={item['input']!r}: {said[0].lower()}{said[1:]}"
