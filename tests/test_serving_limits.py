"""What a request may cost: bombs are refused from their headers, decoding has a budget, threads share one classifier."""

import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carmodel.serving.classifier import CarClassifier
from carmodel.serving.memory import BYTES_PER_PIXEL, Budget
from tests.classified import (
    check_answer,
    check_refused,
    encoded,
    expected,
    photo,
    small_classifier,
    text,
)
from tests.tiny import NAMES


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A whole grey PNG of zeros: `side` squared bytes of pixels in a thousandth of that."""
    deflate = zlib.compressobj(1)
    packed = b"".join(deflate.compress(bytes(side + 1)) for _ in range(side)) + deflate.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A small PNG whose compressed text is 100 MB long."""
    whole = encoded(Image.new("L", (8, 8)), "PNG")
    return whole[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 1)) + whole[33:]


def profile_bomb() -> bytes:
    """A small PNG whose compressed colour profile is 100 MB long."""
    whole = encoded(Image.new("L", (8, 8)), "PNG")
    return whole[:33] + chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(100_000_000), 1)) + whole[33:]


def webp_bomb() -> bytes:
    """A lossless WebP that claims 16383 x 16383 pixels."""
    body = b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(1000)
    return b"RIFF" + struct.pack("<I", 12 + len(body) + 1) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body + b"\0"


def bmp_bomb() -> bytes:
    """A BMP that claims 60000 x 60000 pixels."""
    whole = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
    whole[18:26] = struct.pack("<ii", 60000, 60000)
    return bytes(whole)


def jpeg_bomb() -> bytes:
    """A JPEG that claims 65500 x 65500 pixels."""
    whole = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    frame = whole.index(b"\xff\xc0")
    whole[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(whole)


BOMBS = {f.__name__: f for f in (text_bomb, profile_bomb, webp_bomb, bmp_bomb, jpeg_bomb)} | {
    "png_bomb": lambda: png_bomb(10_000)
}

# In a process without TensorFlow, whose peak of memory is that of the photo alone. Each photo gets a fork, since what one
# leaves behind would serve the next. The kernel's ru_maxrss would not do: a new process begins with its parent's.
COST = """
import os, sys, time
from pathlib import Path
from carmodel.data.images import ImageError, prepare, read_header
from carmodel.serving.rows import image_bytes
def megabytes(name):
    status = Path("/proc/self/status").read_text()
    return int(status.partition(name + ":")[2].split()[0]) / 1024
def cost(cell):
    before, began = megabytes("VmRSS"), time.process_time()  # the processor's: other programs may be running
    try:
        data = image_bytes(cell, 20_000_000)
        read_header(data)
        prepare(data, 224)
    except ImageError as error:
        said = str(error)
    else:
        said = "answered"
    return megabytes("VmHWM") - before, time.process_time() - began, said
first = sys.stdin.readline().strip()
for line in sys.stdin:
    if os.fork() == 0:
        cost(first)
        print(*cost(line.strip()), flush=True)
        os._exit(0)
    os.wait()
"""
Cost = Callable[[bytes], tuple[float, float, str]]


@pytest.fixture(scope="module")
def cost() -> Iterator[Cost]:
    """Returns the megabytes and seconds that a photo takes from Base64 to pixels, and what is said to it."""

    def measure(data: bytes) -> tuple[float, float, str]:
        process.stdin.write(f"{text(data)}\n")
        process.stdin.flush()
        megabytes, seconds, said = process.stdout.readline().strip().split(" ", 2)
        return float(megabytes), float(seconds), said

    command = [sys.executable, "-c", COST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(f"{text(photo(kind='.png'))}\n")
        yield measure
        process.stdin.close()


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_costs_less_than_50_megabytes_and_50_milliseconds(bomb: str, cost: Cost) -> None:
    data = BOMBS[bomb]()
    # The best of ten: other programs slow a processor down.
    megabytes, seconds, said = min((cost(data) for _ in range(10)), key=lambda measured: measured[1])
    assert megabytes < 50
    assert seconds < 0.05
    # What is small once the rest is left out may be answered.
    assert "pixels" in said or bomb in ("text_bomb", "profile_bomb")


def test_a_photo_that_takes_more_than_the_budget_is_refused(network: keras.Model, tmp_path: Path) -> None:
    classifier = small_classifier(network, tmp_path, max_decoded_bytes=BYTES_PER_PIXEL * 50_000)
    small, large = photo(1, 250, 200), photo(1, 400, 249)
    rows = classifier.predict(None, pd.DataFrame({"image": [small, large]})).to_dict("records")
    check_answer(rows[0], expected(network, small))
    check_refused(rows[1], "400 x 249 pixels need more memory than max_decoded_bytes")


def test_threads_never_hold_more_than_the_budget_and_all_get_their_turn() -> None:
    budget, held, most = Budget(100), 0, 0
    lock = threading.Lock()

    def work(amount: int) -> int:
        nonlocal held, most
        with budget.hold(amount):
            with lock:
                held += amount
                most = max(most, held)
            time.sleep(0.0005)
            with lock:
                held -= amount
        return amount

    amounts = [random.Random(0).choice([1, 10, 40, 100]) for _ in range(300)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(work, amounts)) == amounts
    assert (held, most <= 100, most >= 40) == (0, True, True)


def test_a_budget_gives_back_what_a_failure_held() -> None:
    budget = Budget(10)
    for _ in range(3):
        with pytest.raises(KeyError), budget.hold(10):
            raise KeyError
    with pytest.raises(ValueError, match="11 bytes do not fit into 10"), budget.hold(11):
        pass


@pytest.mark.parametrize("kind", ["alpha", "palette", "turned", "cmyk", "sixteen", "grey alpha", "webp"])
def test_decoding_holds_no_more_than_the_bytes_a_pixel_that_the_budget_counts(kind: str, cost: Cost) -> None:
    # A JPEG of this shape is decoded whole: its short side is less than twice the 224 px that it becomes.
    width, height = 16_000, 440
    data = large_photo(kind, width, height)
    megabytes, _, said = cost(data)
    assert said == "answered"
    # Less than the pixels themselves would mean that nothing was measured.
    assert 3 * width * height < megabytes * 2**20 < BYTES_PER_PIXEL * width * height + 2 * len(data)


def large_photo(kind: str, width: int, height: int) -> bytes:
    picture = Image.new("RGB", (width, height), (120, 30, 60))
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        return encoded(picture, "JPEG", exif=exif)
    if kind == "sixteen":
        return encoded(Image.fromarray(np.full((height, width), 40_000, np.uint16)), "PNG", compress_level=1)
    if kind == "webp":
        return encoded(picture.convert("RGBA"), "WebP", method=0)
    if kind == "cmyk":
        return encoded(picture.convert("CMYK"), "JPEG")
    if kind == "palette":
        return encoded(picture.convert("P"), "PNG", transparency=0, compress_level=1)
    return encoded(picture.convert("LA" if kind == "grey alpha" else "RGBA"), "PNG", compress_level=1)


def test_many_threads_with_good_and_bad_rows_get_the_answers_they_get_alone(
    classifier: CarClassifier, network: keras.Model
) -> None:
    def request(seed: int) -> list[bytes | str]:
        return [photo(seed * 10 + i) if (seed + i) % 4 else "broken!" for i in range(1 + seed % 9)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda seed: classifier.predict(None, pd.DataFrame({"image": request(seed)})), range(40))
        )
    for seed, answer in enumerate(answers):
        for cell, row in zip(request(seed), answer.to_dict("records"), strict=True):
            if isinstance(cell, bytes):
                check_answer(row, expected(network, cell))
            else:
                check_refused(row, "Base64")
    assert {name for answer in answers for name in answer["label"].dropna()} <= set(NAMES)
