"""Crop photos to their bounding boxes and resize them to a square, in the same way for preprocessing and for serving.

The header is read before any pixel is decoded, so a hostile size or format costs nothing. OpenCV decodes plain JPEG,
with the same result as Pillow in two thirds of the time. Pillow decodes everything else. A JPEG that is much larger than
the image it becomes is decoded at 1/2, 1/4 or 1/8 of its size, which the JPEG format allows without decoding it whole.
"""

import io
import re
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import (
    Image,
    ImageOps,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401  Otherwise the first WebP photo makes Pillow import all its plugins, in 50 ms.
)

MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_NAMES = {"MPO": "JPEG", "WEBP": "WebP"}
_END_OF_JPEG = b"\xff\xd9"
# Within the compressed pixels, 0xFF is followed by 0x00, or by the number of a restart (0xD0 to 0xD7).
_MARKER_OF_JPEG = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_START_OF_SCAN, _END_OF_IMAGE, _WITHOUT_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)
# Encoders write about ten scans. A scan can be 40 bytes long and is a pass over all pixels, so many take hours.
_MAX_SCANS = 50
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright, 5 to 8 swap width and height
# Whether the displayed columns and rows run against the stored ones, by orientation.
_REVERSED = {2: (True, False), 3: (True, True), 4: (False, True), 6: (True, False), 7: (True, True), 8: (False, True)}
_FLAG_OF_DIVISOR = {  # OpenCV's names say grey, but IMREAD_COLOR_RGB keeps the colours
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

Box = tuple[int, int, int, int]


class ImageError(ValueError):
    """A photo that cannot be used. The message gives the reason and never repeats the photo's bytes.

    Attributes:
        problem: unreadable, zero_area or out_of_frame.
    """

    def __init__(self, text: str, problem: str = "unreadable") -> None:
        super().__init__(text)
        self.problem = problem


@dataclass(frozen=True)
class Header:
    """The format of a photo, and its width and height in pixels as displayed, after EXIF orientation."""

    format: str
    width: int
    height: int


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the format and size without decoding a pixel.

    Args:
        data: the bytes of an image file.
        max_pixels: largest accepted width x height.

    Raises:
        ImageError: not a JPEG, PNG, WebP or BMP file, an animation, or too many pixels.
    """
    image = _open(data, max_pixels)
    return Header(_format(image), *_displayed_size(image))


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode to uint8 (H, W, 3) RGB as displayed.

    EXIF orientation is applied. Transparent pixels are blended with white. Grey, palette and CMYK become RGB. 16-bit
    values keep their upper 8 bits. The first picture of a JPEG with several (MPO, from some phones) is used, as in
    every viewer.

    Raises:
        ImageError: the format or size is not accepted (see `read_header`), or the file is damaged or truncated.
    """
    return _decode(_open(data, max_pixels), data, 1)


def add_margin(box: Box, margin: float, width: int, height: int) -> Box:
    """Return a box with some context around it, inside a frame of this size.

    Args:
        box: (x1, y1, x2, y2) in pixels, 0-based, x2 and y2 exclusive.
        margin: context on each side, as a fraction of the box's width or height. It ends at the frame.
        width: width of the frame, in pixels.
        height: height of the frame, in pixels.

    Raises:
        ImageError: the box has no area or does not lie inside the frame.
    """
    check_box(box, width, height)
    x1, y1, x2, y2 = box
    across, down = round(margin * (x2 - x1)), round(margin * (y2 - y1))
    return max(0, x1 - across), max(0, y1 - down), min(width, x2 + across), min(height, y2 + down)


def crop_to_box(image: np.ndarray, box: Box | None, margin: float) -> np.ndarray:
    """Crop an image (H, W, 3) to a box with a margin (see `add_margin`), and return a view. None keeps the whole image."""
    if box is None:
        return image
    x1, y1, x2, y2 = add_margin(box, margin, image.shape[1], image.shape[0])
    return image[y1:y2, x1:x2]


def check_box(box: Box, width: int, height: int) -> None:
    """Check that a box has an area and lies inside a frame of this size.

    Raises:
        ImageError: the box has no area or leaves the frame.
    """
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise ImageError(f"box ({x1}, {y1}, {x2}, {y2}) has no area", "zero_area")
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        raise ImageError(f"box ({x1}, {y1}, {x2}, {y2}) leaves the {width} x {height} frame", "out_of_frame")


def prepare(
    data: bytes,
    size: int,
    box: Box | None = None,
    margin: float = 0.0,
    max_pixels: int = MAX_PIXELS,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Turn a photo's bytes into the input of a network: decode, crop, and stretch to a square with `resize`.

    Stretching keeps the whole car. On Stanford Cars it was more accurate than cropping to a square and than padding.

    Args:
        data: the bytes of an image file.
        size: side of the square, in pixels.
        box: what to keep, as for `add_margin`; None keeps the whole photo.
        margin: context around the box, as for `add_margin`.
        max_pixels: largest accepted width x height.
        out: uint8 (size, size, 3) to fill, or None for a new array.

    Returns:
        uint8 (size, size, 3) RGB, which is `out` if it is given.

    Raises:
        ImageError: see `decode` and `add_margin`.
    """
    return prepare_with_aspect(data, size, box, margin, max_pixels, out=out)[0]


def prepare_with_aspect(
    data: bytes,
    size: int,
    box: Box | None = None,
    margin: float = 0.0,
    max_pixels: int = MAX_PIXELS,
    *,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Return the image as `prepare` does, and width / height of the part of the photo that it shows.

    Raises:
        ImageError: see `decode` and `add_margin`.
    """
    image = _open(data, max_pixels)
    # Pillow loads a PNG to find its orientation, and hides an error from the next load. So all but JPEG is decoded first.
    pixels = None if _format(image) == "JPEG" else _decode(image, data, 1)
    width, height = _displayed_size(image) if pixels is None else pixels.shape[1::-1]
    x1, y1, x2, y2 = add_margin(box or (0, 0, width, height), margin if box else 0, width, height)
    divisor, across, down = 1, 0, 0
    if pixels is None:
        divisor = _divisor(min(x2 - x1, y2 - y1), size)
        across, down = _padding(image, width, height, divisor)
        pixels = _decode(image, data, divisor)
        if pixels.shape[:2] != (-(-height // divisor), -(-width // divisor)):
            raise ImageError("the photo's size differs from that in its header")
    left, right = (round((edge + across) / divisor) for edge in (x1, x2))
    top, bottom = (round((edge + down) / divisor) for edge in (y1, y2))
    return resize(pixels[top:bottom, left:right], size, size, out=out), (x2 - x1) / (y2 - y1)


def _divisor(side: int, size: int) -> int:
    """Return the largest of 1, 2, 4 and 8 by which a side can be divided and still be larger than `size`."""
    return max(divisor for divisor in _FLAG_OF_DIVISOR if divisor == 1 or side >= divisor * (size + 1))


def _padding(image: Image.Image, width: int, height: int, divisor: int) -> tuple[int, int]:
    """Return how many pixels lie before the photo's first column and row when it is decoded at 1 / divisor of its size.

    The decoder fills the last column and row of the stored picture. The orientation may move them to the other side.
    """
    reversed_axes = _REVERSED.get(_orientation(image), (False, False))
    across, down = (-side % divisor * back for side, back in zip((width, height), reversed_axes, strict=True))
    return across, down


def resize(image: np.ndarray, width: int, height: int, *, out: np.ndarray | None = None) -> np.ndarray:
    """Average areas along an axis that shrinks, and interpolate along one that grows.

    OpenCV's INTER_AREA alone behaves like nearest neighbour along an axis that grows while the other one shrinks.

    Args:
        image: uint8 (H, W, 3).
        width: new width in pixels.
        height: new height in pixels.
        out: uint8 (height, width, 3) to fill, or None for a new array.

    Returns:
        uint8 (height, width, 3), which is `out` if it is given.
    """
    old_height, old_width = image.shape[:2]
    if old_width >= width and old_height >= height:
        return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_AREA)
    smaller = (min(old_width, width), min(old_height, height))
    if smaller != (old_width, old_height):
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except UnidentifiedImageError:
        raise ImageError("not a JPEG, PNG, WebP or BMP image") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {max_pixels:,} pixels") from None
    except Exception as error:  # Pillow's parsers raise many types for a damaged header
        raise ImageError(f"damaged header ({type(error).__name__})") from None
    if frames > 1:
        raise ImageError(f"an animation of {frames} frames, not a photo")
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} is more than {max_pixels:,} pixels")
    if _format(image) == "JPEG" and _has_too_many_scans(data):
        raise ImageError(f"a JPEG of more than {_MAX_SCANS} scans")
    return image


def _has_too_many_scans(data: bytes) -> bool:
    """Return whether a JPEG has more than `_MAX_SCANS` scans. What follows its end, such as a phone's film, is not read."""
    # A scan begins with these two bytes, but they may also be a part of something else.
    if data.count(bytes([0xFF, _START_OF_SCAN])) <= _MAX_SCANS:
        return False
    position, scans = 2, 0
    while scans <= _MAX_SCANS and (found := _MARKER_OF_JPEG.search(data, position)):
        marker, position = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            return False
        scans += marker == _START_OF_SCAN
        if marker not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")
    return scans > _MAX_SCANS


def _format(image: Image.Image) -> str:
    return _NAMES.get(str(image.format), str(image.format))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels may be fine even if EXIF is damaged
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _displayed_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height after EXIF orientation."""
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _decode(image: Image.Image, data: bytes, divisor: int) -> np.ndarray:
    """Decode a photo whose header was read: a JPEG at 1 / divisor of its width and height, and other formats whole."""
    plain = _format(image) == "JPEG" and image.mode in ("RGB", "L") and _orientation(image) == 1
    # OpenCV may fill the rest of a truncated JPEG with grey. Pillow raises an error, so it reads files without end marker.
    if plain and data.endswith(_END_OF_JPEG):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAG_OF_DIVISOR[divisor] | cv2.IMREAD_COLOR_RGB)
        if pixels is not None:
            return pixels
    return _decode_with_pillow(image, divisor)


def _decode_with_pillow(image: Image.Image, divisor: int) -> np.ndarray:
    try:
        if divisor > 1:
            image.draft(image.mode, (image.width // divisor, image.height // divisor))  # does nothing unless JPEG
        image.load()
        if _orientation(image) > 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise many types for damaged data
        raise ImageError(f"damaged image data ({type(error).__name__})") from None


def resize_squares(photos: np.ndarray, size: int) -> np.ndarray:
    """Resize square photos, uint8 (N, H, H, 3), to uint8 (N, size, size, 3). A size of 0 keeps theirs."""
    return photos if size in (0, photos.shape[1]) else np.stack([resize(photo, size, size) for photo in photos])
