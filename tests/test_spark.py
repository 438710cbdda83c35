"""The Spark engine: the bytes of the local one, whatever the cluster, its cores, its tasks, and what dies in it."""

import os
import shutil
import subprocess
import sys
import zipfile
import zipimport
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carmodel.data.augmentation import augment_store
from carmodel.data.data_report import Report
from carmodel.data.local_engine import Engine
from carmodel.data.parts import parts_folder
from carmodel.data.preprocessing import write_stores
from carmodel.data.spark_engine import assign_tasks, keep_lists_of_zip_files, spark_engine
from carmodel.data.spark_session import check_java, check_master, number_of_cores, ship, spark_session
from carmodel.data.stanford_cars import read
from carmodel.data.store import Store, open_store
from carmodel.data.table import CarTable
from carmodel.errors import InputError
from carmodel.parameters import Preprocess
from examples.albumentations_transform import weather
from tests import transforms
from tests.project import environment
from tests.spark_cluster import NEEDS_SPARK, executors, wait_until
from tests.test_augmentation import STRENGTHS
from tests.tiny import free_port
from tests.tracked import new_database

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """The engine on two local cores; called with a number of partitions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_SUBMIT_ARGS", "--conf spark.ui.enabled=false pyspark-shell")
        patch.chdir(tmp_path_factory.mktemp("driver"))  # so that executors have what is shipped alone
        with spark_session("local[2]") as session:
            ship(session, ["carmodel", "examples", "tests"])
            yield lambda partitions=0: spark_engine(session, partitions)


def same(a: Store, b: Store) -> bool:
    """Whether two stores hold the same: images, columns and attributes."""
    columns = ("labels", "crc32", "source", "source_index", "validation", "class_names", "attrs")
    rows = np.arange(len(a))
    return (
        len(a) == len(b)
        and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in columns)
        and (np.array_equal(a.take(rows), b.take(rows)))
    )


def written(table: CarTable, out: Path, engine: Engine | None = None, **settings: object) -> Report:
    out.mkdir(parents=True)
    return write_stores(table, out, Preprocess(image_size=32, **settings), **({"engine": engine} if engine else {}))


pytestmark = NEEDS_SPARK


@pytest.mark.parametrize("partitions", [0, 7])
def test_preprocess_makes_the_stores_of_the_local_engine(
    engine: Callable[..., Engine], sample: Path, tmp_path: Path, partitions: int
) -> None:
    table = read(sample)
    reports = written(table, tmp_path / "local"), written(table, tmp_path / "spark", engine(partitions))
    assert reports[0] == reports[1]
    for name in ("train", "test"):
        assert same(open_store(tmp_path / "local" / f"{name}.h5"), open_store(tmp_path / "spark" / f"{name}.h5"))
    assert len(list((tmp_path / "spark" / "train.parts").iterdir())) == max(partitions, 1)


@pytest.mark.parametrize(("partitions", "parts"), [(0, 3), (7, 7)])
def test_augment_makes_the_copies_of_the_local_engine(
    engine: Callable[..., Engine], train: Path, partitions: int, parts: int
) -> None:
    settings = {"copies": 40, "seed": 5, "transform": weather, **STRENGTHS}
    one, linked = train.with_name("one.h5"), train.with_name("linked.h5")
    augment_store(train, one, **settings)
    augment_store(train, linked, engine=engine(partitions), **settings)
    assert same(open_store(one), open_store(linked))
    assert len(list(parts_folder(linked).iterdir())) == parts


@given(
    rows=st.integers(0, 3000), batch_rows=st.integers(1, 128), partitions=st.integers(0, 40), cores=st.integers(1, 64)
)
def test_rows_are_dealt_in_order_and_evenly_in_whole_parts(
    rows: int, batch_rows: int, partitions: int, cores: int
) -> None:
    tasks = assign_tasks(rows, batch_rows, partitions, cores)
    used, sizes = np.unique(tasks, return_counts=True)
    assert (np.diff(tasks) >= 0).all()
    assert used.tolist() == list(range(len(used)))
    if partitions and rows:
        assert len(used) == min(partitions, rows)
        assert sizes.max() - sizes.min() <= 1
    elif rows:
        parts = np.array([len(part) for part in np.split(tasks, range(batch_rows, rows, batch_rows))])
        assert len(used) == min(len(parts), 8 * cores)
        assert (np.diff(tasks)[np.arange(rows - 1) % batch_rows != batch_rows - 1] == 0).all()
        whole = -(-sizes // batch_rows)
        assert whole.max() - whole.min() <= 1


def test_a_worker_reads_the_list_of_a_zip_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipimport.zipimporter, "invalidate_caches", zipimport.zipimporter.invalidate_caches)
    with zipfile.ZipFile(tmp_path / "modules.zip", "w") as file:
        file.writestr("one.py", "")
    importer = zipimport.zipimporter(str(tmp_path / "modules.zip"))
    with zipfile.ZipFile(tmp_path / "modules.zip", "w") as file:
        file.writestr("another.py", "")  # what reading the list again would find
    keep_lists_of_zip_files()
    importer.invalidate_caches()
    assert importer.find_spec("another") is None


def test_a_corrupt_photo_is_reported_as_the_local_engine_reports_it(
    engine: Callable[..., Engine], sample: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(sample, tmp_path / "cars"))
    (copied / "cars_train" / "00002.jpg").write_bytes(b"not a photo")
    photo = copied / "cars_train" / "00007.jpg"
    photo.write_bytes(photo.read_bytes()[:-300])
    table = read(copied)
    reports = [
        written(table, tmp_path / name, engine, max_bad_fraction=0.1)
        for name, engine in (("a", None), ("b", engine(2)))
    ]
    assert reports[0] == reports[1]
    assert len(reports[0]["listed"]) == 2
    assert same(open_store(tmp_path / "a" / "train.h5"), open_store(tmp_path / "b" / "train.h5"))
    with pytest.raises(InputError, match=r"2 of 30 .* 00007\.jpg \(train\): unreadable, damaged image data"):
        written(table, tmp_path / "c", engine(2))
    assert not list((tmp_path / "c").iterdir())


def test_a_transform_that_fails_is_named_with_the_row_and_the_photo(engine: Callable[..., Engine], train: Path) -> None:
    out = train.with_name("a.h5")
    with pytest.raises(InputError, match=r"row 3 \(3\.jpg\), copy 0: transform breaks_on_row_3 raised RuntimeError"):
        augment_store(
            train, out, copies=1, crop=0, pad=0, flip=0, seed=1, transform=transforms.breaks_on_row_3, engine=engine(2)
        )
    assert not out.exists()


def test_a_folder_that_executors_cannot_see_is_explained(
    engine: Callable[..., Engine], sample: Path, tmp_path: Path
) -> None:
    table = read(sample)
    table.photos["path"] = "/nowhere" + table.photos["path"]
    with pytest.raises(InputError, match="No usable training photo .* 30 unreadable.* No such file or directory"):
        written(table, tmp_path / "out", engine(2))


def test_a_session_without_a_context_such_as_connect_is_supported() -> None:
    from pyspark.errors import PySparkAttributeError

    class Connect:
        @property
        def sparkContext(self) -> None:
            raise PySparkAttributeError("[JVM_ATTRIBUTE_NOT_SUPPORTED]")

    assert number_of_cores(Connect()) == 1000


def test_an_active_session_is_used_and_left_running(engine: Callable[..., Engine]) -> None:
    from pyspark.sql import SparkSession

    before = SparkSession.getActiveSession()
    with spark_session() as session:
        assert session is before
    assert session.range(3).count() == 3
    with pytest.raises(InputError, match=r"a session on local\[2\] is active"), spark_session("spark://elsewhere:7077"):
        pass


def java_of(version: str, folder: Path) -> Path:
    """A Java that says its version and no more."""
    (folder / "bin").mkdir(parents=True)
    java = folder / "bin" / "java"
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    return folder


@pytest.mark.parametrize(("version", "found"), [("11.0.22", "version 11"), ("1.8.0_402", "version 8")])
def test_an_old_java_is_an_error_that_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, found: str
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java_of(version, tmp_path / "jdk")))
    with pytest.raises(
        InputError, match=f"engine=spark needs Java 17 or newer; .* is {found}: .* openjdk-17-jre-headless"
    ):
        check_java("engine=spark")
    monkeypatch.setenv("JAVA_HOME", str(java_of("21.0.1", tmp_path / "new")))
    check_java("engine=spark")


def test_no_java_is_an_error_that_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(InputError, match="needs Java, which was not found: install Java 17 .*openjdk-17-jre-headless"):
        check_java("engine=spark")


def test_a_master_that_does_not_answer_is_an_error_at_once() -> None:
    master = f"spark://127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=rf"spark_master={master} does not answer \(Connection refused\)"):
        check_master(master)


@pytest.fixture
def standalone(tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A master and a worker of two executors, as processes of their own on loopback: the master's URL, and the worker."""
    import pyspark

    home = Path(pyspark.__file__).parent
    port = free_port()
    environment = os.environ | {
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
    }

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("wb") as log:
            command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{arguments[0]}", *arguments[1:]]
            return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)

    url = f"spark://127.0.0.1:{port}"
    started = [start("master", "master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0")]
    try:
        wait_until(lambda: "Starting Spark master" in (tmp_path / "master.log").read_text(), "the master", 60)
        options = ("-c", "2", "-m", "2g", "--host", "127.0.0.1", "--webui-port", "0", "-d", str(tmp_path / "worker"))
        started.append(start("worker", "worker.Worker", *options, url))
        wait_until(lambda: "Successfully registered" in (tmp_path / "worker.log").read_text(), "the worker", 60)
        yield url, psutil.Process(started[1].pid)
    finally:
        for process in started:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()


def test_an_executor_that_is_killed_in_the_middle_changes_nothing(
    standalone: tuple[str, psutil.Process], train: Path, tmp_path: Path, commands: str
) -> None:
    url, worker = standalone
    settings = {"copies": 40, "crop": 0.2, "pad": 0.0, "flip": 0.5, "seed": 2}
    expected = train.with_name("expected.h5")
    augment_store(train, expected, transform=transforms.noisy, **settings)
    shared, tracking = tmp_path / "shared", new_database(tmp_path)
    shared.mkdir()
    options = {
        "engine": "spark", "spark_master": url, "partitions": 30, "work_folder": shared, "store_uri": train.parent,
        "transform": "tests.transforms:slow", **settings,
    }  # fmt: skip
    command = ["python", "-m", "steps.augment", *(f"--{name}={value}" for name, value in options.items())]
    client = mlflow.MlflowClient(tracking)
    # Executors of a core each, and so two of them.
    arguments = "--conf spark.executor.cores=1 --conf spark.ui.enabled=false pyspark-shell"
    own = environment(commands, PYSPARK_SUBMIT_ARGS=arguments, MLFLOW_TRACKING_URI=tracking)
    with (tmp_path / "driver.log").open("w+") as log:
        driver = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log)
        try:
            wait_until(lambda: len(list(shared.rglob("*.h5"))) >= 4 or driver.poll() is not None, "parts", 120)
            assert driver.poll() is None, (tmp_path / "driver.log").read_text()[-3000:]
            victim, *_ = executors(worker)
            victim.kill()
            driver.wait(timeout=180)
        finally:
            driver.kill()
        said = (tmp_path / "driver.log").read_text()
    assert driver.returncode == 0, said[-3000:]
    assert len(list(tmp_path.glob("worker/app-*/*"))) > 2, "the worker started no other executor"
    (run,) = client.search_runs(["0"])
    made = open_store(Path(client.download_artifacts(run.info.run_id, "augmented", str(tmp_path))) / "augmented.h5")
    assert same(made, open_store(expected))
    assert not list(shared.iterdir())
