"""The base class of parameters, and the types that several entry points share."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).resolve().parents[2]

SparkMaster = Annotated[str, Field(pattern=r"^$|^local(\[[^\]]+\])?$|^yarn$|^(spark|k8s)://\S+$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Settings(BaseModel):
    """The parameters of an entry point. Raises a `ValidationError` for an unknown name or a value out of bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
