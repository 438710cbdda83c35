"""The search for parameters: its space, its trials after a kill, successive halving, and the recipe that it ends with."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml

from carmodel.errors import InputError
from carmodel.parameters import Recipe
from carmodel.recipe import SettingsError
from steps.main import parse_main
from steps.sweep import parse_sweep
from tests.project import Project, environment
from tests.tracked import new_database

pytest.importorskip("optuna", reason="Optuna is not installed: make sweep")

from optuna.trial import TrialState

from carmodel.training.search import Search, locked
from carmodel.training.search_results import (
    best_recipe,
    best_trial,
    importance_figure,
    importances,
    parallel_coordinates,
    scales,
    trial_table,
    verdict,
)

SPACE = {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "optimizer": ["sgd", "adamw"]}


def recipe_of(folder: Path, **sweep: object) -> Recipe:
    """Parse a recipe with the learning rate 0.05 and a search."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"train": {"epochs": 2}, "sweep": {"space": {"train": SPACE}} | sweep}))
    return parse_sweep(["--config", str(file)])[0]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of(tmp_path, rungs=["1", "2"], study="cars")


@pytest.fixture
def search(tmp_path: Path, recipe: Recipe) -> Callable[[], Search]:
    """Opens the same study again and again, as later commands do."""
    with locked(tmp_path / "cars"):
        pass
    return lambda: Search(tmp_path / "cars", recipe)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "sweep needs a search space"),
        ({"train": {"learning_rte": [1]}}, "did you mean `learning_rate`"),
        ({"preprocess.seed": [1]}, "only parameters of augment and train"),
        ({"train.store_uri": ["a"]}, "train.store_uri names an input"),
        ({"train.learning_rate": 3}, "train.learning_rate needs a list of values, or a range"),
        ({"train.learning_rate": {"low": 3, "high": 2}}, "low must be less than high"),
        ({"train.learning_rate": {"low": -1, "high": 2}}, "train.learning_rate=-1.0: Input should be greater than 0"),
        ({"train.optimizer": ["sgd", "lion"]}, "train.optimizer='lion'"),
        ({"train.depth": {"low": 14, "high": 50}}, "train.depth is not a number"),
        ({"train.learning_rate": [0.1, 0.2]}, "own value train.learning_rate=0.05 is not among 0.1, 0.2"),
        ({"train.epochs": [1, 2]}, "train.epochs is set by sweep.rungs"),
    ],
)
def test_an_invalid_space_is_refused_with_what_to_do(tmp_path: Path, space: dict, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        recipe_of(tmp_path, space=space, rungs="1 2")
    assert said in str(error.value)


def test_a_search_without_validation_photos_is_refused() -> None:
    with pytest.raises(SettingsError, match="validation_fraction must be more than 0"):
        parse_sweep(["--config", "sweep_demo", "--validation_fraction", "0"])


def test_the_first_trial_has_the_recipe_s_own_values(search: Callable[[], Search]) -> None:
    opened = search()
    assert opened.values(opened.ask()) == {"train.learning_rate": 0.05, "train.optimizer": "sgd"}


def test_a_stopped_search_proposes_the_same_trials_as_one_that_was_not(
    search: Callable[[], Search], tmp_path: Path, recipe: Recipe
) -> None:
    (tmp_path / "whole").mkdir()
    whole = Search(tmp_path / "whole", recipe)
    stopped = []
    for accuracy in np.linspace(0.1, 0.9, 4):
        again = search()
        asked = again.ask()
        again.report(asked, accuracy, rung=0, epochs="1")  # and is killed here
        again = search()
        (trial,) = again.unfinished()
        assert again.values(trial) == again.values(asked)
        again.report(trial, 0.0, rung=0, epochs="1")  # the first report counts
        assert again.record(trial).intermediate_values == {1: accuracy}
        again.study.tell(trial, accuracy)
        stopped.append(again.values(trial))
        other = whole.ask()
        whole.report(other, accuracy, rung=0, epochs="1")
        whole.study.tell(other, accuracy)
    assert search().started() == len({str(values) for values in stopped}) == 4
    assert stopped == [whole.values(trial) for trial in whole.study.trials]


def test_a_study_of_another_space_is_refused(search: Callable[[], Search], tmp_path: Path) -> None:
    search()
    other = recipe_of(tmp_path, rungs=["1", "2"], study="cars", space={"train.optimizer": ["sgd"]})
    with pytest.raises(InputError, match=r"a search with another recipe: space was .*-P study=NAME"):
        Search(tmp_path / "cars", other)


def test_only_one_process_works_on_a_study(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "cars"),
        pytest.raises(InputError, match="another sweep works on"),
        locked(tmp_path / "cars"),
    ):
        pass


def test_a_trial_continues_only_if_it_is_in_the_better_half(search: Callable[[], Search]) -> None:
    opened = search()
    pruned = []
    for accuracy in (0.5, 0.4, 0.6, 0.45, 0.7, 0.3):
        trial = opened.ask()
        opened.report(trial, accuracy, rung=0, epochs="1")
        pruned.append(trial.should_prune())
    assert pruned == [False, True, False, True, False, True]


def test_the_results_name_the_best_trial_and_draw_all(search: Callable[[], Search]) -> None:
    opened = search()
    for number, accuracy in enumerate((0.5, 0.625, 0.75, 0.25, 0.5, 0.3)):
        trial = opened.ask()
        opened.report(trial, accuracy, rung=0, epochs="1")
        state = TrialState.PRUNED if number == 5 else TrialState.COMPLETE
        opened.study.tell(trial, accuracy if number < 5 else None, state=state)
    best, table = best_trial(opened), trial_table(opened)
    assert best is not None
    assert best.number == 2
    assert "beat the recipe's own parameters, which reached 0.5000, by 2 of 8" in verdict(opened, best, 8)
    assert table["state"].tolist() == ["complete"] * 5 + ["pruned"]
    assert table["train.learning_rate"][0] == 0.05
    for figure in (parallel_coordinates(table, scales(opened)), importance_figure(importances(opened))):
        figure.canvas.draw()
    assert sum(importances(opened).values()) == pytest.approx(1)


def test_a_search_that_found_nothing_better_says_so(search: Callable[[], Search]) -> None:
    opened = search()
    for _ in range(2):
        trial = opened.ask()
        opened.report(trial, 0.5, rung=1, epochs="2")
        opened.study.tell(trial, 0.5)
    best = best_trial(opened)
    assert best is not None
    assert best.number == 0
    text = verdict(opened, best, 8)
    assert "did not beat the recipe's own parameters" in text
    assert yaml.safe_load(best_recipe(opened, best, text))["train"] == {
        "epochs": "2",
        "learning_rate": 0.05,
        "optimizer": "sgd",
    }


@pytest.fixture(scope="module")
def killed_and_continued(commands: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A sweep of three trials that was killed in its second one, and was run again."""
    project = Project(tmp_path_factory.mktemp("sweep") / "project", environment(commands, CUDA_VISIBLE_DEVICES=""))
    new_database(project.folder)
    tiny = {
        "preprocess": {"sample_classes": 2, "sample_photos": 10, "image_size": 16, "validation_fraction": 0.3},
        "augment": {"copies": 0},
        "train": {"depth": 14, "width": 4, "batch_size": 8},
        # Among three trials of two values, one repeats another.
        "sweep": {
            "study": "tiny",
            "trials": 3,
            "rungs": ["16x1", "16x2"],
            "space": {"train.random_flip": [False, True]},
        },
    }
    (project.folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    command = ("python", "-m", "steps.sweep", "--config", "tiny.yaml")
    variables = project.environment | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=project.folder, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("sweep: trial 1:"):
                break
        process.kill()
    done = project.run(*command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return project


@pytest.mark.slow
def test_a_killed_sweep_continues_and_loses_and_repeats_nothing(killed_and_continued: Project) -> None:
    results = killed_and_continued.folder / "sweeps" / "tiny" / "results"
    table = pd.read_csv(results / "trials.csv")
    assert table["trial"].tolist() == [0, 1, 2]
    assert set(table["state"]) <= {"complete", "pruned"}
    client = mlflow.MlflowClient(f"sqlite:///{killed_and_continued.folder}/mlflow.db")
    runs = [run for run in client.search_runs(["0"]) if run.info.run_name == "train"]
    trained = [(run.data.params["random_flip"], run.data.params["epochs"]) for run in runs]
    assert len(trained) == len(set(trained)), "a repeated trial trains again"
    for run in runs:
        epochs = int(run.data.params["epochs"].partition("x")[2])
        assert len({point.step for point in client.get_metric_history(run.info.run_id, "val_accuracy")}) == epochs


@pytest.mark.slow
def test_main_accepts_the_best_recipe(killed_and_continued: Project) -> None:
    file = killed_and_continued.folder / "sweeps" / "tiny" / "results" / "best.yaml"
    recipe = parse_main(["--config", str(file)]).recipe
    assert (recipe.preprocess.image_size, recipe.train.width, recipe.sweep.space) == (16, 4, {})
    assert "The best of 3 trials is trial" in file.read_text()
    assert (
        "next:        mlflow run . --env-manager local -P config=sweeps/tiny/results/best.yaml"
        in killed_and_continued.said
    )
