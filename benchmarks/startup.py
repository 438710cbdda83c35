"""Start: until the first training step, a pipeline whose steps are all reused, and ``--help``."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.first_step import BATCH, NETWORK
from benchmarks.given import Given
from benchmarks.photos import store_of
from benchmarks.turns import Competitor, Entry, Table, seconds, take_turns
from carmodel.data.threads import cores
from carmodel.parameters import STEPS
from carmodel.tracking.digests import ROOT
from tests.project import Project, environment, happened
from tests.tracked import new_database

TITLE = "Start"
EMPTY = 'name: empty\nentry_points:\n  main:\n    command: "python -c pass"\n'


def measure(given: Given) -> list[Table]:
    """Measure the three kinds of start, each in new processes. There is no warm-up, since every start is a first one."""
    project = prepared(given.folder / "project")
    rounds = given.rounds()
    return [cached(given, project, rounds), first_step(given, project, rounds), show_help(project, rounds)]


def prepared(folder: Path) -> Project:
    """Copy the project to a new folder, with a tracking store of its own."""
    folder.mkdir()
    project = Project(folder, environment(str(Path(sys.executable).parent)))
    new_database(folder)
    (folder / "pretrained").symlink_to(ROOT / "pretrained")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    return project


def command(project: Project, *words: str) -> Callable[[], float]:
    """Return a function that runs a command in the copy of the project, and returns its seconds."""
    return seconds(partial(succeeded, project, words))


def succeeded(project: Project, words: Sequence[str]) -> str:
    """Run a command, and return its output.

    Raises:
        RuntimeError: it failed.
    """
    done = project.run(*words)
    return printed(done, " ".join(words))


def printed(done: subprocess.CompletedProcess[str], name: str) -> str:
    """Return the output of a command that succeeded."""
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stdout


def first_step(given: Given, project: Project, rounds: int) -> Table:
    """Measure from the start of the process to the end of the first training step."""
    store = str(store_of(given, 4 * BATCH, given.folder / "store").paths[0])
    script = ("python", "-m", "benchmarks.first_step")
    imports: list[float] = []

    def plain() -> None:
        imports.append(float(succeeded(project, (*script, "keras", store))))

    competitors = [
        Competitor("carmodel: fit", "ours", cores(), {"": command(project, *script, "carmodel", store)}),
        Competitor("a plain Keras script", "peer", cores(), {"": seconds(plain)}),
    ]
    title = f"From the start of Python to the first training step of {NETWORK}, batch {BATCH}"
    entries = take_turns(competitors, rounds, warm_up=0)
    limit = Entry("import tensorflow, in the plain script", "limit", 1, {"": imports})
    return Table(title, "s", [*entries, limit], [], "Start to the first training step of fit")


def cached(given: Given, project: Project, rounds: int) -> Table:
    """Measure `main` when every step is reused, beside an MLflow project that does nothing."""
    (empty := given.folder / "empty").mkdir()
    (empty / "MLproject").write_text(EMPTY)

    def main() -> dict[str, str]:
        done = project.main("Default", package_pyfunc__registered_model_name="tiny")
        return happened(printed(done, "mlflow run ."))

    def reused() -> None:
        if list(done := main().values()) != ["reused"] * len(STEPS):
            raise RuntimeError(f"main did not reuse every step: {done}")

    main()  # runs every step
    nothing = command(project, "mlflow", "run", str(empty), "--env-manager", "local", "--experiment-name", "Default")
    competitors = [
        Competitor("carmodel: main, all steps reused", "ours", cores(), {"": seconds(reused)}),
        Competitor("mlflow run of a project that does nothing", "peer", 1, {"": nothing}),
        Competitor("import mlflow", "limit", 1, {"": command(project, "python", "-c", "import mlflow")}),
    ]
    return Table(
        "mlflow run . with every step reused",
        "s",
        take_turns(competitors, rounds, warm_up=0),
        [],
        "main, all steps reused",
    )


def show_help(project: Project, rounds: int) -> Table:
    """Measure ``--help``."""
    competitors = [
        Competitor(
            "carmodel: steps.train --help", "ours", 1, {"": command(project, "python", "-m", "steps.train", "--help")}
        ),
        Competitor("python -c pass", "limit", 1, {"": command(project, "python", "-c", "pass")}),
    ]
    return Table("--help", "s", take_turns(competitors, rounds, warm_up=0), [], "--help")
