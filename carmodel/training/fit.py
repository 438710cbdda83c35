"""Train a network: compile, resume from the last checkpoint, fit, and end with the final weights."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import keras
import numpy as np
from keras import metrics

from carmodel.errors import InputError
from carmodel.model.head import features_of, head_layers, logits_of
from carmodel.model.network import check_sizes
from carmodel.parameters import Train
from carmodel.training import checkpoint, device_augmentation
from carmodel.training.batches import Batches, Photos, Rows
from carmodel.training.checkpoint import History
from carmodel.training.dataset import as_dataset
from carmodel.training.features import Features, initialise_head
from carmodel.training.fixed_statistics import with_fixed_statistics
from carmodel.training.fused_normalization import with_fused_normalization
from carmodel.training.optimizer import make_optimizer, rate_factors
from carmodel.training.precision import gpus
from carmodel.training.progress import Progress
from carmodel.training.ranks import ALONE, Ranks
from carmodel.training.schedule import Stage, stages
from carmodel.training.statistics import FinalStatistics, moving_statistics, recompute_statistics, tracking


class Throughput(keras.callbacks.Callback):
    """Add the training rate of this process, ``images_per_second``, to the logs of each epoch.

    It times whole epochs, and not steps. A callback that overrides `on_train_batch_end` and is not `async_safe` makes every
    step wait for its loss.

    Args:
        rows: training rows per epoch.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.seconds = rows, 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start the clock."""
        self.began, self.seconds = time.perf_counter(), 0.0

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        """Stop the clock before validation."""
        self.seconds = time.perf_counter() - self.began

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Add the rate to the logs."""
        if logs is not None:
            logs["images_per_second"] = self.rows / (self.seconds or time.perf_counter() - self.began)


def fit(
    model: keras.Model,
    store: Photos,
    params: Train,
    checkpoint_dir: Path,
    *,
    ranks: Ranks = ALONE,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    on_saved: Callable[[Path], None] | None = None,
) -> History:
    """Train a network in place on the store's training rows, and validate it after every epoch.

    Training resumes from the latest checkpoint in `checkpoint_dir`. It then ends with the weights of an uninterrupted
    run, bit for bit if the device's operations are deterministic. With `ema`, the network is validated with the moving
    average of its weights, and ends with it. Before the last validation, the statistics of batch normalisation are
    computed again, since the tracked ones belong to earlier weights. If only the head is trained, without augmentation
    on the device, the features of all photos are computed once and the head is fitted on them.

    Several ranks share the training and validation rows. They report the same metrics and end with the same weights.

    Args:
        model: the network, from `carmodel.model.network.build`, after `carmodel.training.precision.apply`.
        store: rows with uint8 images.
        params: parameters of the training. `build` has used those of the network.
        checkpoint_dir: directory of the checkpoints. Only rank 0 reads and writes it.
        ranks: the processes that train together.
        callbacks: further Keras callbacks. They see the complete logs of an epoch, after the checkpoint is written.
        on_saved: rank 0 calls it with the path of each new checkpoint.

    Returns:
        the history from the first epoch on: lists of loss, accuracy, top5 and images_per_second and, if there are
        validation rows, val_loss, val_accuracy and val_top5.

    Raises:
        InputError: there are fewer training rows than ranks, the images are too small for the network, or `ema` is used
            under JAX.
        CheckpointError: the checkpoint has another network, optimizer, store or schedule.
    """
    if params.ema and keras.backend.backend() == "jax":
        raise InputError("ema=0 is needed under JAX: Keras cannot end a training with moving averages there")
    keras.utils.set_random_seed(params.seed)
    verbose = int(ranks.rank == 0 and sys.stdout.isatty())
    schedule = stages(params.epochs, store.image_size)
    check_sizes(model, {stage.size for stage in schedule})
    training = _Training(model, store, params, ranks, schedule, rate_factors(model, params.layer_decay), verbose)
    if params.head_init == "lda" and not ranks.from_rank_0(checkpoint.latest(checkpoint_dir) is not None):
        accuracy = initialise_head(model, training.features(schedule[0].size))
        if ranks.rank == 0:
            print(f"train: head initialised by linear discriminant analysis: validation accuracy {accuracy:.3f}")
    history: History = {}
    for stage in schedule:
        history = training.run(stage, checkpoint_dir, callbacks, on_saved)
    if training.tracks_statistics and not store.validation.any():
        recompute_statistics(model, store, params, schedule[-1])
        ranks.broadcast(moving_statistics(model))
    return history


@dataclass(frozen=True)
class _Training:
    """The settings that all stages of a training share: the arguments of `fit`, and values derived from them."""

    network: keras.Model
    store: Photos
    params: Train
    ranks: Ranks
    schedule: Sequence[Stage]
    factors: dict[str, float]
    verbose: int
    computed: dict[int, Features] = field(default_factory=dict)
    """Features by the side of the images, for trainings in which the layers below the head do not change."""

    @cached_property
    def settings(self) -> checkpoint.Settings:
        """Return what must not change on resume. It reads files, and all stages need it."""
        return checkpoint.settings_of(self.params, self.store)

    @property
    def tracks_statistics(self) -> bool:
        """Return whether batch normalisation normalises with batches, and tracks their statistics."""
        return self.params.batch_norm == "train" and bool(tracking(self.network))

    def features(self, size: int) -> Features:
        """Return the features of all rows at a size. They are computed once, since the head does not affect them."""
        if size not in self.computed:
            self.computed[size] = Features(
                self.network, self.store, self.params.batch_size, size, verbose=self.verbose, ranks=self.ranks
            )
        return self.computed[size]

    def run(
        self,
        stage: Stage,
        checkpoint_dir: Path,
        callbacks: Sequence[keras.callbacks.Callback],
        on_saved: Callable[[Path], None] | None,
    ) -> History:
        """Train to the end of a stage, from the latest checkpoint on, and return the history so far."""
        params, ranks = self.params, self.ranks
        model, data = self.model_and_data(stage.size)
        batches, validation = self.make_batches(data, augmented=isinstance(model.input, dict))
        optimizer = self.compile(model, len(batches))
        history = self.resume(checkpoint_dir, optimizer, len(batches)) if ranks.rank == 0 else {}
        history = ranks.from_rank_0(history)
        if (done := len(history.get("loss", []))) >= stage.end:
            if stage == self.schedule[-1]:
                optimizer.finalize_variable_values(model.trainable_variables)
                ranks.broadcast(self.network.variables)
            return history
        rows = len(batches) * batches.batch_size
        own = [
            keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: batches.begin(epoch)),
            Throughput(rows),
        ]
        own += ranks.callbacks(optimizer, params.compression, rows, len(validation.rows) if validation else 0)
        if params.ema:
            own.append(keras.callbacks.SwapEMAWeights())
        if self.tracks_statistics:
            own.append(FinalStatistics(self.network, self.store, params, self.schedule[-1], ranks))
        if ranks.rank == 0:
            own.append(
                checkpoint.SaveCheckpoints(checkpoint_dir, self.network, history, self.settings, on_saved=on_saved)
            )
            own.append(Progress(self.schedule[-1].end))
        result = model.fit(
            as_dataset(batches),
            validation_data=as_dataset(validation) if validation else None,
            epochs=stage.end,
            initial_epoch=done,
            shuffle=False,
            verbose=0,
            callbacks=[*own, *callbacks],
        )
        if ranks.rank != 0:  # On rank 0, `SaveCheckpoints` extends the history.
            for name, values in result.history.items():
                history.setdefault(name, []).extend(values)
        return history

    def model_and_data(self, size: int) -> tuple[keras.Model, Rows]:
        """Return the model to fit, from images or features to logits, and its data.

        It is a second model over the network's layers. The network itself is never compiled, so it is saved without an
        optimizer.
        """
        network, store, params = self.network, self.store, self.params
        augmented = not device_augmentation.is_off(params)
        only_head = not features_of(network).trainable_variables
        if only_head and not augmented:
            data = self.features(size)
            x = below = keras.Input(data.values.shape[1:])
            for layer in head_layers(network):
                x = layer(x)
            return keras.Model(below, x, name="training"), data
        if only_head and self.ranks.rank == 0:
            print(
                "train: the frozen network runs in every step, because augmentation on the device is on. Without it, "
                "the features of each photo are computed once, which is much faster"
            )
        logits = logits_of(network)
        logits = with_fixed_statistics(logits) if params.batch_norm == "inference" else with_fused_normalization(logits)
        if not augmented and size == store.image_size:
            return keras.Model(logits.input, logits.output, name="training"), store
        return device_augmentation.with_augmentation(logits, size, store.image_size, params), store

    def make_batches(self, data: Rows, augmented: bool) -> tuple[Batches, Batches | None]:
        """Return the training batches of this rank, and its validation batches if there are validation rows.

        Args:
            data: images or features.
            augmented: whether the model augments images on the device.
        """
        store, params, ranks = self.store, self.params, self.ranks
        training_rows, validation_rows = np.flatnonzero(~store.validation), np.flatnonzero(store.validation)
        if len(validation_rows) >= ranks.count:
            validation_rows = validation_rows[ranks.rank :: ranks.count]
        draw = partial(device_augmentation.draw, params=params) if augmented else None
        training = Batches(
            data, training_rows, params.batch_size, seed=params.seed, draw=draw, rank=ranks.rank, ranks=ranks.count
        )
        validation = Batches(data, validation_rows, params.batch_size, draw=draw) if len(validation_rows) else None
        return training, validation

    def compile(self, model: keras.Model, steps: int) -> keras.optimizers.Optimizer:
        """Compile the model to fit, and return its optimizer."""
        optimizer = make_optimizer(
            self.params,
            model.trainable_variables,
            self.schedule[-1].end,
            steps,
            ranks=self.ranks.count,
            factors=self.factors,
        )
        # For a network, XLA is slower than TensorFlow's own kernels on a CPU, and it does not support Horovod's operations.
        plain = keras.backend.backend() == "tensorflow" and (self.ranks.count > 1 or not gpus())
        model.compile(
            optimizer,
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=self.params.label_smoothing),
            metrics=[
                metrics.CategoricalAccuracy(name="accuracy"),
                metrics.TopKCategoricalAccuracy(k=min(5, len(self.store.class_names)), name="top5"),
            ],
            jit_compile=False if plain else "auto",
        )
        return optimizer

    def resume(self, directory: Path, optimizer: keras.optimizers.Optimizer, steps: int) -> History:
        """Restore the latest checkpoint, if there is one, and return the history up to it."""
        path = checkpoint.latest(directory)
        if path is None:
            return {}
        history = checkpoint.restore(path, self.network, optimizer, self.settings)
        done, made = len(history["loss"]), int(optimizer.iterations.numpy())
        if made != done * steps:
            raise checkpoint.CheckpointError(
                f"{path} has {made / done:g} steps per epoch, and this training has {steps}. Resume with the same stores, "
                "batch_size and number of processes"
            )
        return history
