"""Read the values of the parameters (`carmodel.parameters`) from a recipe, a generic override and the command line.

Later sources take precedence: the defaults, the recipe (``config=configs/NAME.yaml``), the generic override
(``set=train.epochs=3,preprocess.image_size=96``), the step's own ``-P name=value``. Pydantic validates all values before any
work (https://docs.pydantic.dev); an error about an unknown step or parameter suggests existing ones.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from carmodel.errors import InputError
from carmodel.parameters import ENTRY_POINTS, LINK_OF, Recipe


class SettingsError(InputError):
    """An invalid recipe, step, parameter or value. The message says which, and what is valid."""


def load_recipe(path: str) -> dict[str, dict[str, Any]]:
    """Read a recipe, a YAML file ``{step: {parameter: value}}``. Return an empty one for an empty path.

    A name without a suffix is that of a recipe in ``configs/``: ``demo`` is ``configs/demo.yaml``.

    Raises:
        SettingsError: the file does not exist, is not YAML, or names an unknown step.
    """
    if not path:
        return {}
    file = Path(path) if Path(path).suffix or Path(path).is_file() else Path("configs", f"{path}.yaml")
    if not file.is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.yaml"))
        raise SettingsError(f"config={path!r}: no such recipe; choose one of {', '.join(known) or 'none in configs/'}")
    try:
        recipe = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"recipe {path!r} is not valid YAML: {error}") from None
    if not isinstance(recipe, dict) or not all(isinstance(v, dict) for v in recipe.values()):
        raise SettingsError(f"recipe {path!r} must map each step to its parameters, as configs/demo.yaml does")
    for step in recipe:
        _require_step(step, f"recipe {path!r}")
    return recipe


def parse_set(text: str) -> dict[str, dict[str, str]]:
    """Parse ``train.epochs=3,preprocess.image_size=96`` to ``{"train": {"epochs": "3"}, …}``.

    Raises:
        SettingsError: an item is not ``step.parameter=value``, or names an unknown step.
    """
    values: dict[str, dict[str, str]] = {}
    # Only a comma before `step.parameter=` separates items, so that a value may hold commas: hosts=a:4,b:4.
    for item in filter(None, (part.strip() for part in re.split(r",(?=\s*\w+\.\w+=)", text))):
        key, equals, value = item.partition("=")
        step, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise SettingsError(f"set: {item!r} is not step.parameter=value, such as train.epochs=3")
        _require_step(step, "set")
        values.setdefault(step, {})[name] = value.strip()
    return values


def resolve(config: str, set_: str, overrides: dict[str, dict[str, str]], only: str = "") -> Recipe:
    """Return the validated parameters of all steps.

    Args:
        config: path or name of a recipe, or empty.
        set_: the generic override, or empty.
        overrides: ``{step: {parameter: string}}`` as given by ``-P``; an empty string counts as not given.
        only: the step that runs without main, and therefore takes its inputs as parameters.

    Raises:
        SettingsError: a step, parameter or value is invalid.
    """
    recipe, generic = load_recipe(config), parse_set(set_)
    values = {}
    for step in ENTRY_POINTS:
        own = {name: text for name, text in overrides.get(step, {}).items() if text != ""}
        values[step] = recipe.get(step, {}) | generic.get(step, {}) | own
        if step != only and (links := sorted(set(values[step]) & set(LINK_OF.values()))):
            raise SettingsError(
                f"{step}.{links[0]} is set by main; to set it yourself, run the step alone: mlflow run . -e {step}"
            )
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = [_explain(dict(item)) for item in error.errors()]
        owners = dict.fromkeys(_owners(overrides, *item["loc"][1:2]) for item in error.errors())  # each one once
        raise SettingsError("; ".join(problems) + "".join(owners)) from None


def parse_flag(name: str, text: str) -> bool:
    """Return the boolean that a string of the command line stands for. An empty string is False."""
    try:
        return TypeAdapter(bool).validate_python(text or "false")
    except ValidationError:
        raise SettingsError(f"{name}={text!r} must be true or false") from None


def require(step: str, name: str, value: str, source: str) -> str:
    """Return the value of an input of a step.

    Raises:
        SettingsError: the input is not given. The message says which step creates it.
    """
    if not value:
        raise SettingsError(
            f"{step} needs {name}: an output of {source} (runs:/RUN/NAME, as {source} prints), or a path"
        )
    return value


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a question with the known name most similar to `name`, or a list of the known names if none is similar."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"choose one of {', '.join(known)}"


def _require_step(step: object, where: str) -> None:
    if step not in ENTRY_POINTS:
        raise SettingsError(f"{where}: no step {step!r}; the steps are {', '.join(ENTRY_POINTS)}")


def _owners(overrides: dict[str, dict[str, str]], name: object = None) -> str:
    """Return how to set a parameter in one step, if the command line sets it in several; otherwise an empty string."""
    owners = [step for step, given in overrides.items() if name in given]
    if len(owners) < 2:
        return ""
    one = f"-P set={owners[-1]}.{name}=VALUE"
    return f" ({', '.join(owners)} have a parameter {name}; to set it in one of them: {one})"


def _explain(item: dict[str, Any]) -> str:
    """Return the text of one of pydantic's errors, whose ``loc`` is (step, parameter), or (step,) for several parameters."""
    step, *names = (str(part) for part in item["loc"])
    problem = item["msg"].removeprefix("Value error, ")
    if not names:
        return f"{step}: {problem}"
    name, known = names[0], ENTRY_POINTS[step].model_fields
    if item["type"] == "extra_forbidden":
        return f"{step} has no parameter {name!r}; {suggestion(name, known)}"
    if item["type"] == "string_pattern_mismatch":
        problem = f"not valid; expected: {known[name].description}"
    return f"{step}.{name}={item['input']!r}: {problem[0].lower()}{problem[1:]}"
