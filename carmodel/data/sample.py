"""Draw the built-in sample: cars with a devkit, in the official Stanford Cars layout.

With it, the whole pipeline runs anywhere in a minute, and reads the sample as it reads real data. The class is the body
shape. Paint, angle, background and light are independent of it. Every photo depends on the seed, the class and the
number of the photo alone.
"""

import io
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

from carmodel.data.drawing.bodies import BODIES
from carmodel.data.drawing.photo import draw_photo
from carmodel.data.threads import one_opencv_thread
from carmodel.errors import InputError

YEAR = 2020
README = """Synthetic photos: these cars were drawn by a program (carmodel.data.sample) and show no real car.
The layout is that of the Stanford Cars data set.
"""
_MAT_TEXT = b"MATLAB 5.0 MAT-file, synthetic sample of carmodel"
_MAT_TEXT_BYTES = 116  # the header's free text, where SciPy writes the date

Photo = tuple[int, int]  # class, number within the class


def class_names(classes: int) -> list[str]:
    """Return the names of the first body shapes, such as "Synthetic Sedan 2020"."""
    return [f"Synthetic {body.name} {YEAR}" for body in BODIES[:classes]]


def draw(folder: Path, classes: int = 8, photos: int = 100, seed: int = 0) -> Path:
    """Draw cars_train/, cars_test/, devkit/ and README.txt. The same arguments produce the same bytes.

    Args:
        folder: directory to create. If it exists, it must be empty.
        classes: body shapes, 2 to 8.
        photos: photos per class, at least 2. A fifth of them, at least one, is for the test.
        seed: seed of the photos and of their order.

    Returns:
        `folder`.

    Raises:
        InputError: the folder is not empty, or the number of classes or photos is out of range.
    """
    if not 2 <= classes <= len(BODIES) or photos < 2:
        raise InputError(f"classes must be 2 to {len(BODIES)} and photos at least 2, got {classes} and {photos}")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; draw the sample into a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    held_out = max(1, photos // 5)
    splits = {"train": range(held_out, photos), "test": range(held_out)}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        here = Path(unfinished) / folder.name
        (here / "devkit").mkdir(parents=True)
        (here / "README.txt").write_text(README)
        names = np.array([class_names(classes)], object)
        _save_mat(here / "devkit" / "cars_meta.mat", {"class_names": names})
        for salt, (split, numbers) in enumerate(splits.items()):
            chosen = [(label, number) for label in range(classes) for number in numbers]
            # Shuffled, so that a file's name does not reveal its class.
            order = np.random.default_rng([seed, salt]).permutation(len(chosen))
            _write_split(here, split, [chosen[i] for i in order], seed)
        here.replace(folder)
    return folder


def _write_split(folder: Path, split: str, chosen: list[Photo], seed: int) -> None:
    (folder / f"cars_{split}").mkdir()
    names = [f"{number:05d}.jpg" for number in range(1, len(chosen) + 1)]
    paths = [folder / f"cars_{split}" / name for name in names]
    with one_opencv_thread(), ThreadPoolExecutor() as pool:
        try:
            boxes = list(pool.map(partial(_write_photo, seed=seed), paths, chosen))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # an interrupt would otherwise wait until all photos are drawn
            raise
    labels = [label for label, _ in chosen]
    if split == "test":
        _save_mat(folder / "devkit" / "cars_test_annos.mat", {"annotations": _annotations(names, boxes, None)})
        _save_mat(
            folder / "devkit" / "cars_test_annos_withlabels.mat", {"annotations": _annotations(names, boxes, labels)}
        )
    else:
        _save_mat(folder / "devkit" / "cars_train_annos.mat", {"annotations": _annotations(names, boxes, labels)})


def _write_photo(path: Path, photo: Photo, seed: int) -> tuple[int, int, int, int]:
    label, number = photo
    image, box = draw_photo(BODIES[label], np.random.default_rng([seed, label, number]))
    written, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not written:
        raise OSError(f"{path} could not be encoded as JPEG")
    path.write_bytes(jpeg.tobytes())
    return box


def _annotations(names: list[str], boxes: list[tuple[int, int, int, int]], labels: list[int] | None) -> np.ndarray:
    """Return the devkit's struct array (1, N), with 1-based classes and 1-based, inclusive box corners."""
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *(["class"] if labels else []), "fname"]
    rows = np.empty((1, len(names)), [(field, object) for field in fields])
    for i, (name, (x1, y1, x2, y2)) in enumerate(zip(names, boxes, strict=True)):
        label = [labels[i] + 1] if labels else []
        rows[0, i] = (x1 + 1, y1 + 1, x2, y2, *label, name)
    return rows


def _save_mat(path: Path, content: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    savemat(buffer, content)
    path.write_bytes(_MAT_TEXT.ljust(_MAT_TEXT_BYTES) + buffer.getvalue()[_MAT_TEXT_BYTES:])
