"""The results of a search: the table of its trials, the best recipe, and pictures."""

from typing import Any

import numpy as np
import optuna
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from carmodel.training.search import STATES, Search, with_values

ENOUGH = 4
"""Smallest number of complete trials from which the importance of parameters is estimated."""


def trial_table(search: Search) -> pd.DataFrame:
    """Return a row per trial: its state, accuracy, last schedule, values and MLflow run."""
    return pd.DataFrame([_row(search, trial) for trial in search.study.trials if trial.state in STATES])


def sorted_table(table: pd.DataFrame) -> str:
    """Return the table as text: complete trials first, then failed and pruned ones, the best of each first."""
    best_first = table.drop(columns="run").sort_values(
        ["state", "val_accuracy"], ascending=[True, False], kind="stable"
    )
    return best_first.to_string(index=False, na_rep="", float_format="{:.4g}".format)


def _row(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    last = round(trial.intermediate_values[trial.last_step], 6) if trial.last_step is not None else None
    result = {"trial": trial.number, "state": STATES[trial.state], "val_accuracy": last}
    attributes = trial.user_attrs
    return result | {"epochs": attributes.get("epochs")} | search.values(trial) | {"run": attributes.get("run")}


def best_trial(search: Search) -> FrozenTrial | None:
    """Return the first complete trial with the highest accuracy, or None if no trial is complete."""
    complete = search.study.get_trials(states=[TrialState.COMPLETE])
    return max(complete, key=lambda trial: trial.value or 0.0, default=None)


def verdict(search: Search, best: FrozenTrial, validation_rows: int) -> str:
    """Return the sentences that compare the best trial with the recipe's own parameters.

    Args:
        search: the search.
        best: its best trial.
        validation_rows: number of validation photos.
    """
    text = (
        f"The best of {search.started()} trials is trial {best.number}, with a validation accuracy of {best.value:.4f} after "
        f"epochs={best.user_attrs['epochs']}. "
    )
    own = search.study.trials[0]
    if own.state != TrialState.COMPLETE or own.value is None or best.value is None:
        return text + "The trial with the recipe's own parameters is not complete, so they cannot be compared."
    more = round((best.value - own.value) * validation_rows)
    if best.value <= own.value:
        return text + f"The search did not beat the recipe's own parameters, which reached {own.value:.4f} in trial 0."
    return text + (
        f"The search beat the recipe's own parameters, which reached {own.value:.4f}, by {more} of {validation_rows} "
        "validation photos. The best of several trials is partly luck, and main measures it on the test photos."
    )


def best_recipe(search: Search, best: FrozenTrial, text: str) -> str:
    """Return the recipe with the values of a trial, as YAML that `main` accepts, below a comment."""
    recipe = with_values(search.recipe, search.values(best))
    steps = recipe.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
    comment = "".join(f"# {sentence.strip().removesuffix('.')}.\n" for sentence in text.split(". "))
    return comment + yaml.safe_dump({step: own for step, own in steps.items() if own}, sort_keys=False)


def importances(search: Search) -> dict[str, float]:
    """Return how much each parameter matters for the accuracy, by PED-ANOVA, largest first. Empty for too few trials.

    Watanabe et al. 2023, https://arxiv.org/abs/2304.10255. The fractions add up to 1.
    """
    values = [trial.value for trial in search.study.get_trials(states=[TrialState.COMPLETE])]
    if len(values) < ENOUGH or len(set(values)) < 2:
        return {}
    return optuna.importance.get_param_importances(search.study)


def importance_figure(found: dict[str, float]) -> Figure:
    """Draw the importance of each parameter as a bar."""
    figure = Figure((7.0, 1.2 + 0.4 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(list(found), list(found.values()))
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set(title="Importance of the parameters", xlabel="share of the effect on the accuracy", xlim=(0, 1.1))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def parallel_coordinates(table: pd.DataFrame, scales: dict[str, str]) -> Figure:
    """Draw each trial as a line through its parameters to its accuracy. Pruned trials are grey and have no accuracy.

    Args:
        table: from `trial_table`.
        scales: the axis of each searched parameter: list, linear or log.
    """
    rows = table[table["state"].isin(["complete", "pruned"])]
    accuracy = rows["val_accuracy"].where(rows["state"] == "complete")
    figure = Figure((2.5 + 1.5 * len(scales), 5.0), layout="constrained")
    axes = figure.add_subplot()
    heights = [_axis(axes, place, rows[name], scale) for place, (name, scale) in enumerate(scales.items())]
    lines = np.stack([*heights, _axis(axes, len(scales), accuracy, "linear")], axis=1)
    colours = ScalarMappable(Normalize(accuracy.min(), accuracy.max()), "viridis")
    figure.colorbar(colours, ax=axes, label="validation accuracy")
    for line, value in sorted(zip(lines, accuracy, strict=True), key=lambda pair: np.nan_to_num(pair[1])):
        pruned = np.isnan(value)
        axes.plot(line, color="0.8" if pruned else colours.to_rgba(value), lw=0.8 if pruned else 1.6)
    names = [name.replace(".", ".\n") for name in scales]
    axes.set_xticks(range(len(names) + 1), [*names, "validation\naccuracy"])
    axes.set(title="Trials of the search", ylim=(-0.08, 1.08), yticks=[])
    axes.grid(axis="x", color="0.3", lw=1)
    axes.spines[:].set_visible(False)
    return figure


def scales(search: Search) -> dict[str, str]:
    """Return the kind of axis of each searched parameter: list, linear or log."""
    numeric = {True: "log", False: "linear"}
    return {name: numeric[of.log] if hasattr(of, "log") else "list" for name, of in search.space.items()}


def _axis(axes: Axes, place: int, values: pd.Series, scale: str) -> np.ndarray:
    """Write values beside the axis of a parameter, and return the height (N,) of each trial, from 0 to 1."""
    if scale == "list":
        known = sorted(values.unique(), key=lambda value: (isinstance(value, str), value))
        marks = {str(value): index / max(len(known) - 1, 1) for index, value in enumerate(known)}
        heights = np.array([marks[str(value)] for value in values])
    else:
        numbers = values.to_numpy(float)
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        scaled, ends = (np.log(numbers), np.log([low, high])) if scale == "log" else (numbers, np.array([low, high]))
        heights = (scaled - ends[0]) / (ends[1] - ends[0] or 1.0)
        marks = {f"{high:.4g}": 1.0, f"{low:.4g}": 0.0}
    for text, height in marks.items():
        axes.text(place + 0.04, height, text, fontsize=8, va="center", bbox={"fc": "white", "ec": "none", "pad": 1})
    return heights
