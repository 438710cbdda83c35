"""Compute the features of a frozen network, and initialise its head from them by linear discriminant analysis."""

import keras
import numpy as np

from carmodel.model.head import LOGITS, features_of
from carmodel.training.batches import Batches, Photos
from carmodel.training.dataset import as_dataset
from carmodel.training.device_augmentation import to_uint8
from carmodel.training.fixed_statistics import with_fixed_statistics
from carmodel.training.ranks import ALONE, Ranks
from carmodel.training.resampling import resize

SHRINKAGE = 0.5
"""Weight of a multiple of the identity in the covariance of the features."""


class Features:
    """The features of every row of a store, computed once. `Batches` reads them in the same way as a store.

    Attributes:
        values: float32 (N, C).
        labels: int64 (N,), as in the store.
        validation: bool (N,), as in the store.
        class_names: as in the store.
    """

    def __init__(
        self,
        network: keras.Model,
        data: Photos,
        batch_size: int,
        size: int,
        *,
        verbose: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        """Run the layers below the head on all rows.

        Args:
            network: a network with this project's head.
            data: the store.
            batch_size: rows per forward pass.
            size: side of the square images that the network sees, in pixels.
            verbose: see `keras.Model.predict`.
            ranks: the processes that share the rows.
        """
        self.labels, self.validation, self.class_names = data.labels, data.validation, data.class_names
        part = np.array_split(np.arange(len(data)), ranks.count)[ranks.rank]
        image = keras.Input((data.image_size, data.image_size, 3), dtype="uint8")
        seen = keras.layers.Lambda(lambda images: to_uint8(resize(images, size)))(image)
        # Outside training the statistics are fixed, and batch normalisation is faster inside the convolutions.
        below = keras.Model(image, with_fixed_statistics(features_of(network))(seen))
        values = below.predict(as_dataset(Batches(data, part, batch_size)), verbose=verbose)
        self.values = ranks.gather(values.astype(np.float32))  # Horovod cannot send bfloat16

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of some rows, float32 (n, C)."""
        return self.values[rows]


def initialise_head(network: keras.Model, features: Features) -> float:
    """Initialise the head by linear discriminant analysis of the training rows.

    Class c gets the logit ``w_c · x + b_c`` with ``w_c = S^-1 (m_c - m)`` and ``b_c = -w_c · (m_c + m) / 2``. Here ``m_c`` is
    the mean of the features of the class, ``m`` is the mean of all features, and ``S`` is the covariance within classes,
    shrunk towards a multiple of the identity (Hastie et al., The Elements of Statistical Learning, section 4.3).

    All logits are divided by one number, which gives them a standard deviation of 2 over the training rows. A head with
    larger logits is overconfident at the start, and learns slowly.

    Args:
        network: its head is set.
        features: features of the network.

    Returns:
        the accuracy on the validation rows, NaN if there are none.
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
