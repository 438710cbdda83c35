"""The parameters of the entry point sweep."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from carmodel.parameters.common import Seed, Settings
from carmodel.parameters.training import Schedule


class Range(Settings):
    """The numbers between two bounds, both included.

    Attributes:
        low: smallest number.
        high: largest number.
        log: whether to sample the logarithm of the number uniformly, instead of the number itself.
    """

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low must be less than high, and more than 0 if log is true")
        return self


Choices = tuple[bool | int | float | str, ...]


def _flat(space: Any) -> dict[str, Any]:
    """Return a space with the keys ``step.parameter``, from one that may also map steps to parameters.

    Raises:
        ValueError: it is not a mapping, or a parameter has neither a list nor a range.
    """
    if not isinstance(space, dict):
        raise ValueError("must be a mapping in a recipe, as in configs/sweep_demo.yaml")
    flat: dict[str, Any] = {}
    for name, values in space.items():
        nested = isinstance(values, dict) and "." not in str(name)
        flat |= {f"{name}.{parameter}": of for parameter, of in values.items()} if nested else {str(name): values}
    return {name: _values(name, values) for name, values in flat.items()}


def _values(name: str, values: Any) -> Any:
    """Return the values of a parameter as a range, or as they are if they are a list."""
    if isinstance(values, list | tuple) and values:
        return values
    try:
        return Range.model_validate(values)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(
            f"{name} needs a list of values, or a range such as {{low: 0.001, high: 0.1, log: true}} ({reason})"
        ) from None


class Sweep(Settings):
    """Search for better parameters of augment and train. The objective is the accuracy on the validation photos."""

    space: Annotated[dict[str, Range | Choices], BeforeValidator(_flat)] = Field(
        {},
        description="only in a recipe: STEP.PARAMETER with a list of values, or with a range {low, high, log}",
    )
    study: str = Field(
        "sweep", pattern=r"^[\w-]+$", description="name of the search, whose trials and results are in sweeps/NAME/"
    )
    trials: int = Field(20, ge=1, description="number of trials of the search, with those of earlier commands")
    minutes: float = Field(
        0.0, ge=0.0, description="minutes after which this command starts no further training (0: no limit)"
    )
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="how new values are chosen: tree-structured Parzen estimator, or at random"
    )
    rungs: Annotated[tuple[Schedule, ...], BeforeValidator(lambda v: v.split() if isinstance(v, str) else v)] = Field(
        (),
        description="successive halving: values of train.epochs, shortest first, with blanks between them (empty: no halving)",
    )
    reduction_factor: int = Field(
        2, ge=2, description="successive halving: one trial of this many continues with the next rung"
    )
    parallel: int = Field(1, ge=1, description="number of trials at the same time")
    seed: Seed = Field(0, description="seed of the sampler")
