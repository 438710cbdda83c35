"""A user's own augmentation: ``transform=package.module:function``, from any library."""

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from carmodel.errors import InputError

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""From an image, uint8 (H, W, 3) RGB, and its random numbers to an image of the same shape and dtype."""


class TransformError(Exception):
    """A transform raised, or gave something that is no such image; the text says what."""


def load_transform(name: str) -> Transform:
    """Import the function that ``package.module:function`` names.

    Raises:
        InputError: no such module or function, or not of that form.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(f"transform={name!r} is not package.module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"transform={name!r}: {error}; modules are looked up here and in the environment") from None
    if not callable(found):
        raise InputError(f"transform={name!r} is no function")
    return found


def file_of(name: str) -> Path | None:
    """The source file that defines a transform, where it has one."""
    try:
        spec = find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def transformed(image: np.ndarray, rng: np.random.Generator, transform: Transform) -> np.ndarray:
    """Apply a transform and check what it gives: uint8 (H, W, 3), as it got.

    Raises:
        TransformError: it raised, or changed the shape or dtype.
    """
    name = getattr(transform, "__qualname__", type(transform).__name__)
    try:
        changed = transform(image.copy(), rng)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is told with its row
        raise TransformError(f"transform {name} raised {type(error).__name__}: {error}") from None
    if not isinstance(changed, np.ndarray):
        raise TransformError(f"transform {name} returned a {type(changed).__name__}, not an image")
    if changed.shape != image.shape or changed.dtype != image.dtype:
        raise TransformError(
            f"transform {name} made {changed.dtype} {changed.shape} of {image.dtype} {image.shape}; "
            "both must stay as they are"
        )
    return changed
