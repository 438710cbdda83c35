"""Classify photos on a Spark cluster with `mlflow.pyfunc.spark_udf`. Executors read the files, and answers come back.

Spark repeats the tasks of an executor that dies. Each task loads the classifier, so there are only as many as cores.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import mlflow
import pandas as pd

from carmodel.data.spark_session import job_progress, number_of_cores
from carmodel.serving.rows import BOX_COLUMNS
from carmodel.serving.score import Engine, boxes_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCHEMA = "row long, path string, " + ", ".join(f"{corner} long" for corner in BOX_COLUMNS)
"""The columns that are sent to the executors."""

ROWS_PER_CALL = "spark.sql.execution.arrow.maxRecordsPerBatch"
"""Spark's setting of the number of rows that a function on an executor gets at once. `spark_udf` sends them all to the
classifier in one call."""

RESULT = "top_k array<struct<label: string, class_id: long, probability: double>>, certain boolean, error string"
"""The columns that the function returns. `spark_udf` cannot return null in a column of numbers (MLflow 3.15), so `label`,
`class_id` and `probability` are read from `top_k`, which is empty for a row with an error."""


def spark_engine(session: "SparkSession", model: str, batch: int, partitions: int = 0) -> Engine:
    """Return an engine that classifies on the executors. They need this project's packages and the photos' storage.

    Args:
        session: the Spark session.
        model: URI of a classifier.
        batch: photos per call of the classifier, at most its max_rows. Further rows would get an error.
        partitions: number of tasks (0: one per core).
    """
    from pyspark.sql import functions as f

    predict = mlflow.pyfunc.spark_udf(session, model, result_type=RESULT, env_manager="local")

    @f.pandas_udf("image binary, problem string")  # type: ignore[call-overload]
    def read_files(paths: pd.Series) -> pd.DataFrame:
        # Nested, so that Spark sends its code to executors that do not have this project.
        found: list[tuple[bytes | None, str | None]] = []
        for path in paths:
            try:
                with open(path, "rb") as file:  # noqa: PTH123
                    found.append((file.read(), None))
            except OSError as error:
                found.append((None, f"the file cannot be read: {error.strerror}"))
        return pd.DataFrame(found, columns=["image", "problem"])

    def classify(photos: pd.DataFrame) -> pd.DataFrame:
        rows = [(row, path, *box) for row, (path, box) in enumerate(zip(photos["path"], boxes_of(photos), strict=True))]
        tasks = min(len(rows), partitions or number_of_cores(session))
        boxes = [f.col(corner) for corner in BOX_COLUMNS]
        best = f.get("answer.top_k", f.lit(0))  # null for an empty list
        answered = (
            session.createDataFrame(rows, SCHEMA)
            .repartitionByRange(tasks, "row")
            .withColumn("file", read_files("path"))
            .withColumn("answer", predict(f.col("file.image"), *boxes))
            .select(
                "row",
                *(best[name].alias(name) for name in ("label", "class_id", "probability")),
                f.col("answer.top_k").alias("top_k"),
                f.when(f.size("answer.top_k") > 0, f.col("answer.certain")).alias("certain"),
                f.when(f.size("answer.top_k") == 0, f.coalesce("file.problem", "answer.error")).alias("error"),
            )
        )
        with setting(session, ROWS_PER_CALL, str(batch)), job_progress(session, "score", tasks):
            answers = pd.DataFrame([row.asDict(recursive=True) for row in answered.collect()], dtype=object)
        return answers.sort_values("row", ignore_index=True).drop(columns="row")

    return classify


@contextmanager
def setting(session: "SparkSession", name: str, value: str) -> Iterator[None]:
    """Change a setting of Spark SQL for queries that start within the block."""
    before = session.conf.get(name)
    session.conf.set(name, value)
    try:
        yield
    finally:
        if before is None:
            session.conf.unset(name)
        else:
            session.conf.set(name, before)


def read_table(session: "SparkSession", name: str) -> pd.DataFrame:
    """Return the columns file, x1, y1, x2, y2 of a table, those that it has."""
    table = session.table(name)
    return table.select(*(column for column in ("file", *BOX_COLUMNS) if column in table.columns)).toPandas()
