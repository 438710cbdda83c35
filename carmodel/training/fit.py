"""Training: compile, go on from the last checkpoint if there is one, fit, and end with the weights to keep."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
from keras import metrics

from carmodel.errors import InputError
from carmodel.model.backbone import features
from carmodel.model.head import HEAD
from carmodel.parameters import Train
from carmodel.training import checkpoint, device_augmentation
from carmodel.training.batches import Batches, DrawViews, Rows
from carmodel.training.optimizer import make_optimizer, undecayed
from carmodel.training.precision import gpus


class Features:
    """A frozen network's features of every row of a store, computed once; rows as `carmodel.training.batches.Rows`."""

    def __init__(
        self, network: keras.Model, data: Rows, batch_size: int, verbose: int = 1, *, rank: int = 0, ranks: int = 1
    ) -> None:
        self.labels, self.validation, self.class_names = data.labels, data.validation, data.class_names
        part = np.array_split(np.arange(len(data)), ranks)[rank]
        self.values: np.ndarray = features(network).predict(Batches(data, part, batch_size), verbose=verbose)
        if ranks > 1:
            from carmodel.training import distributed

            self.values = distributed.gather(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Features float32 (n, C)."""
        return self.values[rows]


class Throughput(keras.callbacks.Callback):
    """Add ``images_per_second`` of this process to the logs of each epoch.

    The first step, which traces or compiles, and the validation are left out, unless an epoch has no other step.
    """

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self.bounds = batches.bounds

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Start the clock at the second step."""
        if batch <= 1:
            self.start, self.first = time.perf_counter(), self.bounds[batch]

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Stop the clock when the device has really done the last step: its loss is known."""
        if batch == len(self.bounds) - 2:
            float((logs or {})["loss"])
            self.rate = float(self.bounds[-1] - self.first) / (time.perf_counter() - self.start)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Report the rate."""
        if logs is not None:
            logs["images_per_second"] = self.rate


def fit(
    model: keras.Model,
    store: Rows,
    params: Train,
    checkpoint_dir: Path,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    rank: int = 0,
    ranks: int = 1,
    on_saved: Callable[[Path], None] | None = None,
) -> keras.callbacks.History:
    """Train `model` in place on the store's training rows; measure it on the validation rows after every epoch.

    Continues from the latest checkpoint in `checkpoint_dir` if it holds one, and then ends with the weights of an
    uninterrupted run: bit for bit where the device's operations are deterministic. Under early stopping the network
    ends with the best epoch's weights, otherwise with the last's. A frozen network without on-device augmentation is
    run once over the store, and its head alone is fitted on the features.

    Several ranks, each a process that has joined through `carmodel.training.distributed`, share the rows of training and
    of validation, see the same metrics and end with the same weights.

    Args:
        model: as `carmodel.model.network.build` made it, after `carmodel.training.precision.apply`.
        store: rows with uint8 images.
        params: the rest of them; `build` has used those of the network.
        checkpoint_dir: where rank 0 writes, and from where it resumes all ranks.
        callbacks: further Keras callbacks; they see the epoch's logs whole, after the checkpoint is written.
        rank: this process among `ranks`.
        ranks: processes that share each epoch.
        on_saved: called by rank 0 with each new checkpoint's path.

    Returns:
        Keras's History, its ``history`` from the first epoch on, with loss, accuracy, top5, images_per_second and,
        where there are validation rows, val_loss, val_accuracy, val_top5.

    Raises:
        InputError: fewer training rows than ranks, or early stopping without validation rows.
        CheckpointError: the checkpoint is of another network, optimizer, store or batch size.
    """
    training_rows, validation_rows = np.flatnonzero(~store.validation), np.flatnonzero(store.validation)
    if params.early_stop and not len(validation_rows):
        raise InputError("early_stop needs validation rows: preprocess with validation_fraction > 0, or early_stop=0")
    keras.utils.set_random_seed(params.seed)
    # A bar where someone watches, a line an epoch in a log file.
    verbose = (1 if sys.stdout.isatty() else 2) if rank == 0 else 0
    drawn = _views(params)
    trained, data = _training_model(model, store, params, verbose, rank=rank, ranks=ranks)
    batches = Batches(data, training_rows, params.batch_size, seed=params.seed, views=drawn, rank=rank, ranks=ranks)
    if len(validation_rows) >= ranks:
        validation_rows = validation_rows[rank::ranks]
    validation = Batches(data, validation_rows, params.batch_size, views=drawn) if len(validation_rows) else None
    _compile(trained, params, len(batches), len(store.class_names), ranks)
    history = _resume(checkpoint_dir, model, trained.optimizer, len(batches), params) if rank == 0 else {}
    together: list[keras.callbacks.Callback] = []
    if ranks > 1:
        from carmodel.training import distributed

        history = distributed.from_rank_0(history)
        average = distributed.distribute(trained.optimizer, params.compression)
        together = [distributed.Together(average, int(batches.bounds[-1]), len(validation_rows))]

    done = len(history.get("loss", []))
    stopping = [checkpoint.EarlyStopping(params.early_stop, history)] if params.early_stop else []
    if any(callback.over for callback in stopping):
        done = params.epochs
    saving = [checkpoint.SaveEveryEpoch(checkpoint_dir, model, history, on_saved)] if rank == 0 else []
    begin = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: batches.begin(epoch))
    result = trained.fit(
        batches,
        validation_data=validation,
        epochs=params.epochs,
        initial_epoch=done,
        shuffle=False,
        verbose=verbose,
        callbacks=[begin, Throughput(batches), *together, *stopping, *saving, *callbacks],
    )
    if rank == 0 and params.early_stop:
        checkpoint.restore(checkpoint.path_of(checkpoint_dir, checkpoint.best_epoch(history)), model)
    if ranks > 1 and params.early_stop:
        distributed.broadcast(model.variables)
    if rank == 0:
        result.history, result.epoch = history, list(range(len(history["loss"])))
    return result


def _views(params: Train) -> DrawViews | None:
    """The on-device augmentation that is asked for, or None."""
    if params.random_crop == 1.0 and not params.random_flip and params.mixup == 0:
        return None
    return partial(
        device_augmentation.draw, random_crop=params.random_crop, random_flip=params.random_flip, mixup=params.mixup
    )


def _training_model(
    network: keras.Model, store: Rows, params: Train, verbose: int, *, rank: int, ranks: int
) -> tuple[keras.Model, Rows]:
    """The model to fit and what it is fitted on: a second model over the network's own layers.

    The network itself is never compiled, so what is saved of it holds no optimizer.
    """
    if _views(params) is not None:
        return device_augmentation.with_views(network), store
    if not params.freeze:
        return keras.Model(network.inputs, network.outputs[0], name="training"), store
    data = Features(network, store, params.batch_size, verbose, rank=rank, ranks=ranks)
    below = keras.Input(data.values.shape[1:])
    return keras.Model(below, network.get_layer(HEAD)(below), name="training"), data


def _compile(model: keras.Model, params: Train, steps: int, classes: int, ranks: int) -> None:
    optimizer = make_optimizer(params, steps, ranks)
    optimizer.exclude_from_weight_decay(var_list=undecayed(model))
    optimizer.build(model.trainable_variables)
    # TensorFlow's XLA is slower than its kernels on a CPU, and does not know Horovod's operations.
    plain = keras.backend.backend() == "tensorflow" and (ranks > 1 or not gpus())
    model.compile(
        optimizer,
        keras.losses.CategoricalCrossentropy(label_smoothing=params.label_smoothing),
        metrics=[
            metrics.CategoricalAccuracy(name="accuracy"),
            metrics.TopKCategoricalAccuracy(k=min(5, classes), name="top5"),
        ],
        jit_compile=False if plain else "auto",
    )


def _resume(
    directory: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer, steps: int, params: Train
) -> checkpoint.History:
    """Restore the latest checkpoint, if any, and return the history up to it."""
    path = checkpoint.latest(directory)
    if path is None:
        return {}
    history = checkpoint.restore(path, model, optimizer)
    done, made = len(history["loss"]), int(optimizer.iterations.numpy())
    if made != done * steps:
        raise checkpoint.CheckpointError(
            f"{path} was made with {made / done:g} steps an epoch, this training makes {steps}; "
            "resume with the same stores, batch_size and number of processes"
        )
    best = checkpoint.path_of(directory, checkpoint.best_epoch(history))
    if params.early_stop and not best.exists():
        raise checkpoint.CheckpointError(f"early stopping needs the best epoch: put {best.name} beside {path}")
    return history
