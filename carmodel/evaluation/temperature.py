"""Temperature scaling: Guo et al. 2017, https://arxiv.org/abs/1706.04599.

Networks are more confident than they are right. Temperature scaling divides all logits by one number, fitted on validation
photos. It changes no ranking.
"""

import numpy as np

TEMPERATURES = (0.05, 20.0)
_TINY = 1e-30  # the logarithm of a probability of 0 is not finite


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature), given softmax(logits): float (N, C), or (C,), to float64 of that shape."""
    logits = np.log(np.maximum(probabilities, _TINY, dtype=np.float64)) / temperature
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the smallest cross-entropy.

    If all answers are right, that would be 0, and each answer would be called certain. Then 1 is returned.

    Args:
        probabilities: float (N, C).
        labels: int (N,), 0-based.
    """
    if (probabilities.argmax(axis=1) == labels).all():
        return 1.0
    from scipy.optimize import minimize_scalar  # not needed for serving

    def cross_entropy(log_temperature: float) -> float:
        scaled = apply_temperature(probabilities, float(np.exp(log_temperature)))
        return -float(np.log(np.maximum(scaled[np.arange(len(labels)), labels], _TINY)).mean())

    found = minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))
