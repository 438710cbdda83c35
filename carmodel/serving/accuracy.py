"""Measure a packaged classifier on labelled photos: with boxes, whole, and as "composite" photos.

    python -m carmodel.serving.accuracy --model models:/carmodel-pretrained@champion --photos /data/stanford_cars

In a composite photo, the car is a part of a larger scene. The photo is cut to its box and placed on a drawn scene that
no training has seen. It fills 50% to 100% of the scene's width and height, and its edge is blended.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import carmodel.quiet_tensorflow  # noqa: F401

# isort: split

import cv2
import mlflow
import numpy as np
import pandas as pd
from tqdm import tqdm

from carmodel.data.drawing.negatives import draw_empty_road
from carmodel.data.images import Box, crop_to_box, decode, resize
from carmodel.data.sources import ReadyStores, open_folder
from carmodel.data.table import NO_BOX
from carmodel.errors import InputError
from carmodel.evaluation.reliability import expected_calibration_error
from carmodel.evaluation.wilson import wilson_interval
from carmodel.serving.about import about_model
from carmodel.serving.rows import BOX_COLUMNS
from carmodel.training.resampling import FEATHER

KINDS = ("with boxes", "whole", "composite")

SHARES = (0.5, 1.0)
"""Smallest and largest fraction of a composite's width and height that the car fills."""

SEED = 1_000_000
"""Seed of scenes and places. The calibration of a classifier uses other scenes."""

BATCH = 32
"""Most photos per request."""

Labelled = tuple[Path, str, Box | None]
"""A photo, its class, and the box around its car."""

Classify = Callable[[pd.DataFrame], pd.DataFrame]
"""Turn a request into answers, as `carmodel.serving.classifier.CarClassifier.predict` does."""


def place(photo: np.ndarray, scene: np.ndarray, share: float, corner: tuple[float, float]) -> np.ndarray:
    """Place a photo on a scene with a blended edge, like the zoom-out of training.

    The outermost pixels of the photo go on around it, and fade into the scene.

    Args:
        photo: uint8 (h, w, 3).
        scene: uint8 (H, W, 3), which is stretched to the size of the result.
        share: fraction of the width and of the height that the photo fills.
        corner: where the photo is within the free width and height, in fractions: (0, 0) is the upper left corner.

    Returns:
        uint8 (round(h / share), round(w / share), 3).
    """
    height, width = (round(side / share) for side in photo.shape[:2])
    columns, across = _side(photo.shape[1], width, corner[0])
    lines, down = _side(photo.shape[0], height, corner[1])
    inside = (down[:, None] * across[None, :])[..., None]
    blended = inside * photo[lines][:, columns] + (1 - inside) * resize(scene, width, height)
    return np.round(blended).astype(np.uint8)


def _side(old: int, new: int, corner: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest pixel of the photo, int (new,), and the photo's weight, float (new,), along a side."""
    pixels = np.arange(new) - round(corner * (new - old))
    centres = (pixels + 0.5) / old
    return np.clip(pixels, 0, old - 1), np.clip(1 + np.minimum(centres, 1 - centres) / FEATHER, 0, 1)


def composite(data: bytes, box: Box | None, margin: float, number: int) -> bytes:
    """Return a photo, cut to its box with a margin, on the scene with the given number, as a PNG file."""
    rng = np.random.default_rng([SEED, number])
    corner = rng.random(), rng.random()
    picture = place(crop_to_box(decode(data), box, margin), draw_empty_road(rng), rng.uniform(*SHARES), corner)
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def request_of(kind: str, photos: list[Labelled], margin: float, first: int = 0) -> pd.DataFrame:
    """Return a request with photos of one of the `KINDS`. `first` is the number of the first photo."""
    if kind == "composite":
        files = [composite(path.read_bytes(), box, margin, first + i) for i, (path, _, box) in enumerate(photos)]
    else:
        files = [path.read_bytes() for path, _, _ in photos]
    frame = pd.DataFrame({"image": files}, dtype=object)
    boxes = [box if kind == "with boxes" and box else (None,) * 4 for _, _, box in photos]
    return frame.join(pd.DataFrame(boxes, columns=BOX_COLUMNS, dtype=object))


def ask(classify: Classify, kind: str, photos: list[Labelled], margin: float, batch: int = BATCH) -> pd.DataFrame:
    """Return the answers of a classifier, one row per photo, with the photo's class in the column `true`."""
    answers = []
    with tqdm(total=len(photos), desc=kind, unit="photo", leave=False, disable=None) as bar:
        for first in range(0, len(photos), batch):
            part = photos[first : first + batch]
            answers.append(classify(request_of(kind, part, margin, first)))
            bar.update(len(part))
    return pd.concat(answers, ignore_index=True).assign(true=[name for _, name, _ in photos])


def measures(answers: pd.DataFrame) -> dict[str, float]:
    """Return the accuracy and the calibration of answers. A photo that could not be read counts as a wrong answer.

    Returns:
        `top1`, `top5`, the expected calibration error `ece`, the fraction of answers that are `certain`, and of those the
        `precision`.
    """
    right = answers["label"] == answers["true"]
    best = [[item["label"] for item in answer or ()] for answer in answers["top_k"]]
    certain, given = answers["certain"].eq(True), answers["label"].notna()
    return {
        "top1": right.mean(),
        "top5": float(np.mean([name in labels[:5] for name, labels in zip(answers["true"], best, strict=True)])),
        "ece": expected_calibration_error(answers["probability"][given].to_numpy(float), right[given].to_numpy()),
        "certain": certain.mean(),
        "precision": right[certain].mean(),
    }


def most_confused(answers: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """Return the most frequent wrong answers: true, label, photos."""
    wrong = answers[answers["label"].notna() & (answers["label"] != answers["true"])]
    pairs = wrong.groupby(["true", "label"]).size().sort_values(ascending=False, kind="stable")
    return pairs.head(count).rename("photos").reset_index()


def with_interval(accuracy: float, photos: int) -> str:
    """Return an accuracy and its 95% interval as text, such as ``0.9235  0.911 to 0.934``."""
    low, high = wilson_interval(accuracy, photos)
    return f"{accuracy:.4f}  {low:.3f} to {high:.3f}"


def read_test_photos(folder: Path, workdir: Path) -> list[Labelled]:
    """Return the test photos of a folder in any layout of photos that preprocess reads.

    Args:
        folder: the data set.
        workdir: directory to unpack archives into.

    Raises:
        InputError: the folder has another layout.
    """
    table = open_folder(folder, workdir, seed=0)
    if isinstance(table, ReadyStores):
        raise InputError(f"{folder} contains stores; give the folder of photos that they were made of")
    photos = table.photos[table.photos["split"] == "test"]
    return [
        (Path(path), table.class_names[label], None if box == NO_BOX else box)
        for path, label, *corners in photos[["path", "label", *BOX_COLUMNS]].itertuples(index=False, name=None)
        if (box := tuple(corners))
    ]


def main() -> None:
    """Read the command line and print a table. If that is impossible, print why and exit with code 2."""
    parser = argparse.ArgumentParser(description="Measure a packaged classifier on the test photos of a data set.")
    parser.add_argument("--model", required=True, help="such as models:/NAME@champion")
    parser.add_argument("--photos", required=True, type=Path, help="a data set, as data_uri of preprocess")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure every Nth photo alone (%(default)s)")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            about = about_model(given.model)  # refuses what is not a classifier, before photos are read
            photos = read_test_photos(given.photos, Path(scratch))[:: max(given.every, 1)]
            print(f"{about['model']} on {len(photos):,} test photos")
            classifier = mlflow.pyfunc.load_model(given.model)
            margin, max_rows = (classifier.metadata.metadata[name] for name in ("margin", "max_rows"))
            print(f"{'':13}top-1   95% interval    top-5   95% interval    calibration error  certain  of these right")
            for kind in KINDS:
                answers = ask(classifier.predict, kind, photos, margin, min(BATCH, max_rows))
                found = measures(answers)
                top1, top5 = (with_interval(found[name], len(photos)) for name in ("top1", "top5"))
                shares = f"{found['certain']:>7.1%}  {found['precision']:>14.1%}"
                print(f"{kind:12} {top1}  {top5}  {found['ece']:>17.3f}  {shares}", flush=True)
                if kind == KINDS[0]:
                    pairs = most_confused(answers)
            print("most confused, with boxes:")
            for true, label, count in pairs.itertuples(index=False, name=None):
                print(f"  {true} as {label} ({count})")
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
