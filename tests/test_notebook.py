"""The notebook runs from its first cell to its last, does what its text says, and is committed without outputs."""

import ast
import json
import re
import shutil
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from nbclient import NotebookClient

from carmodel.data.store import open_store
from carmodel.parameters import ENTRY_POINTS, STEPS
from carmodel.tracking.digests import ROOT
from steps.command import parse_step
from tests.project import environment
from tests.test_readme import README, commands_in
from tests.tiny import free_port

FILE = ROOT / "notebooks" / "walkthrough.ipynb"
SMALL = {
    **{"PHOTOS": "", "STORES": "", "CAR_PHOTO": ""},
    **{"CLASSES": 3, "PHOTOS_PER_CLASS": 10, "IMAGE_SIZE": 32, "DEPTH": 14, "WIDTH": 4, "EPOCHS": 2},
}
FIGURES = [
    "photos",
    "store",
    "compare",
    "draw-blocks",
    "scale-figure",
    "memory-figure",
    "curves",
    "evaluation",
    "base64",
]
"""Cells that promise a figure, by id."""


def read() -> Any:
    return nbformat.read(FILE, as_version=4)


def texts(cell: Any, stream: str) -> str:
    """Return what a cell printed to stdout or stderr."""
    return "".join(output.text for output in cell.outputs if output.get("name") == stream)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook") / "walkthrough"


@pytest.fixture(scope="module")
def executed(folder: Path, commands: str) -> dict[str, Any]:
    """The cells by id, after a run with small parameters."""
    notebook = read()
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    values = SMALL | {"WORK": str(folder), "PORT": free_port()}
    assert {node.id for node in ast.walk(ast.parse(parameters.source)) if isinstance(node, ast.Name)} == values.keys()
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    variables = environment(commands, PYSPARK_SUBMIT_ARGS="--conf spark.ui.enabled=false pyspark-shell")
    variables.pop("PYTEST_CURRENT_TEST", None)  # a kernel would not show what processes print
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FILE.parent)}})
    client.execute(env=variables)
    return {cell.id: cell for cell in notebook.cells}


def test_the_committed_notebook_is_plain_and_has_no_outputs() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len(notebook.cells) <= 40
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id
            assert not re.search(r"(?m)^\s*[%!]", cell.source), f"{cell.id} has a magic"
            assert len(cell.source.splitlines()) <= 40, cell.id


def test_every_section_says_why_and_the_readme_leads_to_each() -> None:
    markdown = "\n\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    sections = re.split(r"(?m)^## (?=\d+\. )", markdown)[1:]
    numbers = [section.partition(".")[0] for section in sections]
    assert all("*Why: " in section for section in sections)
    linked = re.findall(r"\[(\d+)\]\[nb\]", README.read_text())
    assert sorted(set(linked), key=int) == [n for n in numbers if n != "11"]  # the article does not have the last one


def test_every_link_and_command_of_the_notebook_works(tmp_path: Path) -> None:
    markdown = "\n\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", markdown):
        assert (FILE.parent / link).exists(), link
    (page := tmp_path / "page.md").write_text(markdown)
    commands = commands_in(page, "mlflow run")
    assert len(commands) > 3
    for words in commands:
        step = words[words.index("-e") + 1]
        parse_step(step, ENTRY_POINTS[step], [f"--{value}" for option, value in pairwise(words) if option == "-P"])


@pytest.mark.slow
def test_every_cell_that_promises_a_figure_shows_one(executed: dict[str, Any]) -> None:
    for name in FIGURES:
        assert any("image/png" in output.get("data", {}) for output in executed[name].outputs), name


@pytest.mark.slow
def test_libraries_are_quiet(executed: dict[str, Any]) -> None:
    said = "".join(texts(cell, "stderr") for cell in executed.values() if cell.cell_type == "code")
    lines = [line for line in re.split(r"[\r\n]+", said) if not re.match(r"\s*$|writing augmented\.h5", line)]
    assert lines == [
        "Successfully registered model 'walkthrough-cars'.",
        "Created version '1' of model 'walkthrough-cars'.",
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("java") is None, reason="Java is not installed: apt-get install openjdk-17-jre-headless"
)
@pytest.mark.skipif(find_spec("pyspark") is None, reason="PySpark is not installed (Java is): make spark")
def test_the_copies_are_made_by_spark(executed: dict[str, Any]) -> None:
    assert "augment: Spark" in texts(executed["copies"], "stdout")


@pytest.mark.slow
@pytest.mark.usefixtures("executed")
def test_two_settings_make_different_copies_of_the_same_rows(folder: Path) -> None:
    gentle, strong = (open_store(folder / name / "augmented.h5") for name in ("gentle", "strong"))
    assert len(gentle) == len(strong) > 0
    assert (gentle.source_index == strong.source_index).all()
    rows = np.arange(len(gentle))
    assert (gentle.take(rows) != strong.take(rows)).any(axis=(1, 2, 3)).all()


@pytest.mark.slow
@pytest.mark.usefixtures("executed")
def test_its_own_tracking_store_has_runs_curves_predictions_and_a_version(folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db", f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("walkthrough")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"walkthrough", *STEPS} - {"augment"}  # the notebook makes the copies itself
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(client.get_metric_history(runs["train"].info.run_id, "val_loss")) == SMALL["EPOCHS"]
    stores = Path(client.download_artifacts(runs["preprocess"].info.run_id, "data"))
    report = Path(client.download_artifacts(runs["evaluate"].info.run_id, "report"))
    assert len(pd.read_csv(report / "predictions.csv")) == len(open_store(stores / "test.h5")) == 6
    version = client.get_model_version_by_alias("walkthrough-cars", "candidate")
    assert version.run_id == runs["package_pyfunc"].info.run_id


@pytest.mark.slow
def test_all_ways_to_load_give_the_same_answers(executed: dict[str, Any]) -> None:
    (table,) = executed["three-ways"].outputs
    differences = re.findall(r"<td>([^<]+)</td>\s*</tr>", table.data["text/html"])
    assert [float(difference) <= 1e-6 for difference in differences] == [True] * 3


@pytest.mark.slow
def test_the_deployed_classifier_answers_as_the_pyfunc_and_is_stopped(executed: dict[str, Any], folder: Path) -> None:
    printed = texts(executed["deployment"], "stdout")
    (answer,) = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])["predictions"]
    assert answer["error"] is None
    assert answer["label"].startswith("Synthetic")
    assert len(answer["top_k"]) == 2
    assert not list((folder / "deployed").glob("*"))
