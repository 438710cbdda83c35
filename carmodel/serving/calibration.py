"""Calibrated probabilities, and the threshold above which an answer is certain.

`carmodel.evaluation.temperature` explains the calibration.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from carmodel.evaluation.temperature import apply_temperature, fit_temperature

if TYPE_CHECKING:
    from carmodel.data.store import Store

PRECISION = 0.95
"""Fraction of the certain answers to validation photos that must be right."""

FALSE_ALARMS = 0.05
"""Largest fraction of the negatives, pictures that show no car of a known class, that may get a certain answer."""

NEGATIVES = 200
"""Number of drawn pictures without a car."""

UNKNOWN_CARS = 100
"""Number of drawn cars of classes that the network does not know."""

BATCH = 256
"""Photos per call of the network, by default."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Turn photos, uint8 (N, H, W, 3), into probabilities, float32 (N, C)."""


@dataclass(frozen=True)
class Calibration:
    """How a classifier's probabilities become answers.

    Attributes:
        temperature: divides the logits; 1 changes nothing.
        threshold: an answer is certain if its calibrated probability is above it; None: nothing is known about that.
        metrics: measures of both, for the run.
    """

    temperature: float = 1.0
    threshold: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def calibrate(
    labelled: Sequence[tuple[np.ndarray, np.ndarray]], whole: tuple[np.ndarray, np.ndarray], negatives: np.ndarray
) -> Calibration:
    """Fit the temperature and the threshold.

    The threshold is the higher of two: the lowest one above which 95% of the answers to whole photos are right, and the
    lowest one above which at most 5% of the answers to negatives are.

    Args:
        labelled: (probabilities (N, C), labels (N,)) of validation photos, for the temperature.
        whole: the same, of validation photos that are sent without a box.
        negatives: probabilities (M, C) of pictures that show no car of a known class.

    Returns:
        The calibration. Its metrics are `temperature`, `certain_threshold`, `certain_coverage` (fraction of the whole
        photos that get a certain answer), `certain_precision` (fraction of those that are right) and
        `certain_negatives` (fraction of the negatives that get a certain answer).
    """
    temperature = fit_temperature(
        np.concatenate([probabilities for probabilities, _ in labelled]),
        np.concatenate([labels for _, labels in labelled]),
    )
    answers, labels = apply_temperature(whole[0], temperature), whole[1]
    confidence, right = answers.max(axis=1), answers.argmax(axis=1) == labels
    of_negatives = apply_temperature(negatives, temperature).max(axis=1)
    # A certain answer is above the threshold, so at most 5% of the negatives are above this quantile of theirs.
    threshold = max(
        precise_threshold(confidence, right), float(np.quantile(of_negatives, 1 - FALSE_ALARMS, method="higher"))
    )
    certain = confidence > threshold
    metrics = {
        "temperature": temperature,
        "certain_threshold": threshold,
        "certain_coverage": float(certain.mean()),
        "certain_negatives": float((of_negatives > threshold).mean()),
    }
    if certain.any():
        metrics["certain_precision"] = float(right[certain].mean())
    return Calibration(temperature, threshold, metrics)


def calibrate_on_stores(stores: Path, predict: Predict) -> Calibration:
    """Calibrate on the validation photos, cropped and whole, and on drawn negatives.

    Args:
        stores: directory with train.h5 and, if its photos are cropped, validation_whole.h5.
        predict: the network that is packaged.
    """
    from carmodel.data.drawing.negatives import draw_negatives, draw_unknown_cars  # not needed for serving
    from carmodel.data.store import open_store

    if not (labelled := validation_answers(stores, predict)):
        print("package_pyfunc: without validation photos, `certain` is null in every answer")
        return Calibration()
    train = open_store(stores / "train.h5")
    negatives = (
        draw_negatives(NEGATIVES, train.image_size),
        draw_unknown_cars(UNKNOWN_CARS, train.image_size, train.class_names),
    )
    return calibrate(labelled, labelled[-1], predict(np.concatenate(negatives)))


def temperature_on_stores(stores: Path, predict: Predict, batch_size: int = BATCH) -> float | None:
    """Return the temperature that `calibrate_on_stores` fits to the same network; None without validation photos."""
    if not (labelled := validation_answers(stores, predict, batch_size)):
        return None
    probabilities, labels = (np.concatenate(parts) for parts in zip(*labelled, strict=True))
    return fit_temperature(probabilities, labels)


def validation_answers(stores: Path, predict: Predict, batch_size: int = BATCH) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the probabilities (n, C) and the labels (n,) of the validation photos, and the same of them as whole photos.

    Args:
        stores: see `calibrate_on_stores`. Without validation_whole.h5, only the first is returned, and without validation
            photos neither is.
        predict: the network.
        batch_size: photos per call of `predict`.
    """
    from carmodel.data.preprocessing import WHOLE
    from carmodel.data.store import open_store

    if not (file := stores / "train.h5").is_file() or not (train := open_store(file)).validation.any():
        return []
    labelled = [_answers(predict, train, np.flatnonzero(train.validation), batch_size)]
    if (file := stores / WHOLE["train"]).is_file():
        store = open_store(file)
        labelled.append(_answers(predict, store, np.arange(len(store)), batch_size))
    return labelled


def _answers(predict: Predict, store: "Store", rows: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities (n, C) and the labels (n,) of some rows of a store."""
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return np.concatenate([predict(store.take(part)) for part in parts]), store.labels[rows]


def precise_threshold(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the lowest threshold above which `PRECISION` of the answers are right; 1 if there is none.

    Args:
        confidence: float (N,), probability of each answer.
        right: bool (N,), whether the answer is right.
    """
    order = np.argsort(-confidence, kind="stable")
    levels = confidence[order]
    precision = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Answers of the same confidence are above a threshold together.
    last_of_level = np.append(levels[1:] < levels[:-1], True)
    precise = np.flatnonzero(last_of_level & (precision >= PRECISION))
    if len(precise) == 0:
        return 1.0
    below = precise[-1] + 1
    return float(levels[below]) if below < len(levels) else 0.0
