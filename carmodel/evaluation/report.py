"""Predict a test store with a model and write a report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from carmodel.data.images import resize
from carmodel.data.store import Store
from carmodel.errors import InputError
from carmodel.evaluation import figures, metrics
from carmodel.model.head import with_mirror_image


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a model for a store.

    Attributes:
        labels: int64 (N,), true classes.
        probabilities: float32 (N, C).
        class_names: C names.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    class_names: list[str]


def evaluate(
    model: keras.Model,
    store: Store,
    batch_size: int,
    class_names: Sequence[str] | None = None,
    *,
    image_size: int = 0,
    flip: bool = False,
) -> Evaluation:
    """Predict every row of a store, batch by batch.

    Args:
        model: uint8 (B, H, W, 3) in, probabilities (B, C) out.
        store: the test store.
        batch_size: rows per forward pass.
        class_names: the classes that the model was trained on, from its MLflow metadata. If None, only the number of
            classes is compared with the store.
        image_size: side in pixels to which the photos are resized; 0 keeps the size of the store.
        flip: average the probabilities of each photo and its mirror image.

    Raises:
        InputError: the model has other classes or another image size, the store has no rows, or the outputs are not
            probabilities.
    """
    size = image_size or store.image_size
    _check_fit(model, store, class_names, size)
    model = with_mirror_image(model) if flip else model
    probabilities = np.empty((len(store), len(store.class_names)), np.float32)
    with tqdm(total=len(store), desc="evaluate", unit="photo", disable=None) as progress:
        for start in range(0, len(store), batch_size):
            rows = np.arange(start, min(start + batch_size, len(store)))
            images = store.take(rows)
            if size != store.image_size:
                images = np.stack([resize(image, size, size) for image in images])
            probabilities[rows] = model.predict_on_batch(images)
            progress.update(len(rows))
    if not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-2) or probabilities.min() < 0.0:
        raise InputError("the model's outputs are not probabilities that sum to 1; let it end with a softmax")
    return Evaluation(store.labels, probabilities, list(store.class_names))


def summary_of(evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers of `carmodel.evaluation.metrics.summary`."""
    return metrics.summary(evaluation.labels, evaluation.probabilities)


def write_report(
    folder: Path, evaluation: Evaluation, store: Store, mistakes: int = 16, subtitle: str = ""
) -> dict[str, float]:
    """Write the report into a folder and return the numbers of metrics.json.

    It consists of metrics.json, per_class.csv, confusion_matrix.csv (rows true, columns predicted), predictions.csv
    (source, label, predicted, probability), confusion_matrix.png, per_class.png and mistakes.png.

    Args:
        folder: created if it does not exist.
        evaluation: predictions for `store`.
        store: the test store.
        mistakes: largest number of photos in mistakes.png.
        subtitle: second title of every figure, such as "synthetic sample".
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels, probabilities, names = evaluation.labels, evaluation.probabilities, np.array(evaluation.class_names)
    numbers = summary_of(evaluation)
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")

    table = metrics.per_class(labels, probabilities, evaluation.class_names)
    table.to_csv(folder / "per_class.csv", index=False)
    figures.per_class_accuracy(table, subtitle).savefig(folder / "per_class.png")

    matrix = metrics.confusion_matrix(labels, probabilities)
    pd.DataFrame(matrix, index=names, columns=names).to_csv(folder / "confusion_matrix.csv", index_label="true")
    figures.confusion_matrix(matrix, evaluation.class_names, subtitle).savefig(folder / "confusion_matrix.png")

    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    pd.DataFrame(
        {"source": store.source, "label": names[labels], "predicted": names[predicted], "probability": confidence}
    ).to_csv(folder / "predictions.csv", index=False)

    worst = metrics.worst_mistakes(labels, probabilities, mistakes)
    picture = figures.mistakes(
        store.take(worst), names[labels[worst]], names[predicted[worst]], confidence[worst], subtitle
    )
    picture.savefig(folder / "mistakes.png")
    return numbers


def _check_fit(model: keras.Model, store: Store, class_names: Sequence[str] | None, size: int) -> None:
    if len(store) == 0:
        raise InputError("the test store has no rows")
    if class_names is not None and list(class_names) != store.class_names:
        raise InputError(f"the model's classes are not the store's: {_difference(class_names, store.class_names)}")
    if (classes := model.output_shape[-1]) != len(store.class_names):
        raise InputError(f"the model answers with {classes} classes and the store has {len(store.class_names)}")
    if any(side not in (None, own) for side, own in zip(model.input_shape[1:], (size, size, 3), strict=True)):
        raise InputError(
            f"the model takes images of shape {model.input_shape[1:]} and not of {size} px; "
            f"give image_size={model.input_shape[1]}"
        )


def _difference(model: Sequence[str], store: Sequence[str]) -> str:
    if len(model) != len(store):
        return f"{len(model)} against {len(store)}"
    first = next(i for i, (a, b) in enumerate(zip(model, store, strict=True)) if a != b)
    return f"class {first} is {model[first]!r} for the model and {store[first]!r} in the store"
