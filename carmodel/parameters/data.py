"""The parameters of the entry points that make stores: preprocess and augment."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from carmodel.parameters.common import Fraction, Seed, Settings, SparkMaster


class OnEngine(Settings):
    """Parameters of a step that can process images on this machine or on a Spark cluster."""

    engine: Literal["local", "spark"] = Field(
        "local", description="where to process images: on this machine, or on a Spark cluster (the result is the same)"
    )
    spark_master: SparkMaster = Field(
        "",
        description="URL of the Spark cluster, spark://HOST:PORT (empty: the active session or Spark's own configuration)",
    )
    partitions: int = Field(0, ge=0, description="Spark tasks per store (0: at most eight per core)")
    work_folder: str = Field(
        "",
        description="directory that the Spark driver and executors share, for unfinished stores (empty: a temporary one)",
    )

    @field_validator("work_folder")
    @classmethod
    def _work_folder_exists(cls, folder: str) -> str:
        if folder and not Path(folder).expanduser().is_dir():
            raise ValueError("no such directory")
        return str(Path(folder).expanduser().resolve()) if folder else ""

    @model_validator(mode="after")
    def _spark_parameters_need_spark(self) -> Self:
        if self.engine == "local" and (self.spark_master or self.partitions):
            raise ValueError("spark_master and partitions need engine=spark")
        return self


class Preprocess(OnEngine):
    """Convert photos and annotations to the stores train.h5 and test.h5."""

    data_uri: str = Field(
        "", description="photos: a directory or any URI that MLflow can download (empty: the built-in synthetic sample)"
    )
    image_size: int = Field(224, ge=16, le=1024, description="side of the square images, in pixels")
    crop: Literal["box", "none", "both"] = Field(
        "box",
        description="box: crop photos to their boxes; none: keep them whole; both: train on each photo cropped and whole",
    )
    margin: Fraction = Field(0.0, description="context kept around the box, as a fraction of the box's side")
    classes: int = Field(0, ge=0, description="number of classes to keep, for quick trials (0: all)")
    validation_fraction: float = Field(
        0.1, ge=0.0, lt=1.0, description="fraction of the training photos held out for validation"
    )
    max_bad_fraction: Fraction = Field(0.01, description="fail if more than this fraction of the photos is unusable")
    sample_photos: int = Field(
        100, ge=4, description="built-in sample: photos per class, of which a fifth become test photos"
    )
    sample_classes: int = Field(8, ge=2, le=8, description="built-in sample: number of classes")
    seed: Seed = Field(0, description="seed of the validation split and of the built-in sample")

    @field_validator("classes")
    @classmethod
    def _not_one_class(cls, number: int) -> int:
        if number == 1:
            raise ValueError("give at least 2 classes, or 0 for all")
        return number


class Augment(OnEngine):
    """Write augmented copies of the training rows to augmented.h5."""

    store_uri: str = Field("", description="directory with train.h5: the `data` output of preprocess")
    copies: int = Field(1, ge=0, le=100, description="augmented copies per training row (0: main skips the step)")
    crop: float = Field(0.15, ge=0.0, lt=1.0, description="largest fraction of a side that is cropped (0: off)")
    pad: float = Field(0.1, ge=0.0, lt=1.0, description="largest fraction of a side that is padded (0: off)")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip (0: off)")
    transform: str = Field(
        "",
        pattern=r"^([\w.]+:\w+)?$",
        description="your own function, package.module:function, applied after crop, pad and flip (empty: none)",
    )
    seed: Seed = Field(0, description="random seed; a copy depends only on the seed, its source row and its number")
