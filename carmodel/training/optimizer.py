"""The optimizer of a run, and which variables its weight decay leaves alone."""

import keras

from carmodel.parameters import Train
from carmodel.training.schedule import warmup_cosine


def make_optimizer(params: Train, steps_per_epoch: int, ranks: int = 1) -> keras.optimizers.Optimizer:
    """SGD with Nesterov momentum, or AdamW (https://arxiv.org/abs/1711.05101), on the warm-up and cosine schedule.

    Decay is decoupled from the gradient in both: every step takes ``learning_rate * weight_decay`` of a weight away.
    With `scale_learning_rate` the peak is multiplied by the ranks, as a step then sees so many times the rows (Goyal et
    al. 2017, https://arxiv.org/abs/1706.02677, section 2.1).
    """
    peak = params.learning_rate * (ranks if params.scale_learning_rate else 1)
    rate = warmup_cosine(peak, params.epochs, params.warmup_epochs, steps_per_epoch)
    decay = params.weight_decay or None
    if params.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=decay or 0.0)
    return keras.optimizers.SGD(rate, momentum=params.momentum, nesterov=params.momentum > 0, weight_decay=decay)


def undecayed(model: keras.Model) -> list[keras.Variable]:
    """Variables without weight decay: biases, gamma and beta of Scale and of normalisation: all that are vectors.

    Decay is for what multiplies inputs; for `Optimizer.exclude_from_weight_decay`, before the optimizer is built.
    """
    return [variable for variable in model.trainable_variables if len(variable.shape) < 2]
