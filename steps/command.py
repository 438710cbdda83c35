"""The command line of a step: its settings as ``--name value``, a run around its work, errors in words."""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Literal, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from carmodel.errors import InputError
from carmodel.parameters import ENTRY_POINTS, Settings
from carmodel.recipe import SettingsError, resolve, suggestion
from carmodel.service_errors import explain
from carmodel.tracking.runs import step_run


def run_step(name: str, work: Callable[..., None]) -> None:
    """Parse the arguments of step `name`, open its run and do `work(settings, step)` in it.

    Bad input ends the process with code 2 and one clear message; the run, once open, is then FAILED.
    """
    # `mlflow run` ends a step so when it is interrupted: scratch folders are removed and the run is FAILED, not RUNNING.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        settings, recipe = parse_step(name, sys.argv[1:])
        with step_run(name, settings, recipe) as step:
            work(settings, step)
    except InputError as error:
        fail(name, error)
    except KeyboardInterrupt:
        sys.exit(f"\n{name}: interrupted")
    except Exception as error:
        stop(name, error)


def parse_step(name: str, arguments: list[str]) -> tuple[Settings, str]:
    """Settings of a step from its command line, and the -P words that chose its recipe."""
    names = list(ENTRY_POINTS[name].model_fields)
    given = parse(make_parser(name, ENTRY_POINTS[name].__doc__, {name: names}), arguments, names)
    own = {parameter: given[parameter] for parameter in names}
    recipe = " ".join(f"-P {key}={shlex.quote(given[key])}" for key in ("config", "set") if given[key])
    return resolve(given["config"], given["set"], {name: own}, only=name)[name], recipe


def make_parser(entry: str, description: str | None, names: Mapping[str, list[str]]) -> argparse.ArgumentParser:
    """Parser with the named parameters of each step; a name that several steps share sets it in all of them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m steps.{entry}",
        description=description,
        epilog=f"the same through MLflow: mlflow run . -e {entry} --env-manager local -P NAME=VALUE",
        allow_abbrev=False,
    )
    parser.add_argument("--config", default="", metavar="FILE", help="recipe: NAME of configs/NAME.yaml, or a path")
    parser.add_argument(
        "--set", default="", metavar="STEP.NAME=VALUE,…", help="generic override of any step's parameter"
    )
    owners: dict[str, list[str]] = {}
    for step, of in names.items():
        for name in of:
            owners.setdefault(name, []).append(step)
    for name, steps in owners.items():
        field = ENTRY_POINTS[steps[0]].model_fields[name]
        where = "" if len(names) == 1 else f"[{', '.join(steps)}] "
        limits = f"{allowed}; " if (allowed := allowed_values(field)) else ""
        text = f"{where}{field.description} ({limits}default: {field.default!r})"
        parser.add_argument(f"--{name}", default="", metavar="VALUE", help=text.replace("%", "%%"))
    return parser


def allowed_values(field: FieldInfo) -> str:
    """Return the bounds or the values of a parameter as text, empty where every value of its type is allowed."""
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(field.annotation)))}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [(name, getattr(item, name, None)) for item in field.metadata for name in signs]
    return ", ".join(f"{signs[name]} {limit}" for name, limit in limits if limit is not None)


def parse(parser: argparse.ArgumentParser, arguments: list[str], known: list[str]) -> dict[str, str]:
    """Parse the arguments, and refuse an unknown name with the one that it resembles, or with all that exist."""
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        raise SettingsError(f"no parameter {name!r}; {suggestion(name, ['config', 'set', *known])}")
    return vars(given)


def stop(entry: str, error: Exception) -> NoReturn:
    """Say in words what a service has refused and exit with code 1; raise again what no service has."""
    if (said := explain(error)) is None:
        raise error
    sys.exit(f"\n{entry}: stopped: {said}")


def fail(entry: str, error: Exception) -> NoReturn:
    """Say what is wrong and which command explains the parameters, then exit with code 2."""
    print(f"\n{entry}: error: {error}\n  the parameters: python -m steps.{entry} --help", file=sys.stderr)
    raise SystemExit(2)
