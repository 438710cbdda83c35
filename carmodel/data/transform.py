"""Load and apply a user's own augmentation: ``transform=package.module:function``, from any library."""

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from carmodel.errors import InputError

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Take an image, uint8 (H, W, 3) RGB, and its random generator, and return an image of the same shape and dtype."""


class TransformError(Exception):
    """A transform raised an exception, or returned something other than an image of the same shape and dtype."""


def load_transform(name: str) -> Transform:
    """Import the function that ``package.module:function`` names.

    Raises:
        InputError: the module or function does not exist, or the name has another form.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(f"transform={name!r} is not package.module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"transform={name!r}: {error}; modules are searched in the working directory and the environment"
        ) from None
    if not callable(found):
        raise InputError(f"transform={name!r} is not a function")
    return found


def file_of(name: str) -> Path | None:
    """Return the source file that defines a transform, or None if there is none."""
    try:
        spec = find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def transformed(image: np.ndarray, rng: np.random.Generator, transform: Transform) -> np.ndarray:
    """Apply a transform to a copy of an image and check the shape and dtype of the result.

    Raises:
        TransformError: the transform raised an exception, or changed the shape or dtype.
    """
    name = getattr(transform, "__qualname__", type(transform).__name__)
    try:
        changed = transform(image.copy(), rng)
    except (Exception, SystemExit) as error:  # errors of the user's code are reported with their row
        raise TransformError(f"transform {name} raised {type(error).__name__}: {error}") from None
    if not isinstance(changed, np.ndarray):
        raise TransformError(f"transform {name} returned a {type(changed).__name__}, not an image")
    if changed.shape != image.shape or changed.dtype != image.dtype:
        raise TransformError(
            f"transform {name} returned {changed.dtype} {changed.shape} for {image.dtype} {image.shape}; "
            "shape and dtype must not change"
        )
    return changed
