"""The schedule of a run: which image size in which epochs, and the learning rate of each step."""

from typing import NamedTuple

from keras.optimizers.schedules import CosineDecay


class Stage(NamedTuple):
    """Epochs at one image size: the stage is over after `end` epochs of the run."""

    size: int
    end: int


def stages(epochs: str, image_size: int) -> list[Stage]:
    """Read the parameter `epochs`: "30", or sizes with the epochs of each, "128x4,160x4,192x2".

    Growing images train faster and at least as well (Tan & Le 2021, https://arxiv.org/abs/2104.00298).

    Args:
        epochs: the parameter.
        image_size: size of the store's images, used where `epochs` is a number alone.
    """
    if "x" not in epochs:
        return [Stage(image_size, int(epochs))]
    parts = [tuple(map(int, part.split("x"))) for part in epochs.split(",")]
    return [Stage(size, sum(count for _, count in parts[: i + 1])) for i, (size, _) in enumerate(parts)]


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
