"""Where a step makes its images: the engine of its parameters, and the folder it writes to."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from carmodel.data.local_engine import Engine, local_engine
from carmodel.data.spark_engine import spark_engine
from carmodel.data.spark_session import ship, spark_session
from carmodel.parameters import OnEngine
from carmodel.tracking.runs import StepRun


@contextmanager
def engine_of(settings: OnEngine, packages: tuple[str, ...] = ()) -> Iterator[Engine]:
    """The engine that the parameters name; a Spark session that was started for it is stopped in the end.

    Args:
        settings: of the step.
        packages: what the executors need of this project beside ``carmodel``.
    """
    if settings.engine == "local":
        yield local_engine
        return
    with spark_session(settings.spark_master) as session:
        ship(session, ["carmodel", *packages])
        print(f"{type(settings).__name__.lower()}: Spark {session.version} on {session.conf.get('spark.master', '?')}")
        yield spark_engine(session, settings.partitions)


@contextmanager
def output_folder(settings: OnEngine, step: StepRun, name: str) -> Iterator[Path]:
    """An empty folder for the output `name`, on storage that the nodes share where `work_folder` says so."""
    with TemporaryDirectory(prefix=".carmodel-", dir=settings.work_folder or step.folder) as work:
        folder = Path(work) / name
        folder.mkdir()
        if settings.work_folder:  # executors may run under another name
            for made in (folder.parent, folder):
                made.chmod(Path(settings.work_folder).stat().st_mode)
        yield folder


def seen_by_all(path: Path, settings: OnEngine, scratch: Path) -> Path:
    """A folder that this machine has made or downloaded, where the executors see it: a copy if there is a `work_folder`."""
    return Path(shutil.copytree(path, scratch / "input")) if settings.work_folder else path
