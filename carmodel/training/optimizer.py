"""The optimizer: learning rate scaled by the number of workers, one rate per layer, decoupled weight decay."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import Variable

from carmodel.model.keras_internals import index_of
from carmodel.parameters import Train
from carmodel.training.schedule import warmup_cosine

FULL_SIDE = 256
"""Side in pixels of an image for which the sizes of the feature maps are computed, which give the stage of each layer."""


class LayerwiseRates:
    """Give each variable of an optimizer its own learning rate and weight decay.

    In each step a weight is reduced by ``rate * decay`` of its value, decoupled as in AdamW
    (https://arxiv.org/abs/1711.05101), with the variable's own rate. Keras's weight decay uses one rate for all variables.

    Attributes:
        factors: factor of the learning rate, for each variable.
        decays: weight decay, for each variable.
    """

    factors: list[float]
    decays: list[float]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Decay a variable, then update it."""
        i = index_of(self, variable)
        rate = learning_rate * self.factors[i]
        if self.decays[i]:
            self.assign_sub(variable, variable * keras.ops.cast(rate * self.decays[i], variable.dtype))  # type: ignore[attr-defined]
        super().update_step(gradient, variable, rate)  # type: ignore[misc]


class LayerwiseAdam(LayerwiseRates, keras.optimizers.Adam):
    """Adam with `LayerwiseRates`."""


class LayerwiseSGD(LayerwiseRates, keras.optimizers.SGD):
    """SGD with `LayerwiseRates`."""


def make_optimizer(
    params: Train,
    variables: Sequence[Variable],
    epochs: int,
    steps_per_epoch: int,
    *,
    ranks: int = 1,
    factors: dict[str, float] | None = None,
) -> keras.optimizers.Optimizer:
    """Return SGD with Nesterov momentum, or AdamW, with warm-up and cosine decay, built for the variables.

    Kernels have weight decay. Biases, gamma and beta have none. With `scale_learning_rate`, the peak learning rate is
    multiplied by the number of ranks, since a step sees that many times as many rows (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677, section 2.1). The moving average covers about a tenth of the training at most.

    Args:
        params: `optimizer`, `learning_rate`, `momentum`, `weight_decay`, `ema`, `warmup_epochs` and
            `scale_learning_rate` are used.
        variables: the variables to train, in the order of the fitted model.
        epochs: epochs of the whole training.
        steps_per_epoch: steps of this process.
        ranks: number of processes that train together.
        factors: factor of the learning rate by the path of the variable, from `rate_factors`. Others have a factor of 1.
    """
    factors = factors or {}
    peak = params.learning_rate * (ranks if params.scale_learning_rate else 1)
    rate = warmup_cosine(peak, epochs, params.warmup_epochs, steps_per_epoch)
    # Keras's average starts at the first weights. A momentum that is large for a short training would keep most of them.
    momentum = min(params.ema, max(0.0, 1 - 10 / (epochs * steps_per_epoch)))
    average = {"use_ema": params.ema > 0, "ema_momentum": momentum}
    if params.optimizer == "adamw":
        optimizer = LayerwiseAdam(rate, name="adamw", **average)
    else:
        optimizer = LayerwiseSGD(rate, momentum=params.momentum, nesterov=params.momentum > 0, name="sgd", **average)
    optimizer.factors = [factors.get(variable.path, 1.0) for variable in variables]
    optimizer.decays = [params.weight_decay if decays(variable) else 0.0 for variable in variables]
    optimizer.build(variables)
    return optimizer


def decays(variable: Variable) -> bool:
    """Return whether a variable has weight decay: kernels do, but vectors (biases, gamma and beta) do not."""
    return len(variable.shape) > 1


def rate_factors(network: keras.Model, layer_decay: float) -> dict[str, float]:
    """Return the factor of the learning rate for each variable below the head, by its path.

    A layer that is k stages below the last one has the factor ``layer_decay ** (k + 1)``, and the head has 1. A stage
    consists of the layers whose outputs have the same size: the side of the image divided by 2, 4, 8 and so on. Layers
    with outputs of 1 x 1, such as those of squeeze and excitation, belong to the stage of the layers before them.

    Args:
        network: the network.
        layer_decay: factor between two stages. With 1, the result is empty.
    """
    if layer_decay == 1:
        return {}
    sized = keras.models.clone_model(network, input_tensors=keras.Input((FULL_SIDE, FULL_SIDE, 3), dtype="uint8"))
    halvings, stage = {}, 0
    for layer in filter(_is_map, sized.layers):
        if (side := layer.output.shape[1]) > 1:
            stage = round(math.log2(FULL_SIDE / side))
        halvings[layer.name] = stage
    last = max(halvings.values())
    return {
        variable.path: layer_decay ** (last - halvings[layer.name] + 1)
        for layer in network.layers
        for variable in layer.trainable_variables
        if layer.name in halvings
    }


def _is_map(layer: keras.Layer) -> bool:
    """Return whether the output of a layer is a feature map (B, h, w, C)."""
    return isinstance(layer.output, keras.KerasTensor) and len(layer.output.shape) == 4
