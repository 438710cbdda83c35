"""The engine of a cluster: the pandas API on Spark (Koalas, when the article was written).

Spark moves file names and row numbers, not pixels: a task reads its photos, or the rows of a store, from storage that all
nodes share, and writes part files there; the driver links the parts (`carmodel.data.parts`).
"""

import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd

from carmodel.data.local_engine import DescribeRows, Engine, MakeImages, OnProblems, rows_per_batch, slices
from carmodel.data.parts import link_parts, parts_folder, write_part
from carmodel.data.spark_session import job_progress
from carmodel.data.writer import StoreSpec
from carmodel.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TASKS_PER_CORE = 8
# Fewer, larger files than the local engine's batches, which are cut to the processor's cache.
BATCHES_PER_PART = 2
ROW = "__row__"
RESULT_TYPES = {
    ROW: int,
    "digest": bytes,
    "perceptual_hash": bytes,
    "problem": str,
    "detail": str,
    "part": str,
    "place": int,
    "crc32": int,
}


def spark_engine(session: "SparkSession", partitions: int = 0) -> Engine:
    """The engine of a Spark session.

    Args:
        session: its executors have this project (`carmodel.data.spark_session.ship`) and the packages it needs.
        partitions: tasks to cut a table into (0: some a core).

    Returns:
        an engine. It shows problems to `watch` when all rows are done, and raises `InputError` where the executors lack a
        package, or storage that all nodes share.
    """

    def write(
        header: StoreSpec, make: MakeImages, table: pd.DataFrame, watch: OnProblems, describe: DescribeRows
    ) -> None:
        folder = parts_folder(header.path)
        folder.mkdir(exist_ok=True)
        size, part_rows = header.image_size, BATCHES_PER_PART * rows_per_batch(header.image_size)
        tasks = assign_tasks(len(table), part_rows, partitions, cores_of(session))
        work = partial(_write_parts, make=make, size=size, folder=folder.resolve(), part_rows=part_rows)
        told = apply_batch(session, work, table, tasks, f"writing {header.path.name}")
        fine = told["problem"] == ""
        if not fine.all():
            watch(table.join(told[~fine], how="inner"))
        if lost := set(told["part"][fine]) - {file.name for file in folder.iterdir()}:
            raise InputError(
                f"{len(lost)} parts that the executors wrote to {folder} are not there: they and the driver must share "
                "that folder; name one with work_folder"
            )
        link_parts(header, describe(told), told[fine])

    return write


def assign_tasks(rows: int, part_rows: int, partitions: int, cores: int) -> np.ndarray:
    """Deal rows to tasks, int64 (rows,), rising from 0.

    A task costs Spark some tenths of a second, so there are a few a core; and they take whole parts, so that the parts are the
    same whatever the cluster. With a number of `partitions` there are as many tasks, of sizes that differ by one at most.
    """
    row = np.arange(rows)
    if partitions:
        return row * min(partitions, rows) // max(rows, 1)
    parts = -(-rows // part_rows)
    return row // part_rows * min(parts, TASKS_PER_CORE * cores) // max(parts, 1)


def cores_of(session: "SparkSession") -> int:
    """Cores of the cluster; Spark Connect does not tell, and gets a task for every part of most stores."""
    context = getattr(session, "_sc", None)
    return context.defaultParallelism if context else 1000


def apply_batch(
    session: "SparkSession",
    work: Callable[[pd.DataFrame], pd.DataFrame],
    table: pd.DataFrame,
    tasks: np.ndarray,
    title: str,
) -> pd.DataFrame:
    """Apply a function to consecutive slices of a table, each a Spark task.

    Args:
        session: of Spark.
        work: of a slice with the column `ROW`, the number of each row in the table; returns `RESULT_TYPES`.
        table: its columns are sent.
        tasks: the task of each row, as `assign_tasks` deals them.
        title: of the progress bar, which counts tasks.

    Returns:
        what `work` gave of each row but `ROW`, in the order of the table, with its index.
    """
    import pyspark.pandas as ps
    from pyspark.errors import PySparkException
    from pyspark.pandas.utils import PandasAPIOnSparkAdviceWarning

    if table.empty:
        return pd.DataFrame(columns=list(RESULT_TYPES)[1:], index=table.index)

    def typed(given: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([work(pd.DataFrame(task)) for task in given.to_dict("records")])

    frame_of: Any = ps.DataFrame  # its brackets are no type hint that checkers know
    typed.__annotations__["return"] = frame_of[zip(RESULT_TYPES, RESULT_TYPES.values(), strict=True)]
    rows = table.reset_index(drop=True).rename_axis(ROW).reset_index()
    slices_of_rows = rows.groupby(tasks).agg(list)
    with job_progress(session, title, len(slices_of_rows)), warnings.catch_warnings():
        # It advises against collecting: what is told of each row, without its pixels, is little.
        warnings.simplefilter("ignore", PandasAPIOnSparkAdviceWarning)
        # From one partition Spark deals the tasks out evenly, from several at random.
        frame = ps.DataFrame(slices_of_rows).spark.coalesce(1).spark.repartition(len(slices_of_rows))
        try:
            told = frame.pandas_on_spark.apply_batch(typed).to_pandas()
        except PySparkException as error:
            raise _explained(error) from None
    return told.set_index(ROW).sort_index().set_index(table.index)


def _write_parts(batch: pd.DataFrame, make: MakeImages, size: int, folder: Path, part_rows: int) -> pd.DataFrame:
    """On an executor: a part for every slice that is small enough for memory."""
    cv2.setNumThreads(1)  # Spark gives a task one core
    parts = [write_part(rows, make, size, folder) for rows in slices(batch.set_index(ROW), part_rows)]
    return pd.concat(parts).reset_index()[list(RESULT_TYPES)]


def _explained(error: Exception) -> Exception:
    """An executor's error in words, where users can do something about it."""
    text = str(error)
    if missing := re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", text):
        return InputError(
            f"the executors have no Python package {missing[1]}: install requirements.lock on every node, or name their "
            "Python in PYSPARK_PYTHON"
        )
    if wrong := re.search(r"(?:StoreError|FileNotFoundError|PermissionError): (.+)", text):
        return InputError(
            f"an executor says: {wrong[1]}. Photos, stores and work_folder must lie on storage that all nodes share"
        )
    return error
