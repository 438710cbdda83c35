"""The engine that runs on a Spark cluster, with the pandas API on Spark (called Koalas when the article was written).

Spark moves file names and row numbers, not pixels. A task reads its photos, or rows of a store, from storage that all
nodes share, and writes part files there. The driver links the parts (`carmodel.data.parts`).
"""

import re
import warnings
import zipimport
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from carmodel.data.local_engine import DescribeRows, Engine, MakeImages, OnProblems, rows_per_batch, slices
from carmodel.data.parts import link_parts, parts_folder, write_part
from carmodel.data.spark_session import job_progress, number_of_cores
from carmodel.data.threads import one_opencv_thread
from carmodel.data.writer import StoreSpec
from carmodel.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TASKS_PER_CORE = 8
# Fewer and larger files than the local engine's batches, which are made to fit the processor's cache.
BATCHES_PER_PART = 2
ROW = "__row__"
RESULT_TYPES = {
    ROW: int,
    "digest": bytes,
    "perceptual_hash": bytes,
    "aspect": float,
    "problem": str,
    "detail": str,
    "part": str,
    "place": int,
    "crc32": int,
}


def spark_engine(session: "SparkSession", partitions: int = 0) -> Engine:
    """Return an engine that runs on a Spark cluster.

    Args:
        session: its executors have this project (`carmodel.data.spark_session.ship`) and the packages it needs.
        partitions: number of tasks (0: up to eight per core).

    Returns:
        an engine. It calls `on_problems` once, after all rows. It raises `InputError` if the executors lack a package,
        or do not share storage with the driver.
    """

    def write(
        spec: StoreSpec, make: MakeImages, table: pd.DataFrame, on_problems: OnProblems, describe: DescribeRows
    ) -> None:
        folder = parts_folder(spec.path)
        folder.mkdir(exist_ok=True)
        size, part_rows = spec.image_size, BATCHES_PER_PART * rows_per_batch(spec.image_size)
        tasks = assign_tasks(len(table), part_rows, partitions, number_of_cores(session))
        work = partial(_write_parts, make=make, size=size, folder=folder.resolve(), part_rows=part_rows)
        outcomes = apply_batch(session, work, table, tasks, f"writing {spec.path.name}")
        usable = outcomes["problem"] == ""
        if not usable.all():
            on_problems(table.join(outcomes[~usable], how="inner"))
        if lost := set(outcomes["part"][usable]) - {file.name for file in folder.iterdir()}:
            raise InputError(
                f"{len(lost)} parts that the executors wrote to {folder} do not exist on the driver. Executors and driver "
                "must share that directory; set work_folder to one that they share"
            )
        link_parts(spec, describe(outcomes), outcomes[usable])

    return write


def assign_tasks(rows: int, part_rows: int, partitions: int, cores: int) -> np.ndarray:
    """Assign each row to a task: int64 (rows,), ascending from 0.

    A task costs Spark some tenths of a second, so there are only a few per core. By default a task takes whole parts, so
    the parts are the same on every cluster. With `partitions`, there are that many tasks, and their sizes differ by at
    most one row.
    """
    row = np.arange(rows)
    if partitions:
        return row * min(partitions, rows) // max(rows, 1)
    parts = -(-rows // part_rows)
    return row // part_rows * min(parts, TASKS_PER_CORE * cores) // max(parts, 1)


def apply_batch(
    session: "SparkSession",
    work: Callable[[pd.DataFrame], pd.DataFrame],
    table: pd.DataFrame,
    tasks: np.ndarray,
    title: str,
) -> pd.DataFrame:
    """Apply a function to consecutive slices of a table, each in a Spark task.

    Args:
        session: the Spark session.
        work: takes a slice, with the column `ROW` for the number of each row in the table. Returns the columns of
            `RESULT_TYPES`.
        table: its columns are sent to the executors.
        tasks: the task of each row, from `assign_tasks`.
        title: label of the progress bar, which counts tasks.

    Returns:
        the results of `work` without `ROW`, in the order of the table and with its index.
    """
    import pyspark.pandas as ps
    from pyspark.errors import PySparkException
    from pyspark.pandas.utils import PandasAPIOnSparkAdviceWarning

    if table.empty:
        return pd.DataFrame(columns=list(RESULT_TYPES)[1:], index=table.index)

    def typed(given: pd.DataFrame) -> pd.DataFrame:
        keep_lists_of_zip_files()
        return pd.concat([work(pd.DataFrame(task)) for task in given.to_dict("records")])

    frame_of: Any = ps.DataFrame  # type checkers do not know its brackets
    typed.__annotations__["return"] = frame_of[zip(RESULT_TYPES, RESULT_TYPES.values(), strict=True)]
    rows = table.reset_index(drop=True).rename_axis(ROW).reset_index()
    slices_of_rows = rows.groupby(tasks).agg(list)
    with job_progress(session, title, len(slices_of_rows)), warnings.catch_warnings():
        # It advises against collecting. The results contain no pixels, so they are small.
        warnings.simplefilter("ignore", PandasAPIOnSparkAdviceWarning)
        # From one partition Spark distributes the tasks evenly, from several at random.
        frame = ps.DataFrame(slices_of_rows).spark.coalesce(1).spark.repartition(len(slices_of_rows))
        try:
            results = frame.pandas_on_spark.apply_batch(typed).to_pandas()
        except PySparkException as error:
            raise _as_input_error(error) from None
    return results.set_index(ROW).sort_index().set_index(table.index)


def keep_lists_of_zip_files() -> None:
    """On an executor, let Python remember which modules the zip files on its path contain.

    Before each task, Spark's worker calls `importlib.invalidate_caches`. Python 3.11 then reads the list of files in each zip
    file again, among them PySpark's own, which took 0.15 s per task. The zip files do not change while a worker runs.
    """
    setattr(zipimport.zipimporter, "invalidate_caches", lambda _: None)  # noqa: B010


def _write_parts(batch: pd.DataFrame, make: MakeImages, size: int, folder: Path, part_rows: int) -> pd.DataFrame:
    """On an executor, write a part for every slice that is small enough for memory."""
    images = np.empty((min(part_rows, len(batch)), size, size, 3), np.uint8)
    with one_opencv_thread():  # Spark gives a task one core
        parts = [write_part(rows, make, images, folder) for rows in slices(batch.set_index(ROW), part_rows)]
    return pd.concat(parts).reset_index()[list(RESULT_TYPES)]


def _as_input_error(error: Exception) -> Exception:
    """Return an `InputError` that says what to do, for errors of executors that users can fix; else the error itself."""
    text = str(error)
    if missing := re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", text):
        return InputError(
            f"the executors have no Python package {missing[1]}: on every node, run uv pip install -r pyproject.toml "
            "--constraint requirements.lock, or set PYSPARK_PYTHON to a Python that has it"
        )
    if failed := re.search(r"(?:StoreError|FileNotFoundError|PermissionError): (.+)", text):
        return InputError(
            f"an executor failed: {failed[1]}. Photos, stores and work_folder must be on storage that all nodes share"
        )
    return error
