"""Check the cells of a request's row: the photo as Base64 text or bytes, and the optional box.

Every error is an `ImageError`. Its message is short, names the column and what to do, and never repeats the cell.
"""

import base64
import binascii
import math
import string
from collections.abc import Sequence

import numpy as np
import pandas as pd

from carmodel.data.images import Box, ImageError

BOX_COLUMNS = ("x1", "y1", "x2", "y2")

# No photo is wider. The limit keeps error messages short, whatever the client sends.
_FARTHEST = 10**6

# `data:image/jpeg;base64,` with room for parameters.
_LONGEST_PREFIX = 1000


def image_bytes(value: object, max_bytes: int) -> bytes:
    """Return the bytes of an image file sent as bytes or as Base64 text, with or without a ``data:…;base64,`` prefix.

    Args:
        value: the cell.
        max_bytes: largest accepted file.

    Raises:
        ImageError: the cell is null, empty, too large, of another type, or not Base64. URLs are never fetched.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    elif isinstance(value, str):
        data = _from_base64(value, max_bytes)
    elif _is_null(value):
        raise ImageError("image is null; send the photo as Base64 text")
    else:
        raise ImageError(f"image is of type {type(value).__name__}; send the photo as Base64 text")
    if not data:
        raise ImageError("image is empty; send the photo as Base64 text")
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def box_of(values: Sequence[object]) -> Box | None:
    """Return the box from the cells x1, y1, x2, y2, or None if all four are null.

    Cropping checks later whether the box is inside the photo.

    Args:
        values: four whole numbers (0-based pixels, x2 and y2 exclusive) or nulls.

    Raises:
        ImageError: only some cells are null, or one is not a whole number.
    """
    if all(_is_null(value) for value in values):
        return None
    x1, y1, x2, y2 = (_whole(name, value) for name, value in zip(BOX_COLUMNS, values, strict=True))
    return x1, y1, x2, y2


def _from_base64(text: str, max_bytes: int) -> bytes:
    # Base64 is a third longer than the file, and a little more with line breaks. Longer text is not decoded.
    if len(text) > 2 * max_bytes + _LONGEST_PREFIX:
        raise _too_large(max_bytes)
    text = text.strip()
    if text[:8].lower().startswith(("http://", "https://", "ftp://", "file://", "s3://")):
        raise ImageError("image is a URL, which is never fetched; send the photo itself as Base64 text")
    if text[:5].lower() == "data:":
        header, _, text = text.partition(",")
        if not header.lower().endswith(";base64"):
            raise ImageError("image has a data: prefix without ';base64,'; send the photo as Base64 text")
    try:
        # `base64` and MIME encoders break lines. Any other character is an error.
        return base64.b64decode(text.encode("ascii").translate(None, string.whitespace.encode()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("image is not valid Base64 text") from None


def _too_large(max_bytes: int) -> ImageError:
    return ImageError(f"image is a file of more than {max_bytes:,} bytes; send a smaller one")


def _whole(name: str, value: object) -> int:
    if _is_null(value):
        raise ImageError(f"{name} is missing: a box needs all of {', '.join(BOX_COLUMNS)}, or none of them")
    # JSON and pandas convert a column of ints with gaps to floats.
    if isinstance(value, float | np.floating) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ImageError(f"{name} is not a whole number; boxes are in pixels")
    if abs(int(value)) > _FARTHEST:
        raise ImageError(f"{name} is out of range; boxes are in pixels")
    return int(value)


def _is_null(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
