"""Predict a test store with a model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from carmodel.data.images import resize_squares
from carmodel.data.store import Store
from carmodel.errors import InputError
from carmodel.evaluation.temperature import apply_temperature
from carmodel.model.head import with_mirror_image


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a model for a store.

    Attributes:
        labels: int64 (N,), true classes.
        probabilities: float32 (N, C).
        class_names: C names.
        milliseconds: time per photo of a forward pass; 0 if it was not measured.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    class_names: list[str]
    milliseconds: float = 0.0

    @property
    def answers(self) -> np.ndarray:
        """The most likely class of each row, int (N,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        """The probability of each answer, (N,)."""
        return self.probabilities.max(axis=1)

    @property
    def right(self) -> np.ndarray:
        """Whether each answer is right, bool (N,)."""
        return self.answers == self.labels

    def calibrated(self, temperature: float) -> Self:
        """Return the predictions with softmax(logits / temperature)."""
        return replace(self, probabilities=apply_temperature(self.probabilities, temperature))

    def table(self, store: Store) -> pd.DataFrame:
        """Return source, label, predicted and probability of each row of the store."""
        names = np.array(self.class_names)
        return pd.DataFrame(
            {
                "source": store.source,
                "label": names[self.labels],
                "predicted": names[self.answers],
                "probability": self.confidence,
            }
        )


def predictor(model: keras.Model, image_size: int = 0, *, flip: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from photos, uint8 (B, H, H, 3), to probabilities, float32 (B, C).

    Args:
        model: uint8 (B, H, W, 3) in, probabilities (B, C) out.
        image_size: side in pixels to which the photos are resized; 0 keeps their size.
        flip: average the probabilities of each photo and its mirror image.
    """
    network = with_mirror_image(model) if flip else model

    def predict(photos: np.ndarray) -> np.ndarray:
        return network.predict_on_batch(resize_squares(photos, image_size))

    return predict


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

    The time per photo is the median of all batches but the first, for which Keras compiles the network, and the last, which
    may be smaller. It includes resizing. If there are no others, the first batch is predicted again.

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
    _check_fit(model, store, class_names, image_size or store.image_size)
    predict, times = predictor(model, image_size, flip=flip), []

    def timed(rows: np.ndarray) -> np.ndarray:
        photos, began = store.take(rows), time.perf_counter()
        answers = predict(photos)
        times.append(1000 * (time.perf_counter() - began) / len(rows))
        return answers

    probabilities = np.empty((len(store), len(store.class_names)), np.float32)
    with tqdm(total=len(store), desc="evaluate", unit="photo", disable=None) as progress:
        for start in range(0, len(store), batch_size):
            rows = np.arange(start, min(start + batch_size, len(store)))
            probabilities[rows] = timed(rows)
            progress.update(len(rows))
    if not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-2) or probabilities.min() < 0.0:
        raise InputError("the model's outputs are not probabilities that sum to 1; let it end with a softmax")
    if len(times) < 3:
        times = []
        timed(np.arange(min(batch_size, len(store))))
        times = [0.0, *times, 0.0]
    return Evaluation(store.labels, probabilities, list(store.class_names), float(np.median(times[1:-1])))


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
