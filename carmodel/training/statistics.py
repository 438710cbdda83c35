"""Compute the statistics of batch normalisation with the final weights of a training."""

from functools import partial

import keras
import numpy as np
from keras import layers

from carmodel.parameters import Train
from carmodel.training import device_augmentation
from carmodel.training.batches import Batches, Photos
from carmodel.training.fused_normalization import batch_normalizations
from carmodel.training.ranks import Ranks
from carmodel.training.schedule import Stage

BATCHES = 100
"""Largest number of batches from which the statistics are computed."""


class FinalStatistics(keras.callbacks.Callback):
    """Set the statistics of batch normalisation to those of the final weights, before the last validation uses them.

    The statistics that training tracks belong to earlier weights, and to weights that were not averaged. Put this callback
    after those that average the weights. The last checkpoint then contains the final statistics.

    Args:
        network: the trained network.
        store: rows with uint8 images.
        params: parameters of the training.
        stage: the last stage of the training.
        ranks: the processes that train together. All of them end with the statistics of rank 0.
    """

    def __init__(self, network: keras.Model, store: Photos, params: Train, stage: Stage, ranks: Ranks) -> None:
        super().__init__()
        self.network, self.store, self.settings, self.stage, self.ranks = network, store, params, stage, ranks

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Remember whether this epoch is the last one."""
        self.due = epoch + 1 == self.stage.end

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        """Set the statistics before the last validation."""
        if self.due:
            recompute_statistics(self.network, self.store, self.settings, self.stage)
            self.ranks.broadcast(moving_statistics(self.network))


def tracking(model: keras.Model) -> list[layers.BatchNormalization]:
    """Return the batch normalisations that track statistics in training."""
    return [layer for layer in batch_normalizations(model) if layer.trainable]


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Return the moving mean and variance of each batch normalisation that tracks them."""
    return [variable for layer in tracking(model) for variable in (layer.moving_mean, layer.moving_variance)]


def recompute_statistics(network: keras.Model, store: Photos, params: Train, stage: Stage) -> None:
    """Set the moving statistics of batch normalisation to their averages over training batches of a stage."""
    draw = partial(device_augmentation.draw, params=params)
    batches = Batches(store, np.flatnonzero(~store.validation), params.batch_size, seed=params.seed, draw=draw)
    batches.begin(stage.end)
    augment = device_augmentation.DeviceAugmentation(stage.size, params)
    normalisations = tracking(network)
    momenta = [layer.momentum for layer in normalisations]
    for step in range(min(len(batches), BATCHES)):
        inputs, _ = batches[step]
        for layer in normalisations:
            layer.momentum = step / (step + 1)  # turns the moving average into the mean of all batches
        network(augment(inputs["image"], inputs["numbers"], training=True), training=True)
    for layer, momentum in zip(normalisations, momenta, strict=True):
        layer.momentum = momentum
