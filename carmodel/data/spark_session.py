"""The Spark session: the active one, or a new one that stops when the work is done."""

import atexit
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from tqdm import tqdm

from carmodel.errors import InputError

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

JAVA = 17  # the oldest version that Spark 4 supports
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def spark_session(master: str = "", needs: str = "engine=spark") -> Iterator["SparkSession"]:
    """Use the active session, as on Databricks, or start one and stop it at the end of the block.

    A new session has Spark's own settings (``spark-submit``, ``spark-defaults.conf``, ``PYSPARK_SUBMIT_ARGS``). If they
    name no master, it runs on all cores of this machine. Environment variables and the handler of Ctrl-C are restored.

    Args:
        master: URL of a cluster, such as ``spark://host:7077``; empty uses Spark's settings.
        needs: the parameter that requires Spark, for error messages.

    Raises:
        InputError: PySpark or Java is missing, Java is too old, the master does not answer, or a session on another
            master is active.
    """
    if find_spec("pyspark") is None:
        raise InputError(f"{needs} needs PySpark, which is not installed: make spark")
    from pyspark.sql import SparkSession

    if active := SparkSession.getActiveSession():
        if master and master != active.conf.get("spark.master", master):
            raise InputError(f"spark_master={master}, but a session on {active.conf.get('spark.master')} is active")
        yield active
        return
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # otherwise spark-submit has started Java already
        check_java(needs)
    check_master(master)
    builder = SparkSession.builder.appName("carmodel").config("spark.ui.showConsoleProgress", "false")
    # Executors run this Python. The pandas API on Spark needs the second variable before Java starts.
    with _default_environment(PYSPARK_PYTHON=sys.executable, PYARROW_IGNORE_TIMEZONE="1"):
        on_interrupt = signal.getsignal(signal.SIGINT)
        session = (builder.master(master) if master else builder).getOrCreate()
        if threading.current_thread() is threading.main_thread():
            # PySpark's handler calls Java, even in the middle of another call to Java.
            signal.signal(signal.SIGINT, on_interrupt)
        try:
            session.sparkContext.setLogLevel("ERROR")
            yield session
        finally:
            session.stop()


@contextmanager
def _default_environment(**variables: str) -> Iterator[None]:
    """Set environment variables that are not set yet, and remove them at the end of the block."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def check_java(needs: str) -> None:
    """Check that the Java that Spark will start exists and is new enough.

    Raises:
        InputError: it does not or is not. Names the package to install.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    install = f"install Java {JAVA} (apt-get install openjdk-{JAVA}-jre-headless, or brew install openjdk@{JAVA})"
    if java is None:
        raise InputError(f"{needs} needs Java, which was not found{f' in JAVA_HOME={home}' if home else ''}: {install}")
    output = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', output)
    if version is None or int(version[1]) < JAVA:
        found = f"version {version[1]}" if version else "of an unknown version"
        raise InputError(f"{needs} needs Java {JAVA} or newer; {java} is {found}: {install} and set JAVA_HOME")


def check_master(master: str) -> None:
    """Check that a standalone master answers. Spark itself would try for minutes.

    Raises:
        InputError: it does not answer.
    """
    if not (address := re.fullmatch(r"spark://([^:/,]+):(\d+)", master)):
        return
    try:
        socket.create_connection((address[1], int(address[2])), timeout=10).close()
    except OSError as error:
        raise InputError(f"spark_master={master} does not answer ({error.strerror or error}). Is it running?") from None


def ship(session: "SparkSession", packages: list[str]) -> None:
    """Send Python packages of this project to the executors. Installed packages must be installed there, too.

    Args:
        session: the Spark session.
        packages: names of packages or modules next to ``carmodel/``. Other names are skipped.
    """
    # Executors that start later fetch the file too, so it is kept until this process ends.
    folder = Path(mkdtemp(prefix="carmodel-ship-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for package in dict.fromkeys(packages):
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, folder / "staged" / package, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / f"{package}.py").is_file():
            shutil.copy(ROOT / f"{package}.py", folder / "staged")
    archive = Path(shutil.make_archive(str(folder / "source"), "zip", folder / "staged"))
    # The name depends on the content, since Spark refuses a different file of the same name.
    digest = hashlib.blake2b(archive.read_bytes(), digest_size=8).hexdigest()
    session.addArtifacts(str(archive.rename(folder / f"carmodel-{digest}.zip")), pyfile=True)


def spark_context(session: "SparkSession") -> "SparkContext | None":
    """Return the session's context, or None for Spark Connect, which has none."""
    try:
        return session.sparkContext
    except (AttributeError, NotImplementedError):
        return None


def number_of_cores(session: "SparkSession") -> int:
    """Return the number of cores of the cluster. For Spark Connect it is unknown, and 1,000 is returned."""
    context = spark_context(session)
    return context.defaultParallelism if context else 1000


@contextmanager
def job_progress(session: "SparkSession", title: str, tasks: int) -> Iterator[None]:
    """Show the number of finished tasks of the jobs within the block. Spark Connect shows its own progress bar."""
    context = spark_context(session)
    if context is None:
        yield
        return
    group, done = uuid.uuid4().hex, threading.Event()
    tracker = context.statusTracker()
    context.setJobGroup(group, title)
    with tqdm(total=tasks, desc=title, unit="task", mininterval=1) as bar:

        def follow() -> None:
            while not done.wait(0.5):
                jobs = filter(None, map(tracker.getJobInfo, tracker.getJobIdsForGroup(group)))
                stages = filter(None, (tracker.getStageInfo(stage) for job in jobs for stage in job.stageIds))
                bar.update(min(tasks, sum(stage.numCompletedTasks for stage in stages)) - bar.n)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
            bar.update(tasks - bar.n)
        finally:
            done.set()
            follower.join()
            context.setLocalProperty("spark.jobGroup.id", None)  # type: ignore[arg-type]  # the session may be shared
