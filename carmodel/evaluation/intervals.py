"""Compute confidence intervals of test metrics by the bootstrap.

B. Efron, "Bootstrap methods: another look at the jackknife", 1979.
"""

import numpy as np

from carmodel.evaluation.metrics import in_top_k, losses

RESAMPLES = 1000
QUANTILES = (0.025, 0.975)


def bootstrap_intervals(labels: np.ndarray, probabilities: np.ndarray, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return 95% percentile intervals of top1, top5, mean_class_accuracy and log_loss.

    Photos are drawn with replacement `RESAMPLES` times. The mean class accuracy is over the classes that were drawn.

    Args:
        labels: int (N,), 0-based.
        probabilities: float (N, C).
        seed: seed of the resampling.
    """
    rows, classes = probabilities.shape
    first, fifth = (in_top_k(labels, probabilities, k) for k in (1, 5))
    loss = losses(labels, probabilities)
    rng = np.random.default_rng(seed)

    def resampled() -> tuple[float, ...]:
        drawn = rng.integers(rows, size=rows)
        photos = np.bincount(labels[drawn], minlength=classes)
        right = np.bincount(labels[drawn], weights=first[drawn], minlength=classes)
        by_class = (right[photos > 0] / photos[photos > 0]).mean()
        return first[drawn].mean(), fifth[drawn].mean(), by_class, loss[drawn].mean()

    low, high = np.quantile([resampled() for _ in range(RESAMPLES)], QUANTILES, axis=0).tolist()
    names = "top1", "top5", "mean_class_accuracy", "log_loss"
    return dict(zip(names, zip(low, high, strict=True), strict=True))
