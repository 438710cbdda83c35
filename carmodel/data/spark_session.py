"""A Spark session: the one that is there, or one of our own that ends with the work."""

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
    from pyspark.sql import SparkSession

JAVA = 17  # the oldest that Spark 4 runs on
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def spark_session(master: str = "", needs: str = "engine=spark") -> Iterator["SparkSession"]:
    """The active session (on Databricks, in a notebook), or a new one, which is stopped in the end.

    A new one has Spark's own settings (``spark-submit``, ``spark-defaults.conf``, ``PYSPARK_SUBMIT_ARGS``), and all cores of
    this machine where they name no master.

    Args:
        master: of a cluster, such as ``spark://host:7077``; empty: as the settings say.
        needs: the parameter that wants Spark, for errors.

    Raises:
        InputError: no PySpark, no Java, one that is too old, a master that does not answer, or another session is active.
    """
    if find_spec("pyspark") is None:
        raise InputError(f"{needs} needs PySpark, which is not installed: make spark")
    from pyspark.sql import SparkSession

    if active := SparkSession.getActiveSession():
        if master and master != active.conf.get("spark.master", master):
            raise InputError(f"spark_master={master}, but a session on {active.conf.get('spark.master')} is active")
        yield active
        return
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYARROW_IGNORE_TIMEZONE", "1")  # the pandas API wants it, before Java starts
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit has started Java
        check_java(needs)
    check_master(master)
    builder = SparkSession.builder.appName("carmodel").config("spark.ui.showConsoleProgress", "false")
    session = (builder.master(master) if master else builder).getOrCreate()
    if threading.current_thread() is threading.main_thread():
        # PySpark's own handler talks to Java in the middle of whatever is being said to Java.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        session.sparkContext.setLogLevel("ERROR")
        yield session
    finally:
        session.stop()


def check_java(needs: str) -> None:
    """Check that the Java that Spark will start is there and new enough.

    Raises:
        InputError: it is not; names the package to install.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    install = f"install Java {JAVA} (apt-get install openjdk-{JAVA}-jre-headless, or brew install openjdk@{JAVA})"
    if java is None:
        raise InputError(f"{needs} needs Java, and there is none{f' in JAVA_HOME={home}' if home else ''}: {install}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None or int(version[1]) < JAVA:
        found = f"version {version[1]}" if version else "of an unknown version"
        raise InputError(f"{needs} needs Java {JAVA} or newer; {java} is {found}: {install} and set JAVA_HOME")


def check_master(master: str) -> None:
    """Check that a standalone master answers: Spark itself would try for minutes.

    Raises:
        InputError: it does not.
    """
    if not (address := re.fullmatch(r"spark://([^:/,]+):(\d+)", master)):
        return
    try:
        socket.create_connection((address[1], int(address[2])), timeout=10).close()
    except OSError as error:
        raise InputError(f"spark_master={master} does not answer ({error.strerror or error}): is it running?") from None


def ship(session: "SparkSession", packages: list[str]) -> None:
    """Send Python packages of this project to the executors; those that are installed must be installed there too.

    Args:
        session: of Spark.
        packages: names of folders or modules beside ``carmodel/``; what is not there is left to the environment.
    """
    # Executors that start later fetch it too: it stays as long as this process.
    folder = Path(mkdtemp(prefix="carmodel-ship-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for package in dict.fromkeys(packages):
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, folder / "staged" / package, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / f"{package}.py").is_file():
            shutil.copy(ROOT / f"{package}.py", folder / "staged")
    archive = Path(shutil.make_archive(str(folder / "source"), "zip", folder / "staged"))
    # A name of its own for every content: Spark refuses another file of a name that it has.
    digest = hashlib.blake2b(archive.read_bytes(), digest_size=8).hexdigest()
    session.addArtifacts(str(archive.rename(folder / f"carmodel-{digest}.zip")), pyfile=True)


@contextmanager
def job_progress(session: "SparkSession", title: str, tasks: int) -> Iterator[None]:
    """Show how many tasks of the jobs within the block are done (Spark Connect, which has no tracker, shows its own bar)."""
    context = getattr(session, "_sc", None)
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
            context.setLocalProperty("spark.jobGroup.id", None)  # the session may be somebody else's
