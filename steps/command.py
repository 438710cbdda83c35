"""The command line of the entry points: parameters as ``--name value``, and errors without a traceback.

This module imports MLflow only after the parameters are valid, and steps import slow libraries inside their functions, so
that ``--help`` and a refused parameter answer at once.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from pydantic.fields import FieldInfo

from carmodel.errors import InputError
from carmodel.parameter_table import allowed_values
from carmodel.parameters import ENTRY_POINTS, Settings
from carmodel.recipe import SettingsError, resolve, suggestion
from steps.interrupt import signals_interrupt, undisturbed_end

if TYPE_CHECKING:
    from carmodel.tracking.runs import StepRun

Parameters = TypeVar("Parameters", bound=Settings)


def run_step(name: str, parameters: type[Parameters], work: Callable[[Parameters, "StepRun"], None]) -> None:
    """Run a step as a command: parse its parameters, open its MLflow run, and call ``work(settings, step)``.

    Invalid input exits with code 2 and one message.

    Args:
        name: entry point.
        parameters: type of its parameters.
        work: does the step's work and logs its outputs.
    """
    with errors_reported(name):
        settings, given = parse_step(name, parameters, sys.argv[1:])
        from carmodel.tracking.runs import step_run

        with step_run(name, settings, given) as step, undisturbed_end():
            work(settings, step)


@contextmanager
def errors_reported(entry: str) -> Iterator[None]:
    """Exit with a message instead of a traceback for invalid input, a service's error and an interrupt.

    If a parameter is refused, the run that `mlflow run` opened is deleted when `mlflow run` has ended it.
    """
    opened = os.environ.get("MLFLOW_RUN_ID")
    try:
        with signals_interrupt():
            yield
    except InputError as error:
        if opened and isinstance(error, SettingsError):
            from carmodel.tracking.discard import discard_later

            discard_later(opened)
        print(f"\n{entry}: error: {error}\n  parameters: python -m steps.{entry} --help", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        from carmodel.service_errors import RERUN, explain, is_service_error

        if not is_service_error(error):
            raise
        sys.exit(f"\n{entry}: stopped: {explain(error)}\n  {RERUN}")


def parse_step(name: str, parameters: type[Parameters], arguments: list[str]) -> tuple[Parameters, dict[str, str]]:
    """Return the parameters of a step from its command line, validated and as given."""
    names = list(parameters.model_fields)
    given = parse(make_parser(name, parameters.__doc__, {name: names}), arguments, names)
    own = {parameter: given[parameter] for parameter in names}
    settings = getattr(resolve(given["config"], given["set"], {name: own}, only=name), name)
    assert isinstance(settings, parameters)
    return settings, {key: value for key, value in given.items() if value}


def make_parser(entry: str, description: str | None, names: Mapping[str, list[str]]) -> argparse.ArgumentParser:
    """Return a parser of an entry point's command line.

    Args:
        entry: name of the entry point.
        description: first paragraph of its ``--help``.
        names: ``{step: parameters}``. A name that several steps share sets all of them, and the help gives its meaning in each.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m steps.{entry}",
        description=description,
        epilog=f"With MLflow: mlflow run . -e {entry} --env-manager local -P NAME=VALUE",
        allow_abbrev=False,
    )
    parser.add_argument("--config", default="", metavar="FILE", help="recipe: the NAME of configs/NAME.yaml, or a path")
    parser.add_argument(
        "--set", default="", metavar="STEP.NAME=VALUE,…", help="parameters of any step, separated by commas"
    )
    owners: dict[str, list[str]] = {}
    for step, of in names.items():
        for name in of:
            owners.setdefault(name, []).append(step)
    for name, steps in owners.items():
        meanings: dict[str, list[str]] = {}
        for step in steps:
            meanings.setdefault(_meaning(ENTRY_POINTS[step].model_fields[name]), []).append(step)
        text = "; ".join(
            meaning if len(names) == 1 else f"[{', '.join(of)}] {meaning}" for meaning, of in meanings.items()
        )
        parser.add_argument(f"--{name}", default="", metavar="VALUE", help=text.replace("%", "%%"))
    return parser


def _meaning(field: FieldInfo) -> str:
    """Return the description of a parameter with its bounds and default, as text for ``--help``."""
    limits = f"{allowed}; " if (allowed := allowed_values(field)) else ""
    return f"{field.description} ({limits}default: {field.default!r})"


def parse(parser: argparse.ArgumentParser, arguments: list[str], known: list[str]) -> dict[str, str]:
    """Return the given values by name.

    Raises:
        SettingsError: an unknown name. The message suggests a similar one, or lists all.
    """
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        raise SettingsError(f"no parameter {name!r}; {suggestion(name, ['config', 'set', *known])}")
    return vars(given)
