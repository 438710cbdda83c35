"""MLflow in a folder of its own, for as long as a test wants it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow


@contextmanager
def tracked_in(folder: Path) -> Iterator[None]:
    """Runs and registry in `folder`/mlflow.db; afterwards where they were.

    The registry is left to follow the tracking URI: one that was set, even to what it was, would stay for later tests.
    """
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    yield
    mlflow.set_tracking_uri(before)
