"""Bytes to pixels: formats, orientation, transparency, boxes, and what is refused."""

import io
import zlib
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from carmodel.data.images import (
    Header,
    ImageError,
    crop_to_box,
    decode,
    prepare,
    prepare_with_aspect,
    read_header,
    resize,
)

RED, BLUE = (200, 30, 40), (20, 60, 210)


def two_halves(width: int = 40, height: int = 24) -> Image.Image:
    """Red left half, blue right half."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def close(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    return bool(np.all(np.abs(pixel.astype(int) - colour) <= tolerance))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WebP", "BMP"])
def test_each_allowed_format_is_read_as_rgb(format: str) -> None:
    data = encoded(two_halves(), format)
    assert read_header(data) == Header(format, 40, 24)
    pixels = decode(data)
    assert (pixels.shape, pixels.dtype) == ((24, 40, 3), np.uint8)
    assert close(pixels[12, 4], RED)
    assert close(pixels[12, 36], BLUE)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(format: str) -> None:
    with pytest.raises(ImageError, match="not a JPEG, PNG, WebP or BMP"):
        read_header(encoded(two_halves(32, 32), format))


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"<html>hello</html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(300)]
)
def test_what_is_no_image_is_refused_without_repeating_it(data: bytes) -> None:
    for function in (read_header, decode):
        with pytest.raises(ImageError) as error:
            function(data)
        assert "html" not in str(error.value)
        assert len(str(error.value)) < 100


@pytest.mark.parametrize("format", ["PNG", "WebP"])
def test_an_animation_is_refused(format: str) -> None:
    frames = [two_halves(), Image.new("RGB", (40, 24), BLUE)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="animation of 2 frames"):
        read_header(data)


def test_a_jpeg_with_a_second_picture_is_read_as_its_first() -> None:
    data = encoded(two_halves(), "MPO", save_all=True, append_images=[Image.new("RGB", (40, 24), BLUE)])
    assert read_header(data) == Header("JPEG", 40, 24)
    assert close(decode(data)[12, 4], RED)


def test_pixels_beyond_the_cap_are_refused_from_the_header_alone() -> None:
    data = encoded(two_halves(), "PNG")
    header = b"IHDR" + (9_000).to_bytes(4, "big") * 2 + data[24:29]
    claimed = data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
    for function in (read_header, decode):
        with pytest.raises(ImageError, match="9000 x 9000 is more than 50,000,000 pixels"):
            function(claimed)
        with pytest.raises(ImageError, match="40 x 24 is more than 959 pixels"):
            function(data, max_pixels=959)
    assert read_header(data, max_pixels=960).width == 40


def test_a_progressive_jpeg_of_thousands_of_tiny_scans_is_refused_before_decoding() -> None:
    data = encoded(two_halves(), "JPEG", progressive=True)
    assert decode(data).shape == (24, 40, 3)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="more than 50 scans"):
        decode(data[:-2] + 5000 * scan + data[-2:])


def test_what_a_phone_appends_to_a_jpeg_is_not_taken_for_scans() -> None:
    data = encoded(two_halves(), "JPEG")
    film = np.random.default_rng(0).bytes(6_000_000)
    assert film.count(b"\xff\xda") > 50
    assert np.array_equal(prepare(data + film, 16), prepare(data, 16))
    comment = b"\xff\xfe\xff\xff" + b"\xff\xda" * 32_766 + b"."
    assert np.array_equal(prepare(data[:2] + comment + data[2:], 16), prepare(data, 16))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(two_halves(), "JPEG", exif=exif, quality=95)
    turned = orientation >= 5
    assert read_header(data) == Header("JPEG", *((24, 40) if turned else (40, 24)))
    pixels = decode(data)
    assert pixels.shape == ((40, 24, 3) if turned else (24, 40, 3))
    red_comes_first = orientation in (1, 4, 5, 6)
    assert close(pixels[2, 2] if turned else pixels[12, 2], RED if red_comes_first else BLUE, 25)


def test_transparency_is_laid_over_white() -> None:
    image = two_halves().convert("RGBA")
    image.putalpha(0)
    assert decode(encoded(image, "PNG")).min() == 255
    palette = two_halves().quantize(4)
    data = encoded(palette, "PNG", transparency=palette.getpixel((0, 0)))
    pixels = decode(data)
    assert close(pixels[12, 4], (255, 255, 255))
    assert close(pixels[12, 36], BLUE)


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "WebP"), ("L", "JPEG"), ("CMYK", "JPEG")],
)
def test_every_mode_becomes_rgb(mode: str, format: str) -> None:
    pixels = decode(encoded(two_halves().convert(mode), format, quality=95))
    assert (pixels.shape, pixels.dtype) == ((24, 40, 3), np.uint8)
    assert mode in ("L", "1", "LA", "P") or close(pixels[12, 4], RED, 25)


def test_sixteen_bits_are_scaled_to_eight() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = decode(encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(pixels[..., 0], ramp >> 8)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WebP", "BMP"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.97])
def test_a_cut_off_file_is_an_error_and_not_half_a_picture(format: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), format)
    for function in (decode, partial(prepare, size=8)):
        with pytest.raises(ImageError):
            function(data[: int(len(data) * kept)])


@settings(deadline=None)
@given(st.data())
def test_damaged_bytes_end_in_pixels_or_in_an_image_error(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["JPEG", "PNG", "WebP", "BMP"]))
    damaged = bytearray(encoded(two_halves(), format))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(damaged), max_pixels=100_000)
    except ImageError as error:
        assert len(str(error)) < 100
        with pytest.raises(ImageError):
            prepare(bytes(damaged), 8, max_pixels=100_000)
    else:
        assert prepare(bytes(damaged), 16, max_pixels=100_000).shape == (16, 16, 3)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def check_both_decoders(photos: list[Path]) -> None:
    for path in photos:
        data = path.read_bytes()
        # Bytes after the end marker send the same photo down Pillow's path.
        assert np.array_equal(decode(data), decode(data + b"\0")), path.name


def test_opencv_and_pillow_decode_a_jpeg_to_the_same_bytes(sample: Path) -> None:
    check_both_decoders(list((sample / "cars_train").iterdir())[:1])


def test_a_box_is_cut_out_with_its_margin_and_clipped_to_the_frame() -> None:
    image = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    assert np.array_equal(crop_to_box(image, (4, 2, 14, 8), 0.0), image[2:8, 4:14])
    assert np.array_equal(crop_to_box(image, (4, 2, 14, 8), 0.2), image[1:9, 2:16])
    assert np.array_equal(crop_to_box(image, (4, 2, 14, 8), 1.0), image)
    assert crop_to_box(image, None, 0.5) is image


@given(
    box=st.tuples(*(st.integers(-3, 25) for _ in range(4))),
    margin=st.floats(0, 1),
)
def test_a_crop_holds_the_box_or_the_box_is_refused(box: tuple[int, int, int, int], margin: float) -> None:
    image = np.zeros((12, 20, 3), np.uint8)
    x1, y1, x2, y2 = box
    if 0 <= x1 < x2 <= 20 and 0 <= y1 < y2 <= 12:
        height, width, _ = crop_to_box(image, box, margin).shape
        assert x2 - x1 <= width <= 20
        assert y2 - y1 <= height <= 12
    else:
        with pytest.raises(ImageError, match=r"has no area|leaves the 20 x 12 frame"):
            crop_to_box(image, box, margin)


def test_an_axis_that_grows_is_interpolated_while_the_other_is_averaged() -> None:
    ramp = np.zeros((16, 4, 3), np.uint8) + np.array([0, 40, 80, 120], np.uint8)[None, :, None]
    assert resize(ramp, 8, 4)[:, :, 0].tolist() == [[0, 10, 30, 50, 70, 90, 110, 120]] * 4
    assert resize(ramp.transpose(1, 0, 2), 4, 8)[:, 0, 0].tolist() == [0, 10, 30, 50, 70, 90, 110, 120]


def test_prepare_is_decode_crop_and_area_resize() -> None:
    data = encoded(two_halves(), "PNG")
    prepared = prepare(data, 8, box=(0, 0, 20, 24))
    assert prepared.shape == (8, 8, 3)
    assert (prepared == RED).all()
    whole = cv2.resize(np.array(two_halves()), (16, 16), interpolation=cv2.INTER_AREA)
    assert np.array_equal(prepare(data, 16), whole)


@pytest.mark.parametrize(("format", "orientation"), [("JPEG", 1), ("JPEG", 6), ("PNG", 1)])
@settings(deadline=None, max_examples=20)
@given(shape=st.tuples(*[st.integers(150, 900)] * 2), size=st.sampled_from([64, 96]), boxed=st.booleans())
def test_a_large_jpeg_becomes_the_same_image_whether_or_not_it_is_decoded_whole(
    format: str, orientation: int, shape: tuple[int, int], size: int, boxed: bool
) -> None:
    width, height = shape
    small = np.random.default_rng(width * height).integers(0, 256, (4, 4, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), format, exif=exif)
    header = read_header(data)
    box = (header.width // 3, header.height // 5, header.width, header.height - 7) if boxed else None
    whole = resize(crop_to_box(decode(data), box, 0.1), size, size)
    image, aspect = prepare_with_aspect(data, size, box, 0.1)
    assert np.abs(image.astype(int) - whole).mean() < 4
    assert aspect == pytest.approx(np.divide(*crop_to_box(decode(data), box, 0.1).shape[1::-1]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("boxed", [False, True])
def test_a_turned_jpeg_is_not_shifted_when_it_is_decoded_at_a_fraction(orientation: int, boxed: bool) -> None:
    ramp = np.add.outer(np.linspace(0, 120, 1001), np.linspace(0, 120, 1303))  # 7 and 1 pixels less than multiples of 8
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.stack([ramp] * 3, -1).astype(np.uint8)), "JPEG", exif=exif)
    box = (80, 96, 960, 976) if boxed else None
    expected = resize(crop_to_box(decode(data), box, 0), 96, 96).astype(int)
    assert (prepare(data, 96, box) - expected).mean() == pytest.approx(0, abs=0.25)


def test_a_damaged_png_is_an_error_for_prepare_too() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = bytearray(encoded(Image.fromarray(noise), "PNG"))
    data[len(data) // 2] ^= 0xFF
    for function in (decode, partial(prepare, size=8)):
        with pytest.raises(ImageError, match="damaged"):
            function(bytes(data))


@pytest.mark.parametrize("size", range(1, 18))
def test_every_size_can_be_made_from_every_large_jpeg(size: int) -> None:
    for width, height in [(64, 48), (131, 77), (23, 301)]:
        assert prepare(encoded(two_halves(width, height), "JPEG"), size).shape == (size, size, 3)


def test_a_jpeg_is_decoded_no_larger_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = []
    monkeypatch.setattr(
        cv2, "imdecode", lambda data, flag, decode=cv2.imdecode: flags.append(flag) or decode(data, flag)
    )
    data = encoded(two_halves(400, 240), "JPEG")
    for size, box in [(120, None), (119, None), (59, None), (20, None), (20, (0, 0, 400, 100))]:
        assert prepare(data, size, box).shape == (size, size, 3)
    reduced = [cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_GRAYSCALE_8]
    assert [flag & ~cv2.IMREAD_COLOR_RGB for flag in flags] == [0, *reduced, reduced[1]]


def test_real_photos_decode_alike_with_opencv_and_pillow(photos: Path) -> None:
    check_both_decoders(sorted((photos / "cars_test").iterdir())[:20])
