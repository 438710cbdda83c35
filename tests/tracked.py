"""MLflow with its database in a test's folder."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow


@cache
def _template() -> tuple[TemporaryDirectory[str], Path]:
    """A database with all of MLflow's tables, and the folder that goes when this process ends."""
    folder = TemporaryDirectory(prefix="carmodel-mlflow-")
    path = Path(folder.name, "mlflow.db")
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return folder, path


def new_database(folder: Path, artifacts: str = "") -> str:
    """Put an empty database into `folder`, and return its URI. Artifacts of its default experiment go there, too.

    A tracking server that hands out artifacts itself needs `artifacts` as their location, such as mlflow-artifacts:/0.

    To copy a database takes a tenth of the time that MLflow needs to create one.
    """
    shutil.copy(_template()[1], folder / "mlflow.db")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute(
            "UPDATE experiments SET artifact_location = ?", [artifacts or (folder / "mlruns" / "0").as_uri()]
        )
    return f"sqlite:///{folder}/mlflow.db"


@contextmanager
def tracked_in(folder: Path) -> Iterator[None]:
    """Keep runs and registry in `folder`/mlflow.db, which is created if there is none, inside the `with` block."""
    before = mlflow.get_tracking_uri()
    # The registry follows. To set it, even to this URI, would pin it there for later tests.
    mlflow.set_tracking_uri(
        f"sqlite:///{folder}/mlflow.db" if (folder / "mlflow.db").exists() else new_database(folder)
    )
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
