"""Compute the numbers and the tables of a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pandas as pd

from carmodel.data.store import Store
from carmodel.evaluation import groups, metrics
from carmodel.evaluation.comparison import changed_photos, mcnemar
from carmodel.evaluation.confusion import confused_pairs
from carmodel.evaluation.intervals import bootstrap_intervals
from carmodel.evaluation.predictions import Evaluation
from carmodel.evaluation.reliability import coverage, expected_calibration_error, reliability
from carmodel.evaluation.suspects import near_identical
from carmodel.evaluation.wilson import wilson_interval


@dataclass(frozen=True)
class Material:
    """What a report shows in addition to the predictions for the test store. Every attribute is optional.

    Attributes:
        model: URI of the model.
        calibrated: the predictions with calibrated probabilities.
        temperature: temperature of `calibrated`.
        whole: predictions for the same photos without cropping.
        boxes: x1, y1, x2 and y2 of each photo.
        network: network for Grad-CAM, and the side of its images in pixels (0: that of the store).
        train: the training store, to find near duplicates of the test photos.
        other: predictions of another model for the same photos, and its URI.
        recipe: parameters by title, such as {"train": {"epochs": "30"}}.
    """

    model: str = ""
    calibrated: Evaluation | None = None
    temperature: float = 1.0
    whole: Evaluation | None = None
    boxes: pd.DataFrame | None = None
    network: tuple[keras.Model, int] | None = None
    train: Store | None = None
    other: tuple[Evaluation, str] | None = None
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def numbers_of(evaluation: Evaluation, material: Material) -> dict[str, float]:
    """Return the numbers of `carmodel.evaluation.metrics.summary`, and those of calibration, speed and comparison.

    - Always: `ece` and, if it was measured, `milliseconds_per_photo`.
    - With calibrated predictions: `temperature` and `ece_calibrated`.
    - With predictions for whole photos: their summary, with the prefix ``whole_``.
    - With predictions of another model: `gained`, `lost` and `mcnemar_p`.
    """
    numbers = metrics.summary(evaluation.labels, evaluation.probabilities)
    numbers["ece"] = expected_calibration_error(evaluation.confidence, evaluation.right)
    if evaluation.milliseconds:
        numbers["milliseconds_per_photo"] = evaluation.milliseconds
    if calibrated := material.calibrated:
        numbers["temperature"] = material.temperature
        numbers["ece_calibrated"] = expected_calibration_error(calibrated.confidence, calibrated.right)
    if whole := material.whole:
        of_whole = metrics.summary(whole.labels, whole.probabilities)
        numbers |= {f"whole_{name}": value for name, value in of_whole.items()}
    if material.other:
        gained, lost, p_value = mcnemar(material.other[0].right, evaluation.right)
        numbers |= {"gained": gained, "lost": lost, "mcnemar_p": p_value}
    return numbers


def tables_of(evaluation: Evaluation, store: Store, material: Material) -> dict[str, pd.DataFrame]:
    """Return the tables of a report by name.

    - Always: per_class, intervals (Wilson's for top1 and top5, and the bootstrap's for the others), confused_pairs,
      calibration, coverage and near_identical.
    - With calibrated predictions: calibration_calibrated. The coverage is then that of the calibrated probabilities.
    - If class names have a make or a body type: make, body.
    - With boxes: box_size.
    - With predictions of another model: changed (photos with different answers).
    """
    labels, probabilities, names = evaluation.labels, evaluation.probabilities, evaluation.class_names
    calibrated = material.calibrated or evaluation
    summary = metrics.summary(labels, probabilities)
    stores = {"train": material.train, "test": store} if material.train else {"test": store}
    # The bootstrap of an accuracy of 100% has no width.
    exact = {name: wilson_interval(summary[name], len(labels)) for name in ("top1", "top5")}
    tables = {
        "per_class": metrics.per_class(labels, probabilities, names),
        "intervals": pd.DataFrame(
            [
                {"metric": name, "value": summary[name], "low": low, "high": high}
                for name, (low, high) in (bootstrap_intervals(labels, probabilities) | exact).items()
            ]
        ),
        "confused_pairs": confused_pairs(metrics.confusion_matrix(labels, probabilities), names),
        "calibration": reliability(evaluation.confidence, evaluation.right),
        "coverage": coverage(calibrated.confidence, calibrated.right),
        "near_identical": near_identical(stores),
    }
    if material.calibrated:
        tables["calibration_calibrated"] = reliability(calibrated.confidence, calibrated.right)
    for name, of_classes in (("make", groups.makes), ("body", groups.bodies)):
        if found := of_classes(names):
            tables[name] = groups.accuracy_by(np.array(found)[labels], evaluation.right)
    if material.boxes is not None:
        whole = material.whole.right if material.whole else None
        tables["box_size"] = groups.accuracy_by_box(material.boxes, evaluation.right, whole)
    if material.other:
        tables["changed"] = changed_photos(material.other[0].table(store), evaluation.table(store))
    return tables
