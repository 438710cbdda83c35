"""The optimizer of a run: its learning rate for each layer, and its weight decay."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import Variable

from carmodel.parameters import Train
from carmodel.training.schedule import warmup_cosine

FULL_SIDE = 256
"""Side in pixels of the image whose way through the network tells at which stage a layer is."""


class LayerwiseRates:
    """Give each variable of an optimizer its own factor of the learning rate, and decay weights by it.

    Keras's own weight decay knows one learning rate for all variables. This one takes ``rate * weight_decay`` of a weight
    away in each step, with the variable's own rate (decoupled as in AdamW, https://arxiv.org/abs/1711.05101).
    """

    factors: list[float]
    decays: list[float]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Decay the variable, then update it, at its own rate."""
        i = self._get_variable_index(variable)  # type: ignore[attr-defined]
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
    """Return SGD with Nesterov momentum, or AdamW, on the warm-up and cosine schedule, built for the variables.

    Weights that multiply inputs decay. Vectors do not: biases, gamma and beta. With `scale_learning_rate` the peak is
    multiplied by the ranks, as a step then sees so many times the rows (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677, section 2.1).

    Args:
        params: `optimizer`, `learning_rate`, `momentum`, `weight_decay`, `ema`, `warmup_epochs` and
            `scale_learning_rate` are used.
        variables: those to train, in the order in which the model that is fitted has them.
        epochs: of the whole run.
        steps_per_epoch: of this process.
        ranks: processes that train together.
        factors: of the learning rate, for each variable by its path; 1 where there is none.
    """
    factors = factors or {}
    peak = params.learning_rate * (ranks if params.scale_learning_rate else 1)
    rate = warmup_cosine(peak, epochs, params.warmup_epochs, steps_per_epoch)
    average = {"use_ema": params.ema > 0, "ema_momentum": params.ema or 0.99}
    if params.optimizer == "adamw":
        optimizer = LayerwiseAdam(rate, name="adamw", **average)
    else:
        optimizer = LayerwiseSGD(rate, momentum=params.momentum, nesterov=params.momentum > 0, name="sgd", **average)
    optimizer.factors = [factors.get(variable.path, 1.0) for variable in variables]
    optimizer.decays = [params.weight_decay if decays(variable) else 0.0 for variable in variables]
    optimizer.build(variables)
    return optimizer


def decays(variable: Variable) -> bool:
    """Whether a variable decays: kernels do; biases, gamma and beta, which are vectors, do not."""
    return len(variable.shape) > 1


def rate_factors(network: keras.Model, layer_decay: float) -> dict[str, float]:
    """Return the factor of the learning rate for each variable below the head, by its path.

    A layer that is k stages below the last one learns at ``layer_decay ** (k + 1)`` of the head's rate. A stage is made of
    the layers whose outputs have the same size: the side of the image divided by 2, 4, 8 … .

    Args:
        network: with the weights that training starts from.
        layer_decay: 1 gives all layers the same rate, and an empty result.
    """
    if layer_decay == 1:
        return {}
    sized = keras.models.clone_model(network, input_tensors=keras.Input((FULL_SIDE, FULL_SIDE, 3), dtype="uint8"))
    halvings = {
        layer.name: round(math.log2(FULL_SIDE / layer.output.shape[1])) for layer in sized.layers if _is_map(layer)
    }
    last = max(halvings.values())
    return {
        variable.path: layer_decay ** (last - halvings[layer.name] + 1)
        for layer in network.layers
        for variable in layer.trainable_variables
        if layer.name in halvings
    }


def _is_map(layer: keras.Layer) -> bool:
    """Whether a layer's output is a feature map (B, h, w, C)."""
    return isinstance(layer.output, keras.KerasTensor) and len(layer.output.shape) == 4
