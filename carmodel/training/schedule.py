"""The schedule of a training: the image size of each epoch, and a learning rate with warm-up and cosine decay."""

from typing import NamedTuple

from keras.optimizers.schedules import CosineDecay


class Stage(NamedTuple):
    """Epochs with one image size.

    Attributes:
        size: side of the square images, in pixels.
        end: number of epochs of the whole training when this stage ends.
    """

    size: int
    end: int


def stages(epochs: str, image_size: int) -> list[Stage]:
    """Parse the parameter `epochs`: a number such as "30", or sizes with epochs such as "128x4,160x4,192x2".

    Training on growing images is faster, and at least as accurate (Tan & Le 2021, https://arxiv.org/abs/2104.00298).

    Args:
        epochs: the parameter.
        image_size: size of the store's images, which is used if `epochs` is a number.
    """
    if "x" not in epochs:
        return [Stage(image_size, int(epochs))]
    parts = [tuple(map(int, part.split("x"))) for part in epochs.split(",")]
    return [Stage(size, sum(count for _, count in parts[: i + 1])) for i, (size, _) in enumerate(parts)]


def warmup_cosine(peak: float, epochs: int, warmup_epochs: float, steps_per_epoch: int) -> CosineDecay:
    """Return a learning rate that rises linearly to `peak`, then falls to 0 along a cosine.

    With w warm-up steps among n steps, step s has the rate ``peak * (s + 1) / (w + 1)`` for s < w (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677), and ``peak * (1 + cos(pi * (s - w) / (n - w))) / 2`` for s >= w (Loshchilov &
    Hutter 2017, https://arxiv.org/abs/1608.03983). The warm-up leaves at least one step for the cosine.

    Args:
        peak: largest learning rate.
        epochs: epochs of the whole training.
        warmup_epochs: length of the warm-up, in epochs.
        steps_per_epoch: steps per epoch.
    """
    steps = epochs * steps_per_epoch
    warmup = min(round(warmup_epochs * steps_per_epoch), steps - 1)
    if warmup == 0:
        return CosineDecay(peak, steps)
    return CosineDecay(peak / (warmup + 1), steps - warmup, warmup_target=peak, warmup_steps=warmup)
