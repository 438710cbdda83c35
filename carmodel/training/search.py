"""Search for parameters with Optuna: the search space of a recipe, and the study that proposes and remembers trials.

A study is kept in a file, so a search continues after it was stopped. Random search and the tree-structured Parzen estimator
(Bergstra et al. 2011) propose values. Asynchronous successive halving (Li et al. 2018, https://arxiv.org/abs/1810.05934)
decides which trials continue.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError

from carmodel.errors import InputError
from carmodel.parameters import ENTRY_POINTS, LINK_OF, NOT_IN_CACHE_KEY, Range, Recipe
from carmodel.recipe import SettingsError, suggestion

SEARCHED = ("augment", "train")
"""Steps whose parameters can be searched."""

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}
"""What the table of results calls the state of a trial."""

Values = Mapping[str, Any]
"""Values of parameters, with the keys ``step.parameter``."""


def with_values(recipe: Recipe, values: Values) -> Recipe:
    """Return a recipe with other values of some parameters.

    Raises:
        SettingsError: a step does not accept a value.
    """
    for step in SEARCHED:
        settings = getattr(recipe, step)
        own = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{step}.")}
        try:
            settings = type(settings).model_validate(settings.model_dump(exclude_unset=True) | own)
        except ValidationError as error:
            reasons = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
            given = ", ".join(f"{step}.{name}={value!r}" for name, value in own.items())
            raise SettingsError(f"sweep.space: {given}: {reasons}") from None
        recipe = recipe.model_copy(update={step: settings})
    return recipe


def own_values(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's own values of the parameters in its search space."""
    return {name: value_in(recipe, name) for name in recipe.sweep.space}


def value_in(recipe: Recipe, name: str) -> Any:
    """Return the value of the parameter ``step.parameter`` in a recipe."""
    step, _, parameter = name.partition(".")
    return getattr(getattr(recipe, step), parameter)


def dimensions(recipe: Recipe) -> dict[str, BaseDistribution]:
    """Return the search space of a recipe, with every value checked by the step that takes it.

    Raises:
        SettingsError: the space is empty, names a parameter that cannot be searched, or contains an invalid value.
    """
    if not recipe.sweep.space:
        raise SettingsError(
            "sweep needs a search space: add sweep.space to the recipe, as configs/sweep_demo.yaml does"
        )
    return {name: _dimension(recipe, name, values) for name, values in recipe.sweep.space.items()}


def _dimension(recipe: Recipe, name: str, values: Range | tuple[Any, ...]) -> BaseDistribution:
    kind, own = _kind(recipe, name), value_in(recipe, name)
    if isinstance(values, Range):
        if kind not in (int, float):
            raise SettingsError(f"sweep.space: {name} is not a number, so it needs a list of values")
        low, high = (value_in(with_values(recipe, {name: end}), name) for end in (values.low, values.high))
        inside, allowed = low <= own <= high, f"between {low} and {high}"
        dimension: BaseDistribution = (IntDistribution if kind is int else FloatDistribution)(low, high, values.log)
    else:
        choices = tuple(dict.fromkeys(value_in(with_values(recipe, {name: value}), name) for value in values))
        inside, allowed = own in choices, f"among {', '.join(map(str, choices))}"
        dimension = CategoricalDistribution(choices)
    if not inside:
        raise SettingsError(
            f"sweep.space: the recipe's own value {name}={own} is not {allowed}. Add it, because the first trial has the "
            "recipe's own values"
        )
    return dimension


def _kind(recipe: Recipe, name: str) -> Any:
    """Return the type of a parameter that can be searched."""
    step, _, parameter = name.partition(".")
    if step not in SEARCHED:
        raise SettingsError(f"sweep.space: {name}: only parameters of {' and '.join(SEARCHED)} can be searched")
    fields = ENTRY_POINTS[step].model_fields
    if parameter not in fields:
        raise SettingsError(f"sweep.space: {step} has no parameter {parameter!r}; {suggestion(parameter, fields)}")
    if parameter in (*LINK_OF.values(), *NOT_IN_CACHE_KEY):
        raise SettingsError(f"sweep.space: {name} names an input, or does not change the result; remove it")
    if name == "train.epochs" and recipe.sweep.rungs:
        raise SettingsError("sweep.space: train.epochs is set by sweep.rungs; remove one of the two")
    return fields[parameter].annotation


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the directory of a study, and lock it until the context ends, or until the process is killed.

    Raises:
        InputError: another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another sweep works on {folder}; wait for it, or choose another name: -P study=NAME"
            ) from None
        yield


class Search:
    """A study, and the trials that it proposes for a recipe. Use it in `locked`.

    Args:
        folder: directory of the study.
        recipe: the recipe, whose own values the first trial has.

    Raises:
        SettingsError: the search space is invalid.
        InputError: the study was made for another recipe or space. The message names what differs.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe, self.space = folder, recipe, dimensions(recipe)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file = folder / "study.db"
        # Several trials may write at the same time.
        self.storage = RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60}})
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=recipe.sweep.study,
            direction="maximize",
            load_if_exists=True,
            pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=recipe.sweep.reduction_factor),
        )
        steps = recipe.model_dump(mode="json", include={"preprocess", *SEARCHED})
        values = {f"{step}.{name}": value for step, own in steps.items() for name, value in own.items()}
        same = {name: value for name, value in values.items() if name.partition(".")[2] not in NOT_IN_CACHE_KEY}
        self.require_same(
            "recipe", same | recipe.sweep.model_dump(mode="json", include={"space", "rungs", "reduction_factor"})
        )
        if not self.study.trials:
            self.study.enqueue_trial(own_values(recipe))

    def require_same(self, what: str, facts: Mapping[str, Any]) -> None:
        """Keep facts that all trials of the study share, or compare them with those of earlier commands.

        Args:
            what: the kind of facts.
            facts: values that JSON can represent.

        Raises:
            InputError: they differ.
        """
        before = self.study.user_attrs.get(what, {})
        now = json.loads(json.dumps(facts))
        if changed := [f"{name} was {before[name]}" for name in now if name in before and before[name] != now[name]]:
            raise InputError(
                f"{self.folder} is a search with another {what}: {', '.join(changed)}. To start another search: "
                "-P study=NAME"
            )
        if not before:
            self.study.set_user_attr(what, now)

    def started(self) -> int:
        """Return the number of trials that were started."""
        return sum(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))

    def unfinished(self) -> list[Trial]:
        """Return the trials that an earlier process began and did not finish, to continue them."""
        study = self.storage.get_study_id_from_name(self.study.study_name)
        running = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        ids = [self.storage.get_trial_id_from_study_id_trial_number(study, trial.number) for trial in running]
        return [Trial(self.study, trial) for trial in ids]

    def ask(self) -> Trial:
        """Start a new trial.

        The sampler has a new seed for each trial. A search that was stopped then proposes the same values as one that was
        not, and no values twice.
        """
        settings, seed = self.recipe.sweep, self.recipe.sweep.seed + self.started()
        tpe = settings.sampler == "tpe"
        self.study.sampler = TPESampler(seed=seed, constant_liar=settings.parallel > 1) if tpe else RandomSampler(seed)
        trial = self.study.ask()
        self.values(trial)
        return trial

    def values(self, trial: Trial | FrozenTrial) -> dict[str, Any]:
        """Return the values of a trial. Numbers other than the recipe's own are rounded to four digits."""
        own = own_values(self.recipe)
        # If a process was killed between two values, the record of its trial has only some of them.
        known = trial.params if isinstance(trial, FrozenTrial) else self.space
        return {name: _rounded(_suggest(trial, name, self.space[name]), self.space[name], own[name]) for name in known}

    def record(self, trial: Trial) -> FrozenTrial:
        """Return what the study knows of a trial."""
        return self.study.get_trials(deepcopy=False)[trial.number]

    def report(self, trial: Trial, accuracy: float, rung: int, epochs: str) -> None:
        """Tell the study the accuracy of a trial after a rung. A second report of the same rung is ignored."""
        step = self.recipe.sweep.reduction_factor**rung
        if step not in self.record(trial).intermediate_values:
            trial.report(accuracy, step)
        trial.set_user_attr("epochs", epochs)


def _suggest(trial: Trial | FrozenTrial, name: str, dimension: BaseDistribution) -> Any:
    """Return the value of a trial, which is chosen at the first call."""
    if isinstance(dimension, CategoricalDistribution):
        return trial.suggest_categorical(name, dimension.choices)
    if isinstance(dimension, IntDistribution):
        return trial.suggest_int(name, dimension.low, dimension.high, log=dimension.log)
    assert isinstance(dimension, FloatDistribution)
    return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)


def _rounded(value: Any, dimension: BaseDistribution, own: Any) -> Any:
    if not isinstance(dimension, FloatDistribution) or value == own:
        return value
    return min(max(float(f"{value:.4g}"), dimension.low), dimension.high)
