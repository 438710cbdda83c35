"""The learning rate over a run: linear warm-up, then half a cosine down to zero."""

from keras.optimizers.schedules import CosineDecay


def warmup_cosine(peak: float, epochs: int, warmup_epochs: float, steps_per_epoch: int) -> CosineDecay:
    """Rise by equal steps to `peak`, then fall to 0 along a cosine.

    Warm-up as by Goyal et al. (2017, https://arxiv.org/abs/1706.02677), cosine as by Loshchilov & Hutter (2017,
    https://arxiv.org/abs/1608.03983). With w warm-up steps of n, step s has the rate ``peak * (s + 1) / (w + 1)`` for s
    < w and ``peak * (1 + cos(pi * (s - w) / (n - w))) / 2`` from there on. At least one step is left for the cosine.
    """
    steps = epochs * steps_per_epoch
    warmup = min(round(warmup_epochs * steps_per_epoch), steps - 1)
    if warmup == 0:
        return CosineDecay(peak, steps)
    return CosineDecay(peak / (warmup + 1), steps - warmup, warmup_target=peak, warmup_steps=warmup)
