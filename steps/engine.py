"""Where a step processes its images: on the engine that its parameters choose, with output to a directory that it can write."""

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
def open_engine(settings: OnEngine, packages: tuple[str, ...] = ()) -> Iterator[Engine]:
    """Yield the engine that the parameters choose. A Spark session that was started for it stops afterwards.

    Args:
        settings: parameters of the step.
        packages: names of packages that the executors need besides ``carmodel``.
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
    """Yield an empty directory for the output `name`, in `work_folder` if the parameters name one that all machines share."""
    with TemporaryDirectory(prefix=".carmodel-", dir=settings.work_folder or step.folder) as work:
        folder = Path(work) / name
        folder.mkdir()
        if settings.work_folder:  # executors may run as another user
            for created in (folder.parent, folder):
                created.chmod(Path(settings.work_folder).stat().st_mode)
        yield folder


def shared_with_executors(path: Path, settings: OnEngine, scratch: Path) -> Path:
    """Return a path at which the executors can read a local directory: a copy in `scratch`, if there is a `work_folder`."""
    return Path(shutil.copytree(path, scratch / "input")) if settings.work_folder else path
