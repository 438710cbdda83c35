"""A frozen network's features of all rows of a store, and the classifier that linear discriminant analysis makes of them."""

import keras
import numpy as np

from carmodel.model.head import LOGITS, features_of
from carmodel.training.batches import Batches, Photos
from carmodel.training.device_augmentation import resize
from carmodel.training.ranks import Ranks, Single

SHRINKAGE = 0.5
"""Part of the covariance of the features that is replaced by its mean variance."""


class Features:
    """Features of every row of a store, computed once. Batches read from them as they read from a store.

    Attributes:
        values: float32 (N, C).
    """

    def __init__(
        self,
        network: keras.Model,
        data: Photos,
        batch_size: int,
        size: int,
        *,
        verbose: int = 1,
        ranks: Ranks | None = None,
    ) -> None:
        """Run the network below its head over all rows, shared by the ranks.

        Args:
            network: a network with this project's head.
            data: a store.
            batch_size: rows per forward pass.
            size: side of the square images that the network sees.
            verbose: as of `keras.Model.predict`.
            ranks: processes that share the work.
        """
        ranks = ranks or Single()
        self.labels, self.validation, self.class_names = data.labels, data.validation, data.class_names
        part = np.array_split(np.arange(len(data)), ranks.count)[ranks.rank]
        image = keras.Input((data.image_size, data.image_size, 3), dtype="uint8")
        below = keras.Model(image, features_of(network)(keras.layers.Lambda(resize, arguments={"size": size})(image)))
        self.values = ranks.gather(below.predict(Batches(data, part, batch_size), verbose=verbose))

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Features float32 (n, C)."""
        return self.values[rows]


def initialise_head(network: keras.Model, features: Features) -> float:
    """Set the head by linear discriminant analysis of the training rows, and return its accuracy on the validation rows.

    Class c gets the logit ``w_c · x + b_c`` with ``w_c = S^-1 m_c`` and ``b_c = -w_c · m_c / 2``, where ``m_c`` is the mean of
    its features and ``S`` the covariance within classes, shrunk towards a multiple of the identity (Hastie et al., The
    Elements of Statistical Learning, section 4.3). The logits are divided by one number, so that their standard deviation
    over the training rows is 2: a head that is too sure of itself at the start would learn slowly.

    Returns:
        Accuracy on the validation rows; NaN where there are none.
    """
    rows = ~features.validation
    x, labels = features.values[rows].astype(np.float64), features.labels[rows]
    classes = len(features.class_names)
    counts = np.maximum(np.bincount(labels, minlength=classes), 1)[:, None]
    means = np.zeros((classes, x.shape[1]))
    np.add.at(means, labels, x)
    means /= counts
    centre = x.mean(axis=0)
    within = x - means[labels]
    covariance = within.T @ within / len(x)
    covariance *= 1 - SHRINKAGE
    covariance.flat[:: len(covariance) + 1] += SHRINKAGE * np.square(within).mean() + 1e-9
    kernel = np.linalg.solve(covariance, (means - centre).T)
    bias = -np.sum(kernel * (means + centre).T, axis=0) / 2
    scale = 2 / max(float((x @ kernel + bias).std()), 1e-9)
    network.get_layer(LOGITS).set_weights([(scale * kernel).astype(np.float32), (scale * bias).astype(np.float32)])
    held_out = features.validation
    answers = np.argmax(features.values[held_out] @ kernel + bias, axis=1)
    return float(np.mean(answers == features.labels[held_out])) if held_out.any() else float("nan")
