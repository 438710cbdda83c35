"""The parameters of the entry point score."""

from typing import Literal

from pydantic import Field

from carmodel.parameters.common import Settings, SparkMaster


class Score(Settings):
    """Classify many photos with a registered classifier, and write a row of answers for each one."""

    model_uri: str = Field("", description="a packaged classifier: models:/NAME@ALIAS, models:/NAME/VERSION …")
    photos: str = Field(
        "",
        description="directory of photos, CSV file with the column file and optionally x1, y1, x2, y2, or, with "
        "engine=spark, a table with these columns",
    )
    boxes: str = Field(
        "",
        description="boxes for a directory of photos: CSV file with file, x1, y1, x2, y2, or Stanford Cars (empty: none)",
    )
    output: str = Field("scores", description="directory of the answers, on storage that lasts")
    format: Literal["parquet", "csv"] = Field("parquet", description="format of the files with the answers")
    rows_per_file: int = Field(10_000, ge=1, description="photos per file; a rerun continues after the last whole file")
    engine: Literal["local", "spark"] = Field(
        "local",
        description="where photos are classified, with the same answers: on this machine, or on a Spark cluster",
    )
    spark_master: SparkMaster = Field(
        "", description="URL of the Spark cluster (empty: the active session or Spark's own configuration)"
    )
    partitions: int = Field(0, ge=0, description="Spark tasks per file; each loads the model (0: one per core)")
